import pytest


@pytest.fixture(autouse=True)
def _isolated(fresh_caches: None, no_network: None) -> None:
    """Every test here starts with empty caches and without a network."""
