"""Settings of a store, from what a user asks for and what the networks are."""

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from lerobot_motion.dataset_identity import dataset_identity
from lerobot_motion.extraction.decoding import decode_ahead
from lerobot_motion.extraction.plan import episode_runs
from lerobot_motion.extraction.recordings import Clip, Recordings
from lerobot_motion.extraction.statistics import count_magnitudes, percentile, sum_histograms
from lerobot_motion.extraction.targets import Compute, TargetMaker
from lerobot_motion.flow.estimator import (
    PRECISIONS,
    RaftEstimator,
    check_estimator_name,
    check_resolution,
    load_flow_estimator,
)
from lerobot_motion.flow.letterbox import check_image_resolution
from lerobot_motion.flow.motion_image import check_max_magnitude
from lerobot_motion.latent_store import StoreSettings, tensors_sha256
from lerobot_motion.models.latent_codec import latent_codec_sha256, load_latent_codec
from lerobot_motion.motion_target import target_image

logger = logging.getLogger(__name__)

# The first pass that chooses a scale: this many episodes, and pairs in each.
_SAMPLED_EPISODES = 8
_SAMPLED_PAIRS = 20


@dataclass(frozen=True)
class TargetOptions:
    """What a user asks of the targets.

    Attributes:
        horizon: Frames from an observation to its future frame.
        image_resolution: Height and width to which frames are letterboxed, in pixels.
        flow_estimator: Name of the flow estimator.
        flow_max_magnitude: Displacement drawn at full saturation, in pixels.
        vae: Name of the latent codec.
        precision: Precision of the flow estimator.
        shard_frames: Frames after which a shard ends with its episode.
        motion_target: What is drawn; where that needs no flow, the options of flow are not looked
            at.
    """

    horizon: int
    image_resolution: tuple[int, int]
    flow_estimator: str
    flow_max_magnitude: float
    vae: str
    precision: str
    shard_frames: int
    motion_target: str = "flow_image"

    def __post_init__(self) -> None:
        """Validate.

        Raises:
            ValueError: If an option is out of range or names something unknown.
        """
        if target_image(self.motion_target).needs_flow:
            self._validate_flow()
        if self.shard_frames < 1:
            raise ValueError(f"shard_frames must be at least 1, got {self.shard_frames}.")
        check_image_resolution(self.image_resolution)

    def _validate_flow(self) -> None:
        check_estimator_name(self.flow_estimator)
        check_max_magnitude(self.flow_max_magnitude)
        check_resolution(self.flow_estimator, self.image_resolution)
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {PRECISIONS}, got {self.precision!r}.")
        if self.flow_estimator == "dis" and self.precision != "float32":
            raise ValueError(f"flow_estimator=dis has no precision, got {self.precision!r}.")


def store_settings(
    recordings: Recordings,
    episodes: list[int],
    options: TargetOptions,
    compute: Compute,
    revision: str | None = None,
) -> StoreSettings:
    """Settle what decides a store's content.

    Args:
        recordings: Where the frames come from.
        episodes: Episodes of the store, in order.
        options: What was asked for.
        compute: How the targets are computed.
        revision: Revision of the dataset that was asked for.

    Raises:
        ValueError: If options do not suit each other, or weights are of another model.
        OSError: If weights cannot be read.
    """
    # Loaded first: what the Hub sends is in the cache then, where its hash is taken.
    codec = load_latent_codec(options.vae, compute.device)
    return StoreSettings(
        dataset=dataset_identity(recordings.meta, recordings.camera, revision),
        episodes=episode_runs(episodes),
        motion_target=options.motion_target,
        camera=recordings.camera,
        horizon=options.horizon,
        image_resolution=options.image_resolution,
        vae=options.vae,
        vae_sha256=latent_codec_sha256(options.vae),
        latent_shape=codec.spec.latent_shape(options.image_resolution),
        shard_frames=options.shard_frames,
        **_flow_settings(options, compute),
    )


def _flow_settings(options: TargetOptions, compute: Compute) -> dict[str, Any]:
    """Settings of flow: of no account, and None, where nothing is drawn from it."""
    if not target_image(options.motion_target).needs_flow:
        names = ("estimator", "weights_sha256", "num_updates", "precision", "max_magnitude")
        return {"hue": None, **dict.fromkeys(f"flow_{name}" for name in names)}
    weights_sha256, num_updates = _estimator_identity(options.flow_estimator, compute)
    return {
        "flow_estimator": options.flow_estimator,
        "flow_weights_sha256": weights_sha256,
        "flow_num_updates": num_updates,
        "flow_precision": options.precision,
        "flow_max_magnitude": options.flow_max_magnitude,
    }


def _estimator_identity(name: str, compute: Compute) -> tuple[str | None, int | None]:
    """Hash of an estimator's weights and its refinements, or None if it has none."""
    estimator = load_flow_estimator(name, compute.flow_weights, compute.device)
    if not isinstance(estimator, RaftEstimator):
        return None, None
    return tensors_sha256(estimator.model.state_dict().items()), estimator.num_updates


