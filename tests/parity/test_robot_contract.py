"""What simulated robot and rollout checks lean on in LeRobot: each test fails when that changes."""

import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import draccus
import pytest
from draccus.utils import ParsingError
from lerobot.rollout import context as rollout_context
from lerobot.rollout.inference import create_inference_engine
from lerobot.rollout.strategies.episodic import EpisodicStrategy
from lerobot.scripts import lerobot_record, lerobot_rollout, lerobot_teleoperate
from lerobot.utils.utils import init_logging, log_say

from lerobot_motion.sim.announcements import RECORDING


def source(function: Callable[..., Any]) -> str:
    return inspect.getsource(inspect.unwrap(function))


def order(text: str, *parts: str) -> bool:
    """Whether the parts come in this order; each must be there."""
    places = [text.index(part) for part in parts]
    return places == sorted(places)


# --- episodes, as the simulated scene hears of them: sim/announcements.py ---


@pytest.mark.parametrize(
    ("function", "loop"),
    [(lerobot_record.record, "record_loop("), (EpisodicStrategy.run, "self._policy_loop(")],
)
def test_episodes_are_announced_before_their_first_observation(function, loop) -> None:
    announcement = 'log_say(f"Recording episode {dataset.num_episodes}", '

    assert order(source(function), announcement, loop, 'log_say("Reset the environment"')
    assert RECORDING.fullmatch("Recording episode 12")


def test_what_is_said_reaches_the_root_logger() -> None:
    heard = []
    handler = logging.Handler()
    handler.emit = lambda record: heard.append((record.name, record.getMessage()))
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    try:
        init_logging()
        root.addHandler(handler)
        log_say("Recording episode 3", play_sounds=False)
    finally:
        root.handlers[:] = before
        root.setLevel(level)

    assert heard == [("root", "Recording episode 3")]


@pytest.mark.parametrize(
    "function",
    [
        lerobot_record.record,
        lerobot_teleoperate.teleoperate,
        rollout_context.build_rollout_context,
    ],
)
def test_the_robot_is_built_before_the_teleoperator_looks_for_it(function) -> None:
    assert order(source(function), "make_robot_from_config(", "teleop.connect()")


def test_logging_is_set_up_before_the_robot_listens() -> None:
    """`init_logging` removes all handlers."""
    for function in (lerobot_record.record, lerobot_teleoperate.teleoperate):
        assert order(source(function), "init_logging()", "robot.connect()")
    assert order(source(lerobot_rollout.rollout), "init_logging()", "build_rollout_context(")


# --- why a configuration is refused: config_errors.py ---


@dataclass
class _Refused:
    """A configuration that cannot be built."""

    def __post_init__(self) -> None:
        raise ValueError("the reason")


def test_the_parser_keeps_the_reason_to_itself() -> None:
    with pytest.raises(ParsingError, match="Couldn't instantiate class _Refused") as caught:
        draccus.parse(_Refused, args=[])

    assert "the reason" not in str(caught.value)


# --- robots compared with checkpoints: joint/driving.py ---


def test_the_engine_is_created_with_robot_and_policy_before_anything_moves() -> None:
    parameters = inspect.signature(create_inference_engine).parameters

    names = {"policy", "preprocessor", "ordered_action_keys", "hw_features"}
    assert names <= {n for n, p in parameters.items() if p.kind is p.KEYWORD_ONLY}
    # Looked up when it runs, so that a replacement is seen.
    assert "create_inference_engine" in rollout_context.build_rollout_context.__code__.co_names
    assert "send_action" not in source(rollout_context.build_rollout_context)


def test_the_rollout_command_imports_its_engine_before_its_plugins() -> None:
    assert "build_rollout_context" in vars(lerobot_rollout)
    assert source(lerobot_rollout.main).index("register_third_party_plugins()") > 0
