"""The motion half of the joint objective: flow matching on motion latents."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class VelocityField(Protocol):
    """Predicts a velocity (B, C, h, w) from a noisy latent, its time (B,) and the prefix."""

    def __call__(self, x_t: Tensor, time: Tensor, prefix: Tensor, prefix_mask: Tensor) -> Tensor:
        """Predict the velocity at `x_t`."""


@dataclass(frozen=True)
class MotionTarget:
    """Targets of a batch.

    Attributes:
        latent: Latent of the motion image, (B, C, h, w).
        valid: False where the future frame lies past the episode's end, (B,).
    """

    latent: Tensor
    valid: Tensor


def motion_losses(
    field: VelocityField,
    target: MotionTarget,
    prefix: Tensor,
    prefix_mask: Tensor,
    noise: Tensor,
    time: Tensor,
) -> Tensor:
    """Flow-matching loss of every sample (arXiv 2512.18007, eq. 4).

    LeRobot's convention: t = 1 is noise and t = 0 data, so x_t = t noise + (1 - t) latent and the
    target velocity is u_t = noise - latent. (The paper's tau is 1 - t.)

    Args:
        field: The motion head.
        target: Latents and their validity.
        prefix: Prefix features of the VLM, (B, S, D).
        prefix_mask: True where a prefix token is not padding, (B, S).
        noise: Standard normal noise, (B, C, h, w).
        time: Flow-matching time, (B,).

    Returns:
        Mean squared error over the elements of each latent, (B,); exactly 0 where a target is not
        valid, with a gradient of 0.
    """
    t = time[:, None, None, None]  # (B, 1, 1, 1)
    x_t = t * noise + (1 - t) * target.latent  # (B, C, h, w)
    u_t = noise - target.latent  # (B, C, h, w)
    v_t = field(x_t, time, prefix, prefix_mask)  # (B, C, h, w)
    losses = torch.mean((u_t - v_t) ** 2, dim=(1, 2, 3))  # (B,)
    return losses * target.valid.to(losses.dtype)
