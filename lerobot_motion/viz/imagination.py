"""A checkpoint that imagines the motion of a dataset's frames, and plans actions for them."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lerobot.configs import FeatureType
from lerobot.datasets import LeRobotDataset, LeRobotDatasetMetadata
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from lerobot.processor import RenameObservationsProcessorStep
from lerobot.utils.constants import ACTION
from torch import Tensor
from torch.utils.data import default_collate

from lerobot_motion.checkpoints.loading import CheckpointSource
from lerobot_motion.joint.export import merged_policy
from lerobot_motion.models.latent_codec import LatentCodec, load_latent_codec
from lerobot_motion.steps import MOTION_TARGET_STEP

logger = logging.getLogger(__name__)

_RENAME_STEP = "rename_observations_processor"


@dataclass(frozen=True)
class Predictions:
    """What a policy makes of frames.

    Attributes:
        images: What it imagines of every view, in [-1, 1], (B, V, 3, H, W).
        actions: Chunks of actions in the dataset's units, (B, T, D), or None if not asked for.
    """

    images: Tensor
    actions: Tensor | None


@dataclass(frozen=True)
class Imagination:
    """A policy with its processors, and a dataset to look at.

    Attributes:
        policy: The policy, in evaluation mode.
        preprocessor: Its preprocessing.
        postprocessor: Its postprocessing.
        dataset: Observations of `episodes`.
        starts: First item of each episode in `dataset`.
        cameras: The motion cameras without empty ones, by the dataset's names.
        num_steps: Euler steps of the imagination.
        seed: Seed of the noise. All frames of an episode start from the same noise, in whichever
            batch they are, so that nothing flickers but what the policy changes its mind about.
    """

    policy: Any
    preprocessor: Any
    postprocessor: Any
    dataset: LeRobotDataset
    starts: Mapping[int, int]
    cameras: Sequence[str]
    num_steps: int
    seed: int

    @property
    def config(self) -> Any:
        """The policy's configuration."""
        return self.policy.config

    @property
    def codec(self) -> LatentCodec:
        """The latent codec of the policy."""
        return load_latent_codec(str(self.config.motion_vae), str(self.config.device))

    def predict(
        self, episode: int, positions: Sequence[int], *, with_actions: bool = True
    ) -> Predictions:
        """Imagine and plan.

        Args:
            episode: The episode of the frames.
            positions: Their positions in it.
            with_actions: Whether to plan actions, too.

        Raises:
            ValueError: If the dataset does not suit the policy.
        """
        items = [self.dataset[self.starts[episode] + position] for position in positions]
        batch = self.preprocessor(default_collate(items))
        generator = torch.Generator().manual_seed(self.seed + episode)
        shapes = (
            self.config.motion_sample_shape,
            (self.config.chunk_size, self.config.max_action_dim),
        )
        noises = [
            torch.randn(shape, generator=generator)
            .to(self.config.device)
            .expand(len(items), *shape)
            for shape in shapes
        ]
        images = self.policy.predict_motion(batch, num_steps=self.num_steps, noise=noises[0]).cpu()
        images = self._of_seen_cameras(images)
        if not with_actions:
            return Predictions(images, None)
        # Relative actions are made absolute by the state that the preprocessor has just seen.
        actions = self.postprocessor(self.policy.predict_action_chunk(batch, noise=noises[1]))
        return Predictions(images, actions.cpu())

    def _of_seen_cameras(self, images: Tensor) -> Tensor:
        """Images of the views that have a camera, (B, V, 3, H, W)."""
        if images.ndim == 4:
            return images[:, None]
        views = set(range(images.shape[1])) - set(self.config.absent_views)
        return images[:, sorted(views)]


@dataclass(frozen=True)
class Observations:
    """What a policy is to look at.

    Attributes:
        meta: Metadata of the dataset.
        episodes: Episodes to be looked at, in order.
        rename_map: Observation keys of the dataset by the policy's names; empty for the
            checkpoint's own renaming.
        tolerance_s: By how much the time of a video frame may be off, in seconds.
        video_backend: LeRobot's video decoder, or None for its choice.
    """

    meta: LeRobotDatasetMetadata
    episodes: Sequence[int]
    rename_map: Mapping[str, str]
    tolerance_s: float = 1e-4
    video_backend: str | None = None


