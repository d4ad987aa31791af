"""Leaving out what only fills a prefix up: cameras that are not there, tokens after every prompt.

LeRobot 0.6.1 fills every prompt up to `tokenizer_max_length`, embeds a blank image for each camera
that a batch lacks, and masks both: no other token attends to them, and they count in no position.
Without them every other token is what it was, up to the order in which sums are taken.
"""

import torch
from torch import Tensor

# Prompts are cut at multiples of it: a run then has few shapes, which an allocator can keep apart.
_GRANULE = 8


def without_padding(
    images: list[Tensor],
    image_masks: list[Tensor],
    tokens: Tensor,
    token_mask: Tensor,
    *,
    keep_tokens: bool = False,
) -> tuple[list[Tensor], list[Tensor], Tensor, Tensor]:
    """Leave out cameras that no sample has, and tokens that are padding in every sample.

    Waits for the device once, for what is there must be known before shapes are.

    Args:
        images: An image of each camera, (B, 3, H, W).
        image_masks: True where a sample has that camera, (B,) each.
        tokens: Language token ids, (B, T).
        token_mask: True where a token is not padding, (B, T).
        keep_tokens: Leave out cameras alone.

    Returns:
        The same of those that are there: images, their masks, tokens (B, L) and their mask (B, L),
        where L is the length of the longest prompt, rounded up to a multiple of eight, at most T.
    """
    *present, length = extent(image_masks, token_mask)
    there = [camera for camera, is_there in enumerate(present) if is_there]
    end = len(token_mask[0]) if keep_tokens else -(-length // _GRANULE) * _GRANULE
    return (
        [images[camera] for camera in there],
        [image_masks[camera] for camera in there],
        tokens[:, :end],
        token_mask[:, :end],
    )


def extent(image_masks: list[Tensor], token_mask: Tensor) -> list[int]:
    """What of a batch is there: for each camera 1 or 0, and the length of the longest prompt.

    Args:
        image_masks: True where a sample has that camera, (B,) each.
        token_mask: True where a token is not padding, (B, T).
    """
    places = torch.arange(1, token_mask.shape[1] + 1, device=token_mask.device)
    length = (token_mask * places).amax()
    found: list[int] = torch.stack([*(mask.any().long() for mask in image_masks), length]).tolist()
    return found
