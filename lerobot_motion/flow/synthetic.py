"""Synthetic layered motion: optical flow with known statistics, without a camera or a data set.

Scenes are made as FlyingChairs' are (Dosovitskiy et al., 2015, arXiv 1504.06852): shapes with
affine motion in front of a still or moving background. Nothing is rendered, only the flow is made.
"""

import math

import torch
from torch import Tensor

MIN_MAGNITUDE = 0.5
MAX_MAGNITUDE = 64.0

_MAX_SHAPES = 8
_SHAPE_PROBABILITY = 0.7
_MOVING_BACKGROUND = 0.5
_LETTERBOXED = 0.5
_LARGEST_BAR = 0.25  # of the frame's side
_RADII = (4.0, 90.0)  # pixels
_EDGE_WIDTHS = (0.3, 2.5)  # pixels; estimators blur the edges of motion
_WOBBLES = (0.02, 1.0)  # pixels; estimators' errors vary smoothly
_WOBBLE_PERIOD = 16  # pixels


def synthetic_flow(
    batch_size: int, resolution: tuple[int, int], generator: torch.Generator
) -> Tensor:
    """Draw the optical flow of random layered scenes.

    Shapes are ellipses to rounded boxes with wavy outlines, of 4-90 px radius whatever the
    resolution, so that a small frame is statistically a crop of a large one. Their motion is
    affine, its speed log-uniform over 0.5-64 px. Half the backgrounds move, half the frames have
    the still bars of a letterbox.

    Args:
        batch_size: Number of scenes.
        resolution: Height and width in pixels.
        generator: Source of all randomness; the flow is made on its device.

    Returns:
        Flow in pixels, (B, 2, H, W), float32; channel 0 points right, 1 down.

    Raises:
        ValueError: If `batch_size` or a side is not positive.
    """
    if batch_size < 1 or min(resolution) < 1:
        raise ValueError(
            f"batch_size and resolution must be positive, got {batch_size} and {resolution}."
        )
    grid = _pixel_grid(resolution, generator.device)
    centre = torch.tensor(resolution, device=generator.device).flip(0) / 2
    offsets = (grid - centre.view(1, 2, 1, 1)) / max(resolution)
    moving = _bernoulli(batch_size, _MOVING_BACKGROUND, generator)
    flow = _affine_flow(offsets.expand(batch_size, -1, -1, -1), generator) * moving
    for _ in range(_MAX_SHAPES):
        mask, local = _random_shape(grid, batch_size, resolution, generator)
        mask = mask * _bernoulli(batch_size, _SHAPE_PROBABILITY, generator)
        flow = torch.lerp(flow, _affine_flow(local, generator), mask)
    flow = flow + _wobble(batch_size, resolution, generator)
    return flow * _letterbox_mask(grid, batch_size, resolution, generator)


def _pixel_grid(resolution: tuple[int, int], device: torch.device) -> Tensor:
    """Coordinates x, y of the pixels' centres, (1, 2, H, W)."""
    y, x = torch.meshgrid(
        *(torch.arange(side, device=device) + 0.5 for side in resolution), indexing="ij"
    )
    return torch.stack([x, y]).unsqueeze(0)


def _uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator, device=generator.device) * (high - low) + low


def _log_uniform(
    batch_size: int, bounds: tuple[float, float], generator: torch.Generator
) -> Tensor:
    low, high = map(math.log, bounds)
    return _uniform((batch_size, 1, 1, 1), low, high, generator).exp()


def _bernoulli(batch_size: int, probability: float, generator: torch.Generator) -> Tensor:
    return (_uniform((batch_size, 1, 1, 1), 0.0, 1.0, generator) < probability).float()


def _affine_flow(offsets: Tensor, generator: torch.Generator) -> Tensor:
    """Affine flow over offsets in units of the shape's radius, (B, 2, H, W) -> (B, 2, H, W)."""
    batch_size = len(offsets)
    speed = _log_uniform(batch_size, (MIN_MAGNITUDE, MAX_MAGNITUDE), generator)
    angle = _uniform((batch_size, 1), 0.0, 2 * math.pi, generator)
    translation = torch.cat([angle.cos(), angle.sin()], dim=1).view(batch_size, 2, 1, 1)
    linear = _uniform((batch_size, 2, 2), -0.5, 0.5, generator)
    return speed * (translation + torch.einsum("bij,bjhw->bihw", linear, offsets))


def _random_shape(
    grid: Tensor, batch_size: int, resolution: tuple[int, int], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Soft mask (B, 1, H, W), and offsets (B, 2, H, W) from its centre in units of its radius."""
    radius = _log_uniform(batch_size, _RADII, generator)
    size = torch.tensor(resolution, device=grid.device).flip(0).view(1, 2, 1, 1)
    # Centres may lie outside: shapes are cut by the frame.
    centre = _uniform((batch_size, 2, 1, 1), -0.2, 1.2, generator) * size
    offsets = (grid - centre) / radius  # (B, 2, H, W)
    angle = _uniform((batch_size, 1, 1), 0.0, 2 * math.pi, generator)
    stretch = _log_uniform(batch_size, (1.0, 2.5), generator).squeeze(1)
    x, y = offsets.unbind(dim=1)
    along = (x * angle.cos() + y * angle.sin()) / stretch
    across = (y * angle.cos() - x * angle.sin()) * stretch
    waves = _uniform((batch_size, 1, 1), 0.0, 0.3, generator)
    count = torch.randint(2, 6, (batch_size, 1, 1), generator=generator, device=grid.device)
    wavy = 1.0 + waves * torch.sin(count * torch.atan2(across, along) + angle)
    exponent = _log_uniform(batch_size, (1.5, 8.0), generator).squeeze(1)
    norm = (along.abs() ** exponent + across.abs() ** exponent + 1e-9) ** (1.0 / exponent)
    edge = _log_uniform(batch_size, _EDGE_WIDTHS, generator)
    inside = (wavy - norm).unsqueeze(1) * radius / stretch.unsqueeze(1)  # about pixels
    return torch.sigmoid(2.0 * inside / edge), offsets


def _wobble(batch_size: int, resolution: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Smooth noise, (B, 2, H, W) in pixels."""
    cells = [max(1, side // _WOBBLE_PERIOD) for side in resolution]
    noise = torch.randn(batch_size, 2, *cells, generator=generator, device=generator.device)
    smooth = torch.nn.functional.interpolate(noise, resolution, mode="bicubic")
    return smooth * _log_uniform(batch_size, _WOBBLES, generator)


def _letterbox_mask(
    grid: Tensor, batch_size: int, resolution: tuple[int, int], generator: torch.Generator
) -> Tensor:
    """0 in the bars of letterboxed frames and 1 elsewhere, (B, 1, H, W)."""
    size = torch.tensor(resolution, device=grid.device).flip(0).view(1, 2, 1, 1)
    bar = _uniform((batch_size, 1, 1, 1), 0.0, _LARGEST_BAR, generator)
    across = _bernoulli(batch_size, 0.5, generator)  # bars left and right, else top and bottom
    place = grid / size  # (1, 2, H, W) in [0, 1]
    place = across * place[:, :1] + (1.0 - across) * place[:, 1:]
    visible = ((place > bar) & (place < 1.0 - bar)).float()
    return torch.where(_bernoulli(batch_size, _LETTERBOXED, generator) > 0, visible, 1.0)
