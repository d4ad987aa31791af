"""Where a checkpoint comes from, told so that strangers can make sense of it."""

import json
from pathlib import Path

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from lerobot.configs.train import TRAIN_CONFIG_NAME, TrainPipelineConfig
from lerobot.utils.constants import CHECKPOINTS_DIR, PRETRAINED_MODEL_DIR


def is_hub_id(path: str) -> bool:
    """Whether a checkpoint's path is a repository's id rather than a local directory.

    Args:
        path: What `--policy.pretrained_path` or `--policy.path` was given.
    """
    try:
        validate_repo_id(path)
    except HFValidationError:
        return False
    return "/" in path and not Path(path).exists()


def checkpoint_label(path: str) -> str:
    """Name a checkpoint without the folders of the machine that it lies on.

    Args:
        path: A hub id, or a local directory such as `…/<run>/checkpoints/<step>/pretrained_model`.
    """
    if is_hub_id(path):
        return path
    parts = Path(path).resolve().parts
    if parts[-1] == PRETRAINED_MODEL_DIR and parts[-3:-2] == (CHECKPOINTS_DIR,):
        return "/".join(parts[-4:-1])
    return parts[-1]


def origin_of(run: TrainPipelineConfig | None) -> str | None:
    """The checkpoint that training began with, also if the run was stopped and resumed since.

    Args:
        run: Configuration of the run.

    Returns:
        A hub id or a local path; None for random weights, or without a run.
    """
    if run is None or run.policy is None or run.policy.pretrained_path is None:
        return None
    path, resumed = str(run.policy.pretrained_path), run.resume
    seen: set[str] = set()
    # The link `last` may by now lead to a checkpoint of this very run.
    while resumed and path not in seen:
        seen.add(path)
        # A resumed run notes the checkpoint that it went on from, whose own run noted its origin.
        try:
            before = json.loads((Path(path) / TRAIN_CONFIG_NAME).read_text())
            origin, resumed = before["policy"]["pretrained_path"], before["resume"]
        except (OSError, ValueError, LookupError, TypeError):
            return path
        if origin is None:
            return None
        path = str(origin)
    return path
