"""Option --lerobot-src: where LeRobot's own tests are."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--lerobot-src", default=None, help="checkout of LeRobot at the tag v0.6.1, with its tests"
    )