def check_dataset(settings: StoreSettings, recordings: Recordings) -> None:
    """Check that recordings are those of a store.

    Args:
        settings: Those of the store.
        recordings: What is at hand.

    Raises:
        ValueError: If the dataset is another, or lacks the camera.
    """
    meta = recordings.meta
    if settings.camera not in meta.camera_keys:
        raise ValueError(
            f"the store is of the camera {settings.camera}; dataset {meta.repo_id} in {meta.root} "
            f"has {meta.camera_keys}."
        )
    there = dataset_identity(meta, settings.camera)
    if not settings.dataset.matches(there):
        raise ValueError(
            f"the store was made from {settings.dataset}; the dataset in {meta.root} is {there}. "
            "Name the one it was made from with --dataset.repo_id and --dataset.root; if that was "
            "edited, make the store anew."
        )


def check_networks(settings: StoreSettings, compute: Compute) -> None:
    """Check that the networks at hand are those of a store.

    Args:
        settings: Those of the store.
        compute: Where to find them.

    Raises:
        ValueError: If weights are others.
        OSError: If they cannot be read.
    """
    if settings.flow_estimator is not None:
        weights_sha256, _ = _estimator_identity(settings.flow_estimator, compute)
        if weights_sha256 != settings.flow_weights_sha256:
            here = compute.flow_weights or "those of torchvision"
            raise ValueError(
                f"the store was made with weights of {settings.flow_estimator} whose SHA-256 is "
                f"{settings.flow_weights_sha256}; {here} have {weights_sha256}. Name the right "
                "ones with --flow_weights=<file>.safetensors."
            )
    load_latent_codec(settings.vae, compute.device)
    vae_sha256 = latent_codec_sha256(settings.vae)
    if None not in (vae_sha256, settings.vae_sha256) and vae_sha256 != settings.vae_sha256:
        raise ValueError(
            f"the store was made with a VAE {settings.vae} whose SHA-256 is {settings.vae_sha256}; "
            f"that of this machine has {vae_sha256}. Fetch the one it was made with."
        )


def with_scale_of_data(
    settings: StoreSettings, recordings: Recordings, compute: Compute
) -> StoreSettings:
    """Take the scale from a sample of the store's frames: their 99.9th percentile, rounded up.

    Args:
        settings: Settings with any scale.
        recordings: Where the frames come from.
        compute: How flow is computed.

    Returns:
        The settings with the scale of the data; the same frames give the same.

    Raises:
        ValueError: If the targets are not drawn from flow, a frame cannot be decoded, or the flow
            is not finite.
        OSError: If something cannot be read.
    """
    maker = TargetMaker(settings, compute)
    clips = _sampled_clips(settings, recordings)
    recordings.fetch([clip.episode for clip in clips])
    counts, largest = [], 0.0
    for _, images in decode_ahead(recordings, lambda: clips, compute.num_workers):
        camera_size = (images.shape[-2], images.shape[-1])
        frames = maker.prepare(images)
        for start in range(0, len(frames), 2 * compute.batch_size):
            pairs = frames[start : start + 2 * compute.batch_size]
            flow = maker.flow(pairs[0::2], pairs[1::2], camera_size)
            magnitude = maker.magnitude(flow, camera_size)
            if not bool(torch.isfinite(magnitude).all()):
                raise ValueError("flow has NaN or infinite values. Check the frames and weights.")
            counts.append(count_magnitudes(magnitude))
            largest = max(largest, float(magnitude.max()))
    scale = float(max(1, math.ceil(percentile(sum_histograms(counts), 0.999, largest))))
    logger.info("flow_max_magnitude=auto: %g px, from %d clips", scale, len(clips))
    return replace(settings, flow_max_magnitude=scale)


def _sampled_clips(settings: StoreSettings, recordings: Recordings) -> list[Clip]:
    """Pairs of frames, one after the other, of episodes spread over the store."""
    horizon = settings.horizon
    lengths = {
        episode: recordings.ranges[episode][1] - recordings.ranges[episode][0]
        for first, last in settings.episodes
        for episode in range(first, last + 1)
    }
    usable = [episode for episode, length in lengths.items() if length > horizon]
    return [
        Clip(
            episode,
            tuple(
                i
                for t in spread(lengths[episode] - horizon, _SAMPLED_PAIRS)
                for i in (t, t + horizon)
            ),
        )
        for episode in (usable[i] for i in spread(len(usable), _SAMPLED_EPISODES))
    ]


def spread(length: int, number: int) -> Iterator[int]:
    """Positions spread evenly over a length, at most `number`, each once."""
    number = min(length, number)
    return ((2 * i + 1) * length // (2 * number) for i in range(number))
