"""Whether a robot fits a checkpoint, as `lerobot-rollout` asks before it drives."""

import logging
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.processor import RenameObservationsProcessorStep
from tiny import make_batch, make_motion_config, make_motion_policy

from lerobot_motion.joint.driving import check_robot, install_rollout_hook

TOP, WRIST = "observation.images.top", "observation.images.wrist"


@pytest.fixture
def config() -> Any:
    """Of a checkpoint with two cameras, 3 values of state and 2 actions."""
    config = make_motion_config()
    image = PolicyFeature(FeatureType.VISUAL, (3, 48, 64))
    state = PolicyFeature(FeatureType.STATE, (3,))
    config.input_features = {TOP: image, WRIST: image, "observation.state": state}
    config.output_features = {"action": PolicyFeature(FeatureType.ACTION, (2,))}
    return config


def robot(*cameras: str, num_joints: int = 3) -> dict[str, dict[str, Any]]:
    joints = [f"j{i}.pos" for i in range(num_joints)]
    features: dict[str, dict[str, Any]] = {"observation.state": {"names": joints}}
    return features | {camera: {"names": ["height", "width", "channels"]} for camera in cameras}


def test_a_robot_that_fits_says_nothing(config, caplog):
    check_robot(config, ["a.pos", "b.pos"], robot(TOP, WRIST, "observation.images.more"), {})

    assert caplog.records == []


@pytest.mark.parametrize("keys", [["a.pos"], ["a.pos", "b.pos", "c.pos"]])
def test_another_number_of_actions_is_refused(config, keys):
    message = rf"trained on 2 actions, the robot has {len(keys)} \(a.pos.*Nothing was sent"
    with pytest.raises(ValueError, match=message):
        check_robot(config, keys, robot(TOP, WRIST), {})


def test_another_size_of_state_is_refused(config):
    with pytest.raises(ValueError, match=r"trained on 3 values of state, the robot has 1 \(j0.pos"):
        check_robot(config, ["a.pos", "b.pos"], robot(TOP, WRIST, num_joints=1), {})


def test_cameras_of_other_names_are_refused(config):
    front = "observation.images.front"
    with pytest.raises(ValueError, match=rf"cameras {TOP}, {WRIST}; .* {front}. Name .*--rename"):
        check_robot(config, ["a.pos", "b.pos"], robot(front), {})
    check_robot(config, ["a.pos", "b.pos"], robot(front), {front: TOP})


def test_a_missing_camera_is_a_warning(config, caplog):
    with caplog.at_level(logging.WARNING):
        check_robot(config, ["a.pos", "b.pos"], robot(TOP), {})

    assert f"It drives without {WRIST}" in caplog.text


def test_an_empty_camera_is_none_that_could_be_missing(config, caplog):
    config.input_features["observation.images.empty_camera_0"] = config.input_features[TOP]
    check_robot(config, ["a.pos", "b.pos"], robot(TOP, WRIST), {})

    assert caplog.records == []


@pytest.fixture
def context(monkeypatch) -> SimpleNamespace:
    """LeRobot's module that builds rollouts, with an engine that is only named."""
    module = SimpleNamespace(create_inference_engine=lambda _config, **_kwargs: "engine")
    monkeypatch.setitem(sys.modules, "lerobot.rollout.context", module)
    return module


def create(context: SimpleNamespace, config: Any, **kwargs: Any) -> Any:
    settings = {
        "policy": SimpleNamespace(config=config),
        "preprocessor": SimpleNamespace(steps=[]),
        "ordered_action_keys": ["a.pos", "b.pos"],
        "hw_features": robot(TOP, WRIST),
    }
    return context.create_inference_engine(None, **settings | kwargs)


def test_the_hook_checks_our_policies_alone(config, context):
    install_rollout_hook()
    hook = context.create_inference_engine
    install_rollout_hook()

    assert context.create_inference_engine is hook
    assert create(context, config) == "engine"
    with pytest.raises(ValueError, match="trained on 2 actions"):
        create(context, config, ordered_action_keys=["a.pos"])
    assert create(context, SimpleNamespace(), ordered_action_keys=["a.pos"]) == "engine"


def test_the_hook_sees_the_renaming(config, context):
    install_rollout_hook()
    renaming = RenameObservationsProcessorStep({"observation.images.front": TOP})
    front = robot("observation.images.front")

    assert create(
        context, config, hw_features=front, preprocessor=SimpleNamespace(steps=[renaming])
    )
    with pytest.raises(ValueError, match="observation.images.front"):
        create(context, config, hw_features=front)


def test_no_motion_is_drawn_for_a_robot(config, context, caplog):
    install_rollout_hook()
    config.save_predicted_video = True
    with caplog.at_level(logging.WARNING):
        create(context, config)

    assert not config.save_predicted_video
    assert "lerobot-rollout has no place for the video" in caplog.text


def test_without_a_rollout_there_is_nothing_to_hook(monkeypatch):
    monkeypatch.delitem(sys.modules, "lerobot.rollout.context", raising=False)
    install_rollout_hook()

    assert "lerobot.rollout.context" not in sys.modules


@pytest.mark.parametrize(("delay", "late"), [(None, False), (3, False), (4, True)])
def test_a_policy_that_is_always_late_is_named(caplog, delay, late):
    policy = make_motion_policy()
    policy.eval()
    batch = make_batch(policy, motion=False)
    assert policy.config.chunk_size == 4
    kwargs = {} if delay is None else {"inference_delay": delay, "prev_chunk_left_over": None}
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert policy.predict_action_chunk(batch, **kwargs).shape[1] == 4

    message = "An inference took up to 4 steps of control, and a chunk has 4 actions"
    assert caplog.text.count(message) == (1 if late else 0)  # Said once.
