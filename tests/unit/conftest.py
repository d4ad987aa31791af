import pytest


@pytest.fixture(autouse=True)
def _isolated(fresh_caches: None, no_network: None) -> None:
    """Every test here starts with empty caches and without a network."""


@pytest.fixture(scope="module")
def base(request: pytest.FixtureRequest) -> str:
    """LeRobot's policy that checkpoints are of, or of ours on top of: pi0 if none is named."""
    return getattr(request, "param", "pi0")
