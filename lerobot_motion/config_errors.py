"""Reasons for which a configuration is refused, said where LeRobot's parser would keep them."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)


@contextmanager
def logged_refusal() -> Iterator[None]:
    """Log the ValueError that a `__post_init__` raises in this context, and let it pass.

    draccus 0.11, which reads LeRobot's command lines, says of a dataclass that it cannot build only
    that it cannot; tests/parity/test_robot_contract.py fails when it says more.
    """
    try:
        yield
    except ValueError as error:
        logger.error("%s", error)  # noqa: TRY400
        raise