def load_imagination(
    source: CheckpointSource, config: Any, seen: Observations, *, num_steps: int, seed: int
) -> Imagination:
    """Load a policy and the observations that it is to look at.

    Args:
        source: The checkpoint.
        config: What `checkpoints.read_motion_config` read.
        seen: The dataset.
        num_steps: Euler steps of the imagination.
        seed: Seed of the noise.

    Raises:
        FileNotFoundError: If the checkpoint or one of its files cannot be found.
        ImportError: If the checkpoint holds adapters and peft is not installed.
        OSError: If something cannot be read.
        ValueError: If checkpoint and dataset do not fit each other.
    """
    overrides: dict[str, Any] = {
        "device_processor": {"device": config.device},
        MOTION_TARGET_STEP: config.motion_target_settings,
    }
    if seen.rename_map:
        overrides[_RENAME_STEP] = {"rename_map": dict(seen.rename_map)}
    preprocessor, postprocessor = make_pre_post_processors(
        config, pretrained_path=str(config.pretrained_path), preprocessor_overrides=overrides
    )
    names = {key: renaming_of(preprocessor).get(key, key) for key in seen.meta.features}
    motion_cameras = _check_features(config, seen.meta, names)
    policy = _load_policy(source, config)
    dataset = LeRobotDataset(
        seen.meta.repo_id,
        root=seen.meta.root,
        revision=seen.meta.revision,
        episodes=list(seen.episodes),
        tolerance_s=seen.tolerance_s,
        video_backend=seen.video_backend,
    )
    lengths = [int(seen.meta.episodes["length"][episode]) for episode in seen.episodes]
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    return Imagination(
        policy=policy,
        preprocessor=preprocessor,
        postprocessor=postprocessor,
        dataset=dataset,
        starts=dict(zip(seen.episodes, starts, strict=True)),
        cameras=motion_cameras,
        num_steps=num_steps,
        seed=seed,
    )


def _load_policy(source: CheckpointSource, config: Any) -> Any:
    policy = (
        merged_policy(source, config)
        if config.use_peft
        else get_policy_class(config.type).from_pretrained(
            source.path, config=config, **source.hub_options
        )
    )
    return policy.to(config.device).eval()


def renaming_of(preprocessor: Any) -> dict[str, str]:
    """How a pipeline renames observations: the dataset's name to the policy's.

    Args:
        preprocessor: A policy's preprocessing.
    """
    for step in preprocessor.steps:
        if isinstance(step, RenameObservationsProcessorStep):
            return dict(step.rename_map)
    return {}


def _check_features(
    config: Any, meta: LeRobotDatasetMetadata, names: Mapping[str, str]
) -> list[str]:
    """See that the dataset has what the policy needs; its own names of the motion cameras."""
    cameras: dict[str, str] = {
        names[key]: key for key in meta.camera_keys if key not in meta.depth_keys
    }
    lacking = [camera for camera in config.seen_cameras if camera not in cameras]
    if lacking:
        others = sorted(set(cameras) - set(config.seen_cameras))
        raise ValueError(
            f"the dataset {meta.repo_id} lacks {', '.join(lacking)}, the camera whose motion "
            f"{config.pretrained_path} imagines; it has the cameras {sorted(cameras)}. If one of "
            "them shows the same under another name, say so: "
            f"--rename_map='{{{next(iter(others), 'observation.images.x')}: {lacking[0]}}}'."
        )
    missing = [
        key
        for key, feature in config.input_features.items()
        if feature.type is not FeatureType.VISUAL and key not in names.values()
    ]
    if missing:
        raise ValueError(
            f"the dataset {meta.repo_id} lacks {', '.join(missing)}, which the policy reads; it "
            f"has {sorted(names.values())}."
        )
    absent = [config.motion_cameras[view] for view in config.absent_views]
    blind = [key for key in config.image_features if key not in (*cameras, *absent)]
    if blind:
        logger.warning("The dataset has no %s: the policy sees black there.", ", ".join(blind))
    expected = config.output_features[ACTION].shape
    found = tuple(meta.features.get(ACTION, {}).get("shape", expected))
    if found != tuple(expected):
        raise ValueError(
            f"the dataset {meta.repo_id} has actions of shape {found}, the policy's have "
            f"{tuple(expected)}: it was trained for another robot."
        )
    return [cameras[camera] for camera in config.seen_cameras]
