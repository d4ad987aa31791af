"""Processor steps: thin shells that put flow estimation and the codec into LeRobot's pipelines."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from lerobot.configs import PipelineFeatureType, PolicyFeature
from lerobot.lerobot_types import EnvTransition, TransitionKey
from lerobot.processor import ProcessorStep, ProcessorStepRegistry, TokenizerProcessorStep
from lerobot.utils.constants import OBS_IMAGES, OBS_PREFIX
from torch import Tensor
from transformers import ByT5Tokenizer

from lerobot_motion.flow.estimator import load_flow_estimator
from lerobot_motion.flow.letterbox import letterbox
from lerobot_motion.latent_store import open_latent_store
from lerobot_motion.models.latent_codec import load_latent_codec
from lerobot_motion.motion_target import FramePairs, target_image

MOTION_LATENT = "motion_latent"
MOTION_VALID = "motion_valid"
MOTION_TARGET_STEP = "motion_target_processor"
BYTE_TOKENIZER = "bytes"
# LeRobot's names of cameras that a policy has a place for and no dataset has (empty_cameras).
EMPTY_CAMERA = f"{OBS_IMAGES}.empty_camera_"
# LeRobot's suffix of the flags that say which frames of a key lie past the episode's end.
IS_PAD = "_is_pad"
# Memory for kept targets: 110,000 frames at 3 x 28 x 28.
KEPT_BYTES = 2**30

Features = dict[PipelineFeatureType, dict[str, PolicyFeature]]
# Latents (B, C, h, w) and validity (B,).
Targets = tuple[Tensor, Tensor]


@ProcessorStepRegistry.register(name=MOTION_TARGET_STEP)
@dataclass
class MotionTargetStep(ProcessorStep):
    """Turns the stacked frames of a training batch into motion latents (arXiv 2512.18007, 3.1).

    In training every observation arrives as (B, 2, ...): now, and the motion horizon later. The
    step keeps the first for pi0 and makes the target from both frames of the motion camera. In
    evaluation there is no second frame: the batch passes untouched and no network is loaded.

    Attributes:
        camera: Observation key of the motion camera; of several views a list of them. LeRobot's
            empty cameras have a place among these, and no targets.
        flow_estimator: Name of the flow estimator.
        flow_weights: Local weights of the flow estimator, or None for its own.
        max_magnitude: Displacement drawn at full saturation, in pixels.
        vae: Name of the latent codec.
        latent_shape: Channels, height and width that the motion head expects.
        image_resolution: Height and width in which flow is estimated, in pixels.
        latents: Directory of a latent store to read the targets from, or None to make them; of
            several views a list, with the store of each camera and None for an empty one.
        motion_target: What is drawn of two frames, a name of `motion_target.MOTION_TARGETS`.
    """

    camera: list[str] | str
    flow_estimator: str
    flow_weights: str | None
    max_magnitude: float
    vae: str
    latent_shape: list[int]
    image_resolution: list[int]
    latents: list[str | None] | str | None = None
    # Pipelines that were saved before there was a choice do not name it.
    motion_target: str = "flow_image"

    def __post_init__(self) -> None:
        """Start without kept targets; `keep_targets` changes that.

        Raises:
            ValueError: If the target is unknown, or there is not a store for each camera.
        """
        self._target = target_image(self.motion_target)
        self._kept: dict[tuple[str, int], Tensor] | None = None
        self.cameras = [self.camera] if isinstance(self.camera, str) else self.camera
        self._stores = self.latents if isinstance(self.latents, list) else [self.latents]
        if self.latents is not None and len(self._stores) != len(self.cameras):
            raise ValueError(
                f"latents must have a store for each of the cameras {self.cameras}, got "
                f"{self.latents}."
            )

    def keep_targets(self) -> None:
        """Keep the latents of frames, by camera and the dataset's `index`, and make none twice.

        Only where a frame always looks the same: not under random image transforms. Up to
        `KEPT_BYTES` are kept, in the memory of the host.
        """
        self._kept = {}

    def __call__(self, transition: EnvTransition) -> EnvTransition:
        """Unstack the observations and add the targets to the complementary data.

        Args:
            transition: Observations (B, 2, ...) with their `_is_pad` flags (B, 2), or, in
                evaluation or with a latent store, (B, ...) without flags.

        Returns:
            The transition with observations (B, ...), `motion_latent` (B, C, h, w) and
            `motion_valid` (B,): False where the future frame lies past the episode's end, whose
            latent is zero. Of several views they are (B, V, C, h, w) and (B, V), False also for an
            empty camera.

        Raises:
            ValueError: If a motion camera is not in a training batch, or the frames, the flow or
                the latents are not as expected, or a frame is not in the latent store.
        """
        if self.latents is not None:
            return self._with_stored_targets(transition)
        observation = transition[TransitionKey.OBSERVATION]
        is_pad = {k: v for k, v in (observation or {}).items() if k.endswith(IS_PAD)}
        if not is_pad:
            return transition
        valid = ~torch.stack([pad[:, 1] for pad in is_pad.values()]).any(dim=0)
        stacked = {key.removesuffix(IS_PAD) for key in is_pad}
        complementary = transition[TransitionKey.COMPLEMENTARY_DATA] or {}
        index = complementary.get("index")
        latent, is_valid = _side_by_side(
            None
            if camera.startswith(EMPTY_CAMERA) and camera not in observation
            else self._make_targets(observation, camera, valid, index)
            for camera in self.cameras
        )
        return {
            **transition,
            TransitionKey.OBSERVATION: {
                key: value[:, 0] if key in stacked else value
                for key, value in observation.items()
                if key not in is_pad
            },
            TransitionKey.COMPLEMENTARY_DATA: {
                **{key: value for key, value in complementary.items() if not _is_flag(key)},
                MOTION_LATENT: latent,
                MOTION_VALID: is_valid,
            },
        }

    def _with_stored_targets(self, transition: EnvTransition) -> EnvTransition:
        """Targets by the dataset's `index`, which only frames of a dataset have."""
        complementary = transition[TransitionKey.COMPLEMENTARY_DATA] or {}
        index = complementary.get("index")
        if index is None:
            return transition
        latent, valid = _side_by_side(
            None if store is None else open_latent_store(store).read(index)
            for store in self._stores
        )
        return {
            **transition,
            TransitionKey.COMPLEMENTARY_DATA: {
                **complementary,
                MOTION_LATENT: latent.to(index.device),
                MOTION_VALID: valid.to(index.device),
            },
        }

    def _make_targets(
        self, observation: dict[str, Tensor], camera: str, valid: Tensor, index: Tensor | None
    ) -> Targets:
        frames = observation.get(camera)
        if frames is None:
            cameras = [key for key, value in observation.items() if value.ndim == 5]
            raise ValueError(
                f"motion_camera {camera!r} is not in the batch, which has the cameras "
                f"{cameras}. Set --policy.motion_camera or --rename_map."
            )
        if frames.ndim != 5 or frames.shape[1] != 2:
            raise ValueError(
                f"{camera} must hold two frames, (B, 2, 3, H, W), got {tuple(frames.shape)}."
            )
        return self._motion_latents(frames, valid, index, camera), valid.to(frames.device)

    def _motion_latents(
        self, frames: Tensor, valid: Tensor, index: Tensor | None, camera: str
    ) -> Tensor:
        """Targets of a camera: (B, 2, 3, H, W), (B,) and (B,) -> (B, C, h, w)."""
        latents = torch.zeros(len(frames), *self.latent_shape, device=frames.device)
        rows = [row for row, is_valid in enumerate(valid.tolist()) if is_valid]
        if self._kept is None or index is None:
            if rows:
                latents[rows] = self._encode(frames[rows])
            return latents
        keys = [(camera, i) for i in index.flatten().tolist()]
        known = [row for row in rows if keys[row] in self._kept]
        new = [row for row in rows if keys[row] not in self._kept]
        # One copy each way, not one for each row: a GPU is waited for every time.
        if known:
            kept = torch.stack([self._kept[keys[row]] for row in known])
            latents[known] = kept.to(latents.device)
        if new:
            latents[new] = made = self._encode(frames[new])
            for row, latent in zip(new, made.cpu(), strict=True):
                if len(self._kept) < KEPT_BYTES // latent.nbytes:
                    self._kept[keys[row]] = latent
        return latents

    def _encode(self, frames: Tensor) -> Tensor:
        """Latents of what is drawn of two frames: (N, 2, 3, H, W) -> (N, C, h, w)."""
        codec = load_latent_codec(self.vae, str(frames.device))
        # On a CPU one by one: the last digits of RAFT depend on the batch, and a resumed run, which
        # has no targets kept from epochs before, is to make the same ones in other batches.
        parts = torch.split(frames, 1 if frames.device.type == "cpu" else len(frames))
        encoded = torch.cat([codec.encode(self.motion_images(part)) for part in parts])
        if list(encoded.shape[1:]) != list(self.latent_shape):
            raise ValueError(
                f"motion_vae: the latents of {self.vae} have shape {tuple(encoded.shape[1:])}, but "
                f"the motion head expects {tuple(self.latent_shape)}. Use the VAE that the "
                "checkpoint was trained with, or train a new motion head."
            )
        return encoded

    @torch.no_grad()
    def motion_images(self, frames: Tensor) -> Tensor:
        """Draw what the motion head learns of two frames.

        Args:
            frames: Frames in [0, 1] or uint8, (B, 2, 3, H, W).

        Returns:
            Images in [-1, 1], (B, 3, height, width); of a motion image, the letterbox's padding is
            white.
        """
        resolution = (self.image_resolution[0], self.image_resolution[1])
        pairs = FramePairs(
            first=letterbox(frames[:, 0], resolution),
            second=letterbox(frames[:, 1], resolution),
            camera_size=(frames.shape[-2], frames.shape[-1]),
            estimate=self._estimate_flow,
            max_magnitude=self.max_magnitude,
        )
        return self._target.images(pairs)

    def _estimate_flow(self, first: Tensor, second: Tensor) -> Tensor:
        """Flow between frames in [0, 1]: (B, 3, H, W) twice -> (B, 2, H, W), in pixels."""
        device = str(first.device)
        estimator = load_flow_estimator(self.flow_estimator, self.flow_weights, device=device)
        return estimator(first, second)

    def get_config(self) -> dict[str, Any]:
        """Settings that are saved with the pipeline."""
        return asdict(self)

    def transform_features(self, features: Features) -> Features:
        """Leave the features as they are: targets are no input of the policy."""
        return features


def _side_by_side(views: Iterable[Targets | None]) -> Targets:
    """Targets of one view as they are; of several (B, V, ...), zero and not valid where None."""
    targets = list(views)
    first = next(target for target in targets if target is not None)
    if len(targets) == 1:
        return first
    missing = (torch.zeros_like(first[0]), torch.zeros_like(first[1]))
    latents, valid = zip(*(target or missing for target in targets), strict=True)
    return torch.stack(latents, dim=1), torch.stack(valid, dim=1)


def _is_flag(key: str) -> bool:
    """Whether a key is the padding flag of an observation, under whichever name."""
    return key.startswith(OBS_PREFIX) and key.endswith(IS_PAD)


@ProcessorStepRegistry.register(name="byte_tokenizer_processor")
@dataclass
class ByteTokenizerStep(TokenizerProcessorStep):
    """Tokenizes the instruction into its UTF-8 bytes (ByT5's ids), which needs no files."""

    tokenizer: Any | None = field(default_factory=lambda: ByT5Tokenizer(extra_ids=0))

    @staticmethod
    def vocab_size() -> int:
        """Number of token ids: 256 bytes and ByT5's three special tokens."""
        return len(ByT5Tokenizer(extra_ids=0))
