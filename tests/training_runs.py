"""Runs of `lerobot-train` as far as tests need them that start none."""

from pathlib import Path
from typing import Any

from lerobot.configs.default import DatasetConfig
from lerobot.configs.train import TrainPipelineConfig
from lerobot.utils.constants import (
    OPTIMIZER_PARAM_GROUPS,
    OPTIMIZER_STATE,
    RNG_STATE,
    SCHEDULER_STATE,
    TRAINING_STEP,
)
from tiny import make_motion_config

# What a run's state is read from.
STATE_FILES = (TRAINING_STEP, RNG_STATE, OPTIMIZER_STATE, OPTIMIZER_PARAM_GROUPS, SCHEDULER_STATE)


def make_run(policy: Any, output_dir: Path, **settings: Any) -> TrainPipelineConfig:
    """A run that trains a policy on a dataset that need not exist."""
    return TrainPipelineConfig(
        dataset=DatasetConfig(repo_id="user/cubes"),
        policy=policy.config,
        output_dir=output_dir,
        steps=10,
        **settings,
    )


def write_checkpoint(path: Path, **settings: Any) -> Path:
    """A run's checkpoint as far as its files are looked at: settings, and names of the state."""
    (path / "pretrained_model").mkdir(parents=True)
    (path / "training_state").mkdir()
    for name in STATE_FILES:
        (path / "training_state" / name).touch()
    make_motion_config(**settings).save_pretrained(path / "pretrained_model")
    return path
