"""Driving a robot (`lerobot-rollout`): does it fit the checkpoint, does the policy keep pace?

LeRobot 0.6.1 compares camera names, unless there is a `--rename_map`, and nothing else. A
checkpoint with more actions than the robot then drives it with the first few of them, one with
fewer ends in an IndexError, and a state of another size in an error of tensor arithmetic. Its
`create_inference_engine`, which is given both sides once robot and policy are there, is therefore
wrapped for our policies, here and nowhere else. tests/parity/test_robot_contract.py fails when
LeRobot changes what this leans on.

A policy so slow that a whole chunk is over before it is there never moves the robot under real-time
chunking: LeRobot drops what is late, and says nothing of it. `PaceWarning` does.
"""

import functools
import logging
import sys
from collections.abc import Collection, Mapping
from typing import Any

from lerobot.processor import RenameObservationsProcessorStep
from lerobot.utils.constants import ACTION, OBS_IMAGES, OBS_STATE
from torch import Tensor

from lerobot_motion.joint.configuration import JointMotionConfig

logger = logging.getLogger(__name__)

EMPTY_CAMERA = f"{OBS_IMAGES}.empty_camera_"
"""Beginning of the names of pi0's `empty_cameras`, which no robot has."""


class PaceWarning:
    """Mixed into a policy: says under real-time chunking when no action comes in time."""

    # Steps of control that an inference takes at most, as far as it was said.
    _longest_delay = 0

    def predict_action_chunk(self, batch: dict[str, Tensor], **kwargs: Any) -> Tensor:
        """Predict as the base policy does, unchanged.

        Args:
            batch: Output of the preprocessor on observations.
            **kwargs: Of real-time chunking, among them `inference_delay`: the steps of control
                that an inference takes.
        """
        config: JointMotionConfig = self.config  # type: ignore[attr-defined]
        delay = kwargs.get("inference_delay") or 0
        if delay >= config.chunk_size and delay > self._longest_delay:
            self._longest_delay = delay
            logger.warning(
                "An inference took up to %d steps of control, and a chunk has %d actions: those "
                "that come so late are dropped, and the robot stands still. If that goes on, lower "
                "--fps, use a faster device, fewer --policy.num_inference_steps, or a checkpoint "
                "with a larger chunk_size.",
                delay,
                config.chunk_size,
            )
        chunk: Tensor = super().predict_action_chunk(batch, **kwargs)  # type: ignore[misc]
        return chunk


def install_rollout_hook() -> None:
    """Check robots for our policies; done once, and only where LeRobot is about to roll out.

    `lerobot-rollout` imports its engine before its plugins. Other commands need not import it.
    """
    context = sys.modules.get("lerobot.rollout.context")
    create = getattr(context, "create_inference_engine", None)
    if create is None or getattr(create, "checks_robot", False):
        return

    @functools.wraps(create)
    def check_and_create(*args: Any, **kwargs: Any) -> Any:
        config = getattr(kwargs["policy"], "config", None)
        if isinstance(config, JointMotionConfig):
            _draw_nothing(config)
            check_robot(
                config,
                kwargs["ordered_action_keys"],
                kwargs["hw_features"],
                _rename_map(kwargs["preprocessor"].steps),
            )
        return create(*args, **kwargs)

    check_and_create.checks_robot = True  # type: ignore[attr-defined]
    context.create_inference_engine = check_and_create  # type: ignore[union-attr]


def _draw_nothing(config: JointMotionConfig) -> None:
    """LeRobot has no place for predicted video here; it would cost time, and memory without end."""
    if config.save_predicted_video:
        config.save_predicted_video = False
        logger.warning(
            "save_predicted_video=true is for lerobot-eval; lerobot-rollout has no place for the "
            "video, and drives without it."
        )


def check_robot(
    config: JointMotionConfig,
    action_keys: Collection[str],
    observations: Mapping[str, Mapping[str, Any]],
    rename_map: Mapping[str, str],
) -> None:
    """Compare a robot with what a checkpoint was trained on.

    Args:
        config: The checkpoint's configuration.
        action_keys: Names of the robot's actions.
        observations: The robot's observations as LeRobot's dataset features: `shape` and `names`.
        rename_map: The policy's names of the robot's observations.

    Raises:
        ValueError: If the sizes of action or state differ, or no camera is the checkpoint's. A part
            of the cameras is enough for pi0, and a warning.
    """
    state = observations.get(OBS_STATE, {}).get("names") or []
    _compare("actions", config.output_features.get(ACTION), action_keys)
    _compare("values of state", config.input_features.get(OBS_STATE), state)
    wanted = [key for key in config.image_features if not key.startswith(EMPTY_CAMERA)]
    given = {rename_map.get(key, key) for key in observations if key.startswith(OBS_IMAGES)}
    missing = [key for key in wanted if key not in given]
    if not missing:
        return
    difference = (
        f"The checkpoint was trained with the cameras {', '.join(wanted)}; the robot gives "
        f"{', '.join(sorted(given)) or 'none'}"
    )
    if len(missing) == len(wanted):
        raise ValueError(
            f"{difference}. Name the robot's cameras so, or --rename_map='{{\"<robot's>\": "
            f'"{missing[0]}"}}\'.'
        )
    logger.warning(
        "%s. It drives without %s, which pi0 takes for a camera that is not there: expect less of "
        "it than in its training.",
        difference,
        ", ".join(missing),
    )


def _compare(what: str, feature: Any, names: Collection[str]) -> None:
    """Raise if the checkpoint's feature has another size than the robot's."""
    if feature is not None and feature.shape[0] != len(names):
        raise ValueError(
            f"The checkpoint was trained on {feature.shape[0]} {what}, the robot has {len(names)} "
            f"({', '.join(names)}). Nothing was sent to it. Use the checkpoint of this robot."
        )


def _rename_map(steps: Collection[Any]) -> dict[str, str]:
    """The renaming that a preprocessor does."""
    return {
        old: new
        for step in steps
        if isinstance(step, RenameObservationsProcessorStep)
        for old, new in step.rename_map.items()
    }
