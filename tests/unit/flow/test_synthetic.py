import pytest
import torch
from torch import Tensor

from lerobot_motion.flow.synthetic import MAX_MAGNITUDE, MIN_MAGNITUDE, synthetic_flow


def _draw(batch_size: int = 64, resolution: tuple[int, int] = (64, 96), seed: int = 0) -> Tensor:
    return synthetic_flow(batch_size, resolution, torch.Generator().manual_seed(seed))


def test_shape_and_type() -> None:
    flow = _draw(batch_size=3, resolution=(40, 56))

    assert flow.shape == (3, 2, 40, 56)
    assert flow.dtype == torch.float32
    assert torch.isfinite(flow).all()


def test_a_seed_gives_the_same_scenes_and_another_seed_others() -> None:
    torch.testing.assert_close(_draw(seed=1), _draw(seed=1), rtol=0, atol=0)
    assert not torch.equal(_draw(seed=1), _draw(seed=2))


def test_magnitudes_cover_the_range() -> None:
    fastest = _draw().norm(dim=1).amax(dim=(1, 2))  # (B,)

    assert fastest.min() < 4 * MIN_MAGNITUDE
    assert fastest.max() > MAX_MAGNITUDE / 2
    # Translation at most 64 px, and a gradient of at most 0.5 of it per radius and axis.
    assert fastest.max() < 6 * MAX_MAGNITUDE


def test_directions_are_balanced() -> None:
    flow = _draw(batch_size=256)
    direction = flow / flow.norm(dim=1, keepdim=True).clamp(min=1e-3)

    assert direction.mean(dim=(0, 2, 3)).abs().max() < 0.1


def test_scenes_have_still_bars_moving_shapes_and_edges() -> None:
    flow = _draw()
    magnitude = flow.norm(dim=1)
    steps = (flow[..., 1:] - flow[..., :-1]).norm(dim=1)

    assert 0.02 < (magnitude == 0).float().mean() < 0.5
    assert (magnitude > 2.0).float().mean() > 0.1
    # Layered: nearly everywhere smooth, with edges of several pixels a pixel.
    assert (steps < 0.5).float().mean() > 0.8
    assert steps.max() > 4.0


@pytest.mark.parametrize(("batch_size", "resolution"), [(0, (8, 8)), (1, (0, 8)), (1, (8, -1))])
def test_sizes_must_be_positive(batch_size: int, resolution: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        _draw(batch_size=batch_size, resolution=resolution)
