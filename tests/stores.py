"""Latent stores to test with, written by hand as docs/latent_store.md describes them."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from lerobot.datasets import LeRobotDatasetMetadata
from safetensors.torch import save_file
from tiny import CAMERA

from lerobot_motion.dataset_identity import dataset_identity
from lerobot_motion.latent_store import FORMAT_VERSION, Shard, StoreSettings, file_sha256

HORIZON = 4
LATENT_SHAPE = (3, 14, 14)


def store_settings(meta: LeRobotDatasetMetadata, **changes: Any) -> StoreSettings:
    """Settings that suit a tiny policy with a horizon of `HORIZON`."""
    settings = StoreSettings(
        dataset=dataset_identity(meta, CAMERA),
        episodes=((0, meta.total_episodes - 1),),
        motion_target="flow_image",
        camera=CAMERA,
        horizon=HORIZON,
        image_resolution=(112, 112),
        flow_estimator="dis",
        flow_weights_sha256=None,
        flow_num_updates=None,
        flow_precision="float32",
        flow_max_magnitude=64.0,
        vae="pool",
        vae_sha256=None,
        latent_shape=LATENT_SHAPE,
        shard_frames=1,
    )
    return replace(settings, **changes)


def write_store(path: Path, meta: LeRobotDatasetMetadata, **changes: Any) -> Path:
    """Write a complete store, a shard for every episode.

    The latent of frame `index` is `index` in every element, and zero without a future.

    Returns:
        Its directory.
    """
    settings = store_settings(meta, **changes)
    (path / "shards").mkdir(parents=True)
    starts, ends = meta.episodes["dataset_from_index"], meta.episodes["dataset_to_index"]
    shards = []
    for first, last in settings.episodes:
        for episode in range(first, last + 1):
            index = torch.arange(starts[episode], ends[episode])
            valid = index < ends[episode] - settings.horizon
            latent = (index * valid).half()[:, None, None, None].expand(-1, *settings.latent_shape)
            shard = Shard(
                file=f"shards/{len(shards):06d}.safetensors",
                episode_from=episode,
                episode_to=episode + 1,
                index_from=starts[episode],
                index_to=ends[episode],
            )
            file = path / shard.file
            save_file({"latent": latent.contiguous(), "valid": valid}, file)
            shards.append(replace(shard, sha256=file_sha256(file)))
    manifest = {
        "format_version": FORMAT_VERSION,
        "settings": asdict(settings),
        "shards": [asdict(shard) for shard in shards],
        "statistics": {},
        "versions": {},
    }
    (path / "manifest.json").write_text(json.dumps(manifest))
    return path
