"""Motion targets in batches: the pieces of `MotionTargetStep`, arranged for a whole dataset."""

import copy
import logging
import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TypeVar

import torch
from einops import rearrange
from torch import Tensor, nn

from lerobot_motion.extraction.statistics import count_magnitudes
from lerobot_motion.flow.estimator import FlowEstimator, RaftEstimator, load_flow_estimator
from lerobot_motion.flow.letterbox import content_mask, letterbox
from lerobot_motion.latent_store import StoreSettings
from lerobot_motion.models.latent_codec import AutoencoderCodec, LatentCodec, load_latent_codec
from lerobot_motion.motion_target import FramePairs, target_image

logger = logging.getLogger(__name__)

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class Compute:
    """How targets are computed; what they are stands in `StoreSettings`.

    Attributes:
        flow_weights: Local weights of the flow estimator, or None for its own.
        device: Device of the networks.
        batch_size: Pairs of frames at once.
        num_workers: Processes that decode.
        channels_last: Let the networks work on channels-last tensors.
        compile: Compile the networks with `torch.compile`.
    """

    flow_weights: str | None
    device: str
    batch_size: int
    num_workers: int
    channels_last: bool = False
    compile: bool = False


def usable_device(name: str | None) -> str:
    """Choose a device; one of several GPUs becomes this process's own.

    What asks for no GPU by number, such as page-locked memory, then leaves the first one alone.

    Args:
        name: The device that was asked for, or None for cuda if there is one, else cpu.

    Raises:
        ValueError: If it is not there.
    """
    device = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        if torch.device(device).type == "cuda" and torch.device(device).index is not None:
            torch.cuda.set_device(device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"device {device!r} cannot be used ({error}). Try --device=cpu."
        ) from error
    return device


@dataclass(frozen=True)
class Motion:
    """How the pairs of a batch move, on the device that estimated it.

    Attributes:
        mean_magnitude: Mean displacement over the camera's pixels, (B,).
        max_magnitude: Largest displacement, (B,).
        clipped: Share of pixels that move farther than what is drawn at full saturation, (B,).
        histogram: Counts of displacements over the batch, (2049,); see `count_magnitudes`.
    """

    mean_magnitude: Tensor
    max_magnitude: Tensor
    clipped: Tensor
    histogram: Tensor


@dataclass(frozen=True)
class Targets:
    """Targets of a batch, on the device that made them.

    Attributes:
        latent: Latents, (B, C, h, w), float16.
        finite: Whether latent and flow of each pair are finite, (B,).
        motion: How the pairs move, or None where the target is not drawn from flow.
    """

    latent: Tensor
    finite: Tensor
    motion: Motion | None


