"""What a policy imagines in a rollout: a video that `lerobot-eval` writes beside the rollout's.

LeRobot 0.6.1 has a hook for world models: after every step it collects `last_predicted_latents`,
and after the rollout it hands all of them to `decode_predicted_latents`, whose frames it writes to
`videos/…/pred_episode_<batch>.mp4` at the environment's frame rate. `lerobot-rollout` has none.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from lerobot_motion.flow.letterbox import letterbox
from lerobot_motion.flow.motion_image import motion_image_to_flow
from lerobot_motion.models.latent_codec import load_latent_codec
from lerobot_motion.motion_target import target_image
from lerobot_motion.visualize import (
    PREDICTED_COLOR,
    enlarged,
    flow_arrows,
    picture_grid,
    short_name,
    to_pil,
)

if TYPE_CHECKING:
    from lerobot.policies.pretrained import PreTrainedPolicy as _Policy

    from lerobot_motion.joint.configuration import JointMotionConfig
else:
    # At run time a plain mixin, whose next class in the MRO is LeRobot's policy.
    _Policy = torch.nn.Module

# Rows that are drawn, one below the other: the views of the first environments.
MAX_DRAWN = 4
# A picture's width in pixels, at least: there is text above it.
_MIN_WIDTH = 224
_NUM_EULER_STEPS = 10
_DECODED_AT_ONCE = 16


@dataclass
class Imagined:
    """What was imagined when a chunk of actions began, and what was then seen.

    Attributes:
        latent: Motion latents, (B, C, h, w) or (B, V, C, h, w), on the CPU.
        seen: Letterboxed frames of the motion cameras at each step of the chunk, of the first
            environments, (n, V, 3, H, W), uint8; without those of empty cameras.
    """

    latent: Tensor
    seen: list[Tensor]


class PredictedVideo(_Policy):
    """Mixed into a joint policy: with `save_predicted_video` it keeps what it imagines.

    The actions are the same with and without it.
    """

    config: "JointMotionConfig"
    # LeRobot takes these after every step, and puts None in their place.
    last_predicted_latents: Tensor | None = None

    def reset(self) -> None:
        """Begin a rollout: forget what was imagined."""
        super().reset()
        self.last_predicted_latents = None
        self._imagined: list[Imagined] = []

    @torch.no_grad()
    def select_action(self, batch: dict[str, Tensor], **kwargs: Any) -> Tensor:
        """Select an action as the base policy does; if asked for, imagine motion for each chunk.

        Args:
            batch: Output of the preprocessor on observations.
            **kwargs: Passed on to LeRobot.

        Raises:
            ValueError: If a motion is to be imagined and the policy has no motion head.
            OSError: If a motion is to be imagined and the VAE cannot be read.
        """
        begins = not self._action_queue
        action: Tensor = super().select_action(batch, **kwargs)
        if self.config.save_predicted_video:
            if begins:
                self._imagined.append(Imagined(self._imagine(batch), []))
            self._imagined[-1].seen.append(self._see(batch))
            self.last_predicted_latents = rearrange(
                self._views_of(self._imagined[-1].latent), "b v c h w -> b c v h w"
            )
        return action

    def _imagine(self, batch: dict[str, Tensor]) -> Tensor:
        """Imagine, from the same noise every time, leaving the rollout's random state alone."""
        device = next(self.parameters()).device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            # Read now: an error at the end would cost the rollout. It draws random weights, too.
            load_latent_codec(str(self.config.motion_vae), str(device))
            shape = self.config.motion_sample_shape
            generator = torch.Generator().manual_seed(0)
            noise = torch.randn(1, *shape, generator=generator).to(device)
            noise = noise.expand(len(batch[self.config.seen_cameras[0]]), *shape)
            latent: Tensor = self.predict_motion_latent(batch, _NUM_EULER_STEPS, noise)
        return latent.cpu()

    def _see(self, batch: dict[str, Tensor]) -> Tensor:
        """The motion cameras of the first environments, (n, V, 3, H, W), uint8."""
        height, width = self.config.image_resolution
        cameras = self.config.seen_cameras
        num_drawn = max(1, MAX_DRAWN // len(cameras))
        views = [letterbox(batch[camera][:num_drawn], (height, width)) for camera in cameras]
        return (torch.stack(views, dim=1).clamp(0, 1) * 255).round().byte().cpu()

    def _views_of(self, latent: Tensor) -> Tensor:
        """Latents of views with a camera: (B, C, h, w) or (B, V, C, h, w) -> (B, V, C, h, w)."""
        if latent.ndim == 4:
            return latent[:, None]
        absent = self.config.absent_views
        return latent[:, [view for view in range(latent.shape[1]) if view not in absent]]

    @torch.no_grad()
    def decode_predicted_latents(self, latents: Tensor) -> Tensor:
        """Draw the rollout that ends beside what was imagined; LeRobot calls this after a rollout.

        Args:
            latents: What LeRobot collected. Not used: of a policy in PEFT's wrapper it loses all
                but the first (it assigns to the wrapper), so the policy keeps its own.

        Returns:
            A frame for every step of the rollout, (T, height, width, 3), uint8: the camera now,
            arrows over the camera at the beginning of the chunk, and the motion imagined then; a
            row for every view.

        Raises:
            ValueError: If nothing was imagined since the last reset.
        """
        del latents
        if not self._imagined:
            raise ValueError(
                "nothing was imagined since the last reset(). Set config.save_predicted_video and "
                "drive the policy with select_action."
            )
        frames: list[np.ndarray[Any, Any]] = []
        for imagined, images in zip(self._imagined, self._decode(), strict=True):
            frames += self._draw_chunk(imagined.seen, images, len(frames))
        return torch.from_numpy(np.stack(frames))

    def _decode(self) -> list[Tensor]:
        """Images of the first environments of each chunk, (n, V, 3, H, W)."""
        device = str(next(self.parameters()).device)
        codec = load_latent_codec(str(self.config.motion_vae), device)
        chunks = torch.stack(
            [
                self._views_of(imagined.latent)[: len(imagined.seen[0])]
                for imagined in self._imagined
            ]
        )
        latents = rearrange(chunks, "t b v c h w -> (t b v) c h w")
        parts = torch.split(latents, _DECODED_AT_ONCE)
        images = torch.cat([codec.decode(part.to(device)).cpu() for part in parts])
        sizes = dict(zip("tbv", chunks.shape[:3], strict=True))
        return list(rearrange(images, "(t b v) c h w -> t b v c h w", **sizes))

    def _draw_chunk(
        self, seen: list[Tensor], images: Tensor, first_step: int
    ) -> list[np.ndarray[Any, Any]]:
        """Frames of one chunk, each (height, width, 3), uint8: a row for each (n, V)."""
        target = target_image(self.config.motion_target)
        rows_of = "b v c h w -> (b v) c h w"
        starts = [_picture(frame / 255) for frame in rearrange(seen[0], rows_of)]
        images = rearrange(images, rows_of)
        scale = self.config.flow_max_magnitude if target.needs_flow else None
        if scale is not None:
            flows = motion_image_to_flow(images, scale)
            starts = [
                flow_arrows(start, flow, PREDICTED_COLOR)
                for start, flow in zip(starts, flows, strict=True)
            ]
        imagined = [_picture(image, low=-1.0) for image in images]
        titles = ["now", f"at step {first_step}", f"imagined {target.title}"]
        ahead = f"imagined at step {first_step} for {self.config.motion_horizon} steps ahead"
        cameras = self.config.seen_cameras
        whose = [
            f"environment {i}" + (f", {short_name(camera)}" if len(cameras) > 1 else "")
            for i in range(len(seen[0]))
            for camera in cameras
        ]
        frames = []
        for step, now in enumerate(seen, start=first_step):
            rows = [
                [_picture(frame / 255), *pictures]
                for frame, *pictures in zip(rearrange(now, rows_of), starts, imagined, strict=True)
            ]
            captions = [f"{one}, step {step}: {ahead}" for one in whose]
            frames.append(_even(picture_grid(rows, titles, captions, scale)))
        return frames


def _picture(image: Tensor, low: float = 0.0) -> Image.Image:
    return enlarged(to_pil(image, low), _MIN_WIDTH)


def _even(picture: Image.Image) -> np.ndarray[Any, Any]:
    """Pixels, (H, W, 3), padded to even sides: LeRobot's encoder would crop."""
    width, height = (side + side % 2 for side in picture.size)
    canvas = Image.new("RGB", (width, height), "white")
    canvas.paste(picture, (0, 0))
    return np.asarray(canvas)
