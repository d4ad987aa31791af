"""Targets read from a latent store against targets made on the fly, frame by frame."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lerobot.datasets import LeRobotDataset, LeRobotDatasetMetadata
from lerobot.datasets.factory import resolve_delta_timestamps
from lerobot.datasets.video_utils import _default_decoder_cache
from lerobot.policies.factory import make_policy, make_pre_post_processors
from tiny import shared_file, write_dataset
from torch import Tensor
from torch.utils.data import DataLoader

from lerobot_motion.cli.precompute import main
from lerobot_motion.joint.configuration import JointMotionConfig
from lerobot_motion.motion_pi0.configuration_motion_pi0 import MotionPi0Config
from lerobot_motion.steps import MOTION_LATENT, MOTION_VALID
from lerobot_motion.training.train_run import TrainRun

Targets = dict[int, tuple[Tensor, bool]]


def train_config(episodes: tuple[int, ...] | None, **settings: Any) -> JointMotionConfig:
    """Configuration of a tiny policy in a run."""
    config = MotionPi0Config(backbone="tiny", device="cpu", push_to_hub=False, **settings)
    config.enter_run(TrainRun(num_steps=10, episodes=episodes))
    return config


def targets(
    root: Path, episodes: tuple[int, ...] | None, num_epochs: int = 1, **settings: Any
) -> Targets:
    """Targets by the frame's index, as training sees them: shuffled, from loader processes."""
    config = train_config(episodes, **settings)
    meta = LeRobotDatasetMetadata("tests/data", root=root)
    make_policy(config, ds_meta=meta)
    preprocessor, _ = make_pre_post_processors(config, dataset_stats=meta.stats)
    dataset = LeRobotDataset(
        "tests/data",
        root=root,
        episodes=None if episodes is None else list(episodes),
        delta_timestamps=resolve_delta_timestamps(config, meta),
    )
    # Forked loader processes cannot use a decoder that this process has opened.
    _default_decoder_cache.clear()
    found: Targets = {}
    for epoch in range(num_epochs):
        order = torch.Generator().manual_seed(epoch)
        loader = DataLoader(dataset, batch_size=7, shuffle=True, num_workers=2, generator=order)
        for batch in loader:
            processed = preprocessor(batch)
            rows = zip(
                batch["index"].tolist(),
                processed[MOTION_LATENT],
                processed[MOTION_VALID].tolist(),
                strict=True,
            )
            for index, latent, valid in rows:
                if index in found:
                    assert torch.equal(found[index][0], latent)
                found[index] = (latent, valid)
    return found


def assert_same(stored: Targets, made: Targets) -> None:
    """Equal within half precision, whose spacing is a 1024th of a value."""
    assert stored.keys() == made.keys()
    for index, (latent, valid) in made.items():
        assert stored[index][1] == valid
        torch.testing.assert_close(stored[index][0], latent, rtol=2**-10, atol=2**-10)
    assert any(latent.abs().max() > 1 for latent, _ in made.values())
    assert not all(valid for _, valid in made.values())


@pytest.mark.parametrize("use_videos", [True, False])
def test_every_frame_has_the_target_that_it_would_have_on_the_fly(
    tmp_path: Path, use_videos: bool
) -> None:
    root = write_dataset(
        tmp_path / "dataset", num_episodes=3, num_frames=12, size=(48, 80), use_videos=use_videos
    )
    settings = {"chunk_size": 5, "n_action_steps": 5, "flow_max_magnitude": 8.0}
    flags = ["--horizon=5", "--flow_estimator=dis", "--vae=pool", "--flow_max_magnitude=8"]
    where = ["--dataset.repo_id=tests/data", f"--dataset.root={root}", "--shard_frames=12"]
    assert main([*where, *flags, "--num_workers=0"]) == 0

    stored = targets(root, None, num_epochs=2, motion_latents="auto", **settings)

    assert_same(stored, targets(root, None, **settings))
    assert len(stored) == 36


def test_of_real_recordings_too(tmp_path: Path) -> None:
    """One episode out of the middle of the dataset: its first frame is not index 0."""
    root = shared_file("data/g1_bottle")
    store = tmp_path / "store"
    where = ["--dataset.repo_id=tests/data", f"--dataset.root={root}", "--dataset.episodes=[2]"]
    flags = ["--flow_estimator=dis", "--vae=pool", f"--output={store}", "--num_workers=0"]
    assert main([*where, *flags]) == 0
    settings = {"chunk_size": 30, "n_action_steps": 30}

    stored = targets(root, (2,), motion_latents=str(store), **settings)

    assert_same(stored, targets(root, (2,), **settings))
    assert min(stored) > 0
