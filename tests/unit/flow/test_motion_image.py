import math

import pytest
import torch
from torch import Tensor

from lerobot_motion.flow.motion_image import flow_to_motion_image, motion_image_to_flow

SCALE = 64.0


def constant_flow(x: float, y: float) -> Tensor:
    return torch.tensor([x, y]).view(1, 2, 1, 1).expand(1, 2, 4, 5)


def random_flow(largest: float, seed: int = 0) -> Tensor:
    """Flow in all directions with magnitudes up to `largest` pixels."""
    generator = torch.Generator().manual_seed(seed)
    angle = 2 * math.pi * torch.rand(3, 16, 16, generator=generator)
    magnitude = largest * torch.rand(3, 16, 16, generator=generator)
    return torch.stack([magnitude * angle.cos(), magnitude * angle.sin()], dim=1)


@pytest.mark.parametrize("scale", [1.0, 20.0, 64.0])
def test_flow_survives_the_round_trip(scale: float) -> None:
    flow = random_flow(largest=scale)

    image = flow_to_motion_image(flow, scale)
    back = motion_image_to_flow(image, scale)

    assert image.shape == (3, 3, 16, 16)
    assert image.dtype == back.dtype == torch.float32
    torch.testing.assert_close(back, flow, rtol=0, atol=1e-4 * scale)


def test_images_survive_the_round_trip() -> None:
    image = flow_to_motion_image(random_flow(largest=SCALE, seed=3), SCALE)

    again = flow_to_motion_image(motion_image_to_flow(image, SCALE), SCALE)

    torch.testing.assert_close(again, image, rtol=0, atol=1e-4)


def test_no_motion_is_white_and_back() -> None:
    image = flow_to_motion_image(torch.zeros(2, 2, 4, 4), SCALE)

    assert torch.equal(image, torch.ones(2, 3, 4, 4))
    assert torch.equal(motion_image_to_flow(image, SCALE), torch.zeros(2, 2, 4, 4))


# Hue 0 is to the right and grows clockwise as seen on the image, whose y axis points down.
@pytest.mark.parametrize(
    ("flow", "rgb"),
    [
        ((1.0, 0.0), (1.0, -1.0, -1.0)),  # right: red
        ((0.5, math.sqrt(3) / 2), (1.0, 1.0, -1.0)),  # down and right, 60 degrees: yellow
        ((-0.5, math.sqrt(3) / 2), (-1.0, 1.0, -1.0)),  # 120 degrees: green
        ((-1.0, 0.0), (-1.0, 1.0, 1.0)),  # left: cyan
        ((-0.5, -math.sqrt(3) / 2), (-1.0, -1.0, 1.0)),  # 240 degrees: blue
        ((0.5, -math.sqrt(3) / 2), (1.0, -1.0, 1.0)),  # up and right, 300 degrees: magenta
        ((0.0, 1.0), (0.0, 1.0, -1.0)),  # down: between yellow and green
        ((0.0, -1.0), (0.0, -1.0, 1.0)),  # up: between blue and magenta
    ],
)
def test_hue_is_the_direction(flow: tuple[float, float], rgb: tuple[float, ...]) -> None:
    image = flow_to_motion_image(constant_flow(flow[0] * SCALE, flow[1] * SCALE), SCALE)

    torch.testing.assert_close(image[0, :, 2, 2], torch.tensor(rgb), rtol=0, atol=1e-5)


def test_saturation_is_the_magnitude() -> None:
    image = flow_to_motion_image(constant_flow(16.0, 0.0), SCALE)

    # A quarter of the scale: red stays 1, the others lose a quarter of the way from 1 to -1.
    torch.testing.assert_close(image[0, :, 0, 0], torch.tensor([1.0, 0.5, 0.5]))


def test_larger_motion_is_clipped_to_the_scale() -> None:
    image = flow_to_motion_image(constant_flow(0.0, 10 * SCALE), SCALE)

    assert torch.equal(image, flow_to_motion_image(constant_flow(0.0, SCALE), SCALE))
    torch.testing.assert_close(motion_image_to_flow(image, SCALE), constant_flow(0.0, SCALE))


def test_the_scale_is_the_same_in_every_batch() -> None:
    flow = random_flow(largest=20.0)

    alone = flow_to_motion_image(flow[:1], SCALE)

    assert torch.equal(flow_to_motion_image(flow, SCALE)[:1], alone)


def test_values_outside_the_image_range_are_clipped() -> None:
    image = flow_to_motion_image(random_flow(largest=SCALE), SCALE)
    overshooting = image + 5.0 * (image >= 1.0) - 5.0 * (image <= -1.0)

    assert torch.equal(
        motion_image_to_flow(overshooting, SCALE), motion_image_to_flow(image, SCALE)
    )


def test_a_gray_image_has_no_motion() -> None:
    gray = torch.full((1, 3, 4, 4), 0.2)

    assert torch.equal(motion_image_to_flow(gray, SCALE), torch.zeros(1, 2, 4, 4))


def test_half_precision_flow_is_drawn_in_single() -> None:
    flow = random_flow(largest=SCALE).half()

    torch.testing.assert_close(
        flow_to_motion_image(flow, SCALE), flow_to_motion_image(flow.float(), SCALE)
    )


@pytest.mark.parametrize("shape", [(2, 4, 4), (1, 3, 4, 4), (1, 1, 2, 4, 4)])
def test_flow_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"flow must have shape \(B, 2, H, W\), got"):
        flow_to_motion_image(torch.zeros(shape), SCALE)


@pytest.mark.parametrize("shape", [(3, 4, 4), (1, 2, 4, 4)])
def test_an_image_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"motion_image must have shape \(B, 3, H, W\), got"):
        motion_image_to_flow(torch.zeros(shape), SCALE)


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan])
def test_a_scale_that_is_not_positive_is_refused(scale: float) -> None:
    with pytest.raises(ValueError, match=r"max_magnitude must be positive \(pixels\), got"):
        flow_to_motion_image(torch.zeros(1, 2, 4, 4), scale)
    with pytest.raises(ValueError, match=r"max_magnitude must be positive \(pixels\), got"):
        motion_image_to_flow(torch.zeros(1, 3, 4, 4), scale)
