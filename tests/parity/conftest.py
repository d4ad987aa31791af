import pytest
from tiny import BASES


@pytest.fixture(autouse=True)
def _isolated(fresh_caches: None, no_network: None) -> None:
    """Every test here starts with empty caches and without a network."""


@pytest.fixture(params=sorted(BASES))
def base(request: pytest.FixtureRequest) -> str:
    """The policy of LeRobot's that a test compares ours with."""
    return str(request.param)
