"""The policy's own letterbox, applied before flow is estimated."""

from functools import lru_cache

import torch
from lerobot.policies.common.vla_utils import resize_with_pad_torch
from torch import Tensor


def check_image_resolution(resolution: tuple[int, int]) -> None:
    """See that images can be letterboxed to a size.

    Args:
        resolution: Height and width in pixels.

    Raises:
        ValueError: If one is not positive.
    """
    height, width = resolution
    if min(height, width) < 1:
        raise ValueError(f"image_resolution must be positive, got {height}x{width}.")


def letterbox(images: Tensor, resolution: tuple[int, int]) -> Tensor:
    """Resize and pad images as pi0 does, so that flow lives in the pixels the policy sees.

    Args:
        images: (B, 3, H, W), float in [0, 1] or uint8.
        resolution: Target height and width in pixels.

    Returns:
        Images in [0, 1], (B, 3, height, width), float32.

    Raises:
        ValueError: If `images` does not have three channels.
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images must have shape (B, 3, H, W), got {tuple(images.shape)}.")
    images = images.float() / 255.0 if images.dtype == torch.uint8 else images.float()
    if tuple(images.shape[-2:]) == tuple(resolution):
        return images
    resized: Tensor = resize_with_pad_torch(images, *resolution)
    return resized


@lru_cache(maxsize=8)
def content_mask(
    image_size: tuple[int, int], resolution: tuple[int, int], device: str = "cpu"
) -> Tensor:
    """Where the letterboxed image shows the camera rather than padding.

    Args:
        image_size: Height and width of the camera's image, in pixels.
        resolution: Height and width of the letterboxed image, in pixels.
        device: Device of the mask.

    Returns:
        Mask, (height, width), bool; shared, not to be written to.
    """
    ones = torch.ones(1, 3, *image_size)
    return (letterbox(ones, resolution)[0, 0] > 0.5).to(device)
