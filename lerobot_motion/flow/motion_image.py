"""Optical flow drawn as an RGB motion image, and read back (arXiv 2512.18007, A.1).

Hue is the direction of motion, saturation its magnitude relative to a fixed scale, value is 1:
where nothing moves the image is white.
"""

import math

import torch
from torch import Tensor


def flow_to_motion_image(flow: Tensor, max_magnitude: float) -> Tensor:
    """Draw optical flow as an RGB motion image (arXiv 2512.18007, A.1).

    The scale is fixed, so equal motions get equal colours in every batch.

    Args:
        flow: Displacement in pixels, (B, 2, H, W); channel 0 points right, 1 down.
        max_magnitude: Displacement in pixels drawn at full saturation; larger ones are clipped.

    Returns:
        Motion image in [-1, 1], (B, 3, H, W).

    Raises:
        ValueError: If `flow` does not have two channels or `max_magnitude` is not positive and
            finite.
    """
    if flow.ndim != 4 or flow.shape[1] != 2:
        raise ValueError(f"flow must have shape (B, 2, H, W), got {tuple(flow.shape)}.")
    check_max_magnitude(max_magnitude)
    flow_x, flow_y = flow.float().unbind(dim=1)  # (B, H, W) each
    hue = torch.atan2(flow_y, flow_x) / (2 * math.pi) % 1.0
    saturation = (torch.hypot(flow_x, flow_y) / max_magnitude).clamp(max=1.0)
    return _hue_saturation_to_rgb(hue, saturation) * 2.0 - 1.0  # (B, 3, H, W)


def motion_image_to_flow(motion_image: Tensor, max_magnitude: float) -> Tensor:
    """Read the flow off a motion image: the inverse of `flow_to_motion_image`.

    A predicted image is not exactly of value 1. Its hue and chroma still are those of the motion,
    so saturation is read as chroma (largest minus smallest channel), which for value 1 is the same
    and for noise on white stays small.

    Args:
        motion_image: Image in [-1, 1], (B, 3, H, W); values outside are clipped.
        max_magnitude: Displacement in pixels that was drawn at full saturation.

    Returns:
        Flow in pixels, (B, 2, H, W); channel 0 points right, 1 down.

    Raises:
        ValueError: If `motion_image` does not have three channels or `max_magnitude` is not
            positive and finite.
    """
    if motion_image.ndim != 4 or motion_image.shape[1] != 3:
        raise ValueError(
            f"motion_image must have shape (B, 3, H, W), got {tuple(motion_image.shape)}."
        )
    check_max_magnitude(max_magnitude)
    rgb = (motion_image.float().clamp(-1.0, 1.0) + 1.0) / 2.0
    chroma = rgb.amax(dim=1) - rgb.amin(dim=1)  # (B, H, W)
    angle = 2 * math.pi * _hue(rgb, chroma)
    magnitude = chroma * max_magnitude
    return torch.stack([magnitude * angle.cos(), magnitude * angle.sin()], dim=1)


def check_max_magnitude(max_magnitude: float) -> None:
    """See that flow can be drawn at a scale.

    Args:
        max_magnitude: Displacement drawn at full saturation, in pixels.

    Raises:
        ValueError: If it is not positive and finite.
    """
    if not 0 < max_magnitude < math.inf:
        raise ValueError(f"flow_max_magnitude must be positive (pixels), got {max_magnitude}.")


def _hue_saturation_to_rgb(hue: Tensor, saturation: Tensor) -> Tensor:
    """HSV to RGB at value 1: channel n is 1 - s * clamp(min(k, 4 - k), 0, 1), k = n + 6h mod 6."""
    # 5, 3, 1, made where they are used: a copy from the host would have to wait for the GPU.
    offsets = torch.arange(5.0, 0.0, -2.0, device=hue.device).view(1, 3, 1, 1)
    k = (offsets + 6.0 * hue.unsqueeze(1)) % 6.0  # (B, 3, H, W)
    return 1.0 - saturation.unsqueeze(1) * torch.minimum(k, 4.0 - k).clamp(0.0, 1.0)


def _hue(rgb: Tensor, chroma: Tensor) -> Tensor:
    """Hue in [0, 1) of an RGB image, (B, 3, H, W) -> (B, H, W); 0 where there is no colour."""
    red, green, blue = rgb.unbind(dim=1)
    safe = chroma.clamp(min=torch.finfo(chroma.dtype).tiny)
    sextant = torch.where(
        green >= torch.maximum(red, blue),
        (blue - red) / safe + 2.0,
        torch.where(blue > red, (red - green) / safe + 4.0, (green - blue) / safe),
    )
    return torch.where(chroma > 0, sextant / 6.0 % 1.0, torch.zeros_like(chroma))
