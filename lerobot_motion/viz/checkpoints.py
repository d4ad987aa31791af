"""What a checkpoint says of itself: whether it can imagine motion, and what it did not train on."""

import json
from pathlib import Path
from typing import Any

from huggingface_hub.constants import CONFIG_NAME, SAFETENSORS_SINGLE_FILE
from lerobot.configs import PreTrainedConfig
from lerobot.configs.train import TRAIN_CONFIG_NAME
from lerobot.datasets import LeRobotDatasetMetadata
from safetensors import SafetensorError, safe_open

from lerobot_motion.checkpoints.loading import (
    MOTION_HEAD_PREFIX,
    CheckpointSource,
    read_policy_type,
)
from lerobot_motion.joint.configuration import JointMotionConfig
from lerobot_motion.motion_target import NO_TARGET
from lerobot_motion.training.episode_split import split_episodes


def read_motion_config(source: CheckpointSource, device: str) -> Any:
    """Read a checkpoint's configuration, and see that it has a motion head.

    Args:
        source: The checkpoint.
        device: Where it will run.

    Returns:
        The configuration, of a policy that draws its targets from frames.

    Raises:
        FileNotFoundError: If the checkpoint or one of its files cannot be found.
        OSError: If its weights cannot be read.
        ValueError: If it has no motion head; the message says how it came to have none.
    """
    choices = PreTrainedConfig.get_known_choices()
    types = [name for name, choice in choices.items() if issubclass(choice, JointMotionConfig)]
    read_policy_type(
        source,
        types,
        advice="A policy of LeRobot's own has no motion head; if this one was written by "
        "lerobot-motion-export, which leaves the head out, name the checkpoint that was exported.",
    )
    path = source.file(CONFIG_NAME)
    config = PreTrainedConfig.from_pretrained(str(path.parent))
    if config.motion_target == NO_TARGET:
        raise ValueError(
            f"policy.path: {source.path} has no motion head, for it was trained with "
            "motion_target=none (the base policy alone, as a control). Name a checkpoint that "
            "learned motion, or leave policy.path out to see the dataset's targets."
        )
    if not config.use_peft and not _has_motion_head(source):
        raise ValueError(
            f"policy.path: {source.path} has no motion head, for it was saved by a policy that "
            f"was loaded without it (load_motion_head={str(config.load_motion_head).lower()}). "
            "Name the checkpoint that it came from, or leave policy.path out to see the dataset's "
            "targets."
        )
    config.load_motion_head = True
    config.device = device
    # Whatever it was trained from: here the target is drawn from the frames themselves.
    config.motion_latents = None
    config.pretrained_path = path.parent
    return config


def _has_motion_head(source: CheckpointSource) -> bool:
    path = source.file(SAFETENSORS_SINGLE_FILE)
    try:
        with safe_open(path, framework="pt") as file:
            return any(key.startswith(MOTION_HEAD_PREFIX) for key in file.keys())  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise OSError(
            f"checkpoint {source.path}: {path} is not a readable safetensors file ({error}); it "
            "may be truncated. Fetch or save it again."
        ) from error


def held_out_episodes(source: CheckpointSource, meta: LeRobotDatasetMetadata) -> list[int]:
    """Episodes that the run of a checkpoint held out for validation (`--dataset.eval_split`).

    Args:
        source: The checkpoint, with the configuration of its run.
        meta: Metadata of the dataset that it was trained on.

    Raises:
        FileNotFoundError: If the checkpoint does not say how it was trained.
        ValueError: If its run held out nothing, or trained on another dataset.
    """
    run = json.loads(Path(source.file(TRAIN_CONFIG_NAME)).read_text())["dataset"]
    split = run.get("eval_split") or 0.0
    if not split:
        raise ValueError(
            f"held_out: the run of {source.path} held out no episodes (dataset.eval_split=0). Name "
            "episodes that it did not train on with --dataset.episodes."
        )
    if run["repo_id"] != meta.repo_id:
        raise ValueError(
            f"held_out: {source.path} was trained on {run['repo_id']}, not on {meta.repo_id}, of "
            "which it held out nothing. Leave --held_out away, or name that dataset."
        )
    episodes = run.get("episodes") or range(meta.total_episodes)
    _, held_out = split_episodes(meta.episodes["tasks"], episodes, split)
    return held_out