class TargetMaker:
    """Makes the targets of a store.

    Nothing here waits for a GPU; torchvision's RAFT does, 14 times a batch, to copy its grids.
    """

    def __init__(self, settings: StoreSettings, compute: Compute) -> None:
        """Note what to make; the networks are loaded when first used.

        Args:
            settings: What the targets are.
            compute: How they are computed.

        Raises:
            ValueError: If a setting is unknown.
        """
        self.settings = settings
        self.compute = compute
        self.target = target_image(settings.motion_target)
        self.device = torch.device(compute.device)

    @cached_property
    def estimator(self) -> FlowEstimator:
        """The flow estimator; loaded when first used.

        Raises:
            ValueError: If the targets are not drawn from flow, or weights are of another model.
            OSError: If weights cannot be read.
        """
        name, precision = self.settings.flow_estimator, self.settings.flow_precision
        if name is None or precision is None:
            raise ValueError(f"targets of {self.settings.motion_target} are not drawn from flow.")
        estimator = load_flow_estimator(name, self.compute.flow_weights, self.compute.device)
        if not isinstance(estimator, RaftEstimator):
            return estimator
        tuned = RaftEstimator(self._own(estimator.model), estimator.num_updates, precision)
        if self.compute.compile:
            tuned.compile()
        return tuned

    @cached_property
    def codec(self) -> LatentCodec:
        """The latent codec; loaded when first used."""
        codec = load_latent_codec(self.settings.vae, self.compute.device)
        if not isinstance(codec, AutoencoderCodec):
            return codec
        tuned = copy.copy(codec)
        tuned.autoencoder = self._own(codec.autoencoder)
        if self.compute.compile:
            tuned.autoencoder.encoder.compile()
        return tuned

    def _own(self, module: Module) -> Module:
        """A network that may be changed: the loaded one is shared and stays as it is."""
        if not (self.compute.channels_last or self.compute.compile):
            return module
        own = copy.deepcopy(module)
        if self.compute.channels_last:
            own.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return own

    def prepare(self, frames: Tensor) -> Tensor:
        """Move frames to the device and letterbox them.

        Args:
            frames: Frames as recorded, (N, 3, H, W), uint8.

        Returns:
            Frames in [0, 1], (N, 3, height, width), float32.
        """
        return letterbox(frames.to(self.device, non_blocking=True), self.settings.image_resolution)

    def pairs(self, first: Tensor, second: Tensor, camera_size: tuple[int, int]) -> FramePairs:
        """Put frames together, from which targets are drawn; see `flow` for the arguments."""
        return FramePairs(
            first,
            second,
            camera_size,
            estimate=lambda *frames: self.estimator.estimate(*frames),
            max_magnitude=self.settings.flow_max_magnitude,
        )

    @torch.no_grad()
    def flow(self, first: Tensor, second: Tensor, camera_size: tuple[int, int]) -> Tensor:
        """Estimate the flow of pairs, zero on the letterbox's padding.

        Args:
            first: Letterboxed frames, (B, 3, height, width).
            second: The frames a horizon later, same shape.
            camera_size: Height and width of the frames as recorded, in pixels.

        Returns:
            Flow in pixels, (B, 2, height, width); not checked for being finite.
        """
        return self.pairs(first, second, camera_size).flow

    @torch.no_grad()
    def make(self, first: Tensor, second: Tensor, camera_size: tuple[int, int]) -> Targets:
        """Make the targets of pairs; see `flow` for the arguments."""
        num_pairs = len(first)
        if self.compute.compile:  # batches of one size
            rows = torch.arange(self.compute.batch_size, device=first.device)
            rows = rows.clamp(max=num_pairs - 1)
            first, second = first[rows], second[rows]
        pairs = self.pairs(first, second, camera_size)
        latent = self.codec.encode(self.target.images(pairs))[:num_pairs]
        finite = latent.flatten(1).isfinite().all(dim=1)
        motion = None
        if self.target.needs_flow:
            flow = pairs.flow[:num_pairs]
            finite = finite & flow.flatten(1).isfinite().all(dim=1)
            motion = self._motion(flow, camera_size)
        return Targets(latent=latent.half(), finite=finite, motion=motion)

    def _motion(self, flow: Tensor, camera_size: tuple[int, int]) -> Motion:
        magnitude = self.magnitude(flow, camera_size).nan_to_num()
        scale = self.settings.flow_max_magnitude
        return Motion(
            mean_magnitude=magnitude.mean(dim=1),
            max_magnitude=magnitude.amax(dim=1),
            clipped=(magnitude > (math.inf if scale is None else scale)).float().mean(dim=1),
            histogram=count_magnitudes(magnitude),
        )

    def magnitude(self, flow: Tensor, camera_size: tuple[int, int]) -> Tensor:
        """Displacement of the camera's pixels: (B, 2, height, width) -> (B, P), in pixels."""
        content = _content(camera_size, self.settings.image_resolution, str(self.device))
        length = torch.hypot(flow[:, 0], flow[:, 1])
        return rearrange(length, "b h w -> b (h w)")[:, content]


@lru_cache(maxsize=4)
def _content(camera_size: tuple[int, int], resolution: tuple[int, int], device: str) -> Tensor:
    """Positions of the camera's pixels in the flat letterboxed image, (P,)."""
    return content_mask(camera_size, resolution).flatten().nonzero().flatten().to(device)
