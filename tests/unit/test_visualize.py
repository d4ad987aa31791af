import numpy as np
import pytest
import torch
from PIL import Image

from lerobot_motion.flow.estimator import load_flow_estimator
from lerobot_motion.visualize import (
    color_wheel,
    enlarged,
    flow_arrows,
    picture_grid,
    text_font,
    text_that_fits,
    to_pil,
)


def test_to_pil_maps_the_ends_of_the_range():
    image = torch.tensor([-1.0, 0.0, 1.0]).view(3, 1, 1).expand(3, 4, 5)
    assert to_pil(image, low=-1.0).size == (5, 4)
    assert to_pil(image, low=-1.0).getpixel((0, 0)) == (0, 128, 255)
    assert to_pil(image).getpixel((0, 0)) == (0, 0, 255)


def test_color_wheel_shows_right_as_red_and_rest_as_white():
    wheel = color_wheel(101, max_magnitude=64.0)
    red, green, blue = wheel.getpixel((95, 50))
    assert red == 255
    assert green < 60
    assert blue < 60
    assert wheel.getpixel((50, 50)) == (255, 255, 255)
    assert wheel.getpixel((1, 1)) == (255, 255, 255)
    # Down is a quarter turn on: between green and yellow.
    red, green, blue = wheel.getpixel((50, 95))
    assert green == 255
    assert blue < red < green


def test_picture_grid_lays_out_rows_and_titles():
    picture = Image.new("RGB", (100, 80), "black")
    grid = picture_grid([[picture] * 3] * 2, ["a", "b", "c"], ["first", "second"], 64.0)
    assert grid.width > 3 * 100
    assert grid.height > 2 * 80
    black = sum(grid.getpixel((x, 24 + 24 + 40)) == (0, 0, 0) for x in range(grid.width))
    assert black == 300


def test_picture_grid_shortens_text_that_has_no_room() -> None:
    picture = Image.new("RGB", (60, 40), "white")
    grid = picture_grid(
        [[picture] * 2], ["a title that is long"] * 2, ["a long caption " * 5], None
    )
    text = np.asarray(grid.convert("L")) < 128

    assert text[:24].any()
    assert text[24:48].any()
    assert not text[:24, 8 + 60 : 8 + 60 + 8].any()  # Between the titles.
    assert not text[:48, grid.width - 8 :].any()


@pytest.mark.parametrize(
    ("width", "size"), [(112, (112, 84)), (113, (224, 168)), (300, (336, 252))]
)
def test_small_pictures_are_enlarged_by_whole_factors(width: int, size: tuple[int, int]) -> None:
    picture = Image.new("RGB", (112, 84), "gray")

    assert enlarged(picture, width).size == size


def test_picture_grid_refuses_rows_that_do_not_match_the_titles():
    picture = Image.new("RGB", (10, 10))
    with pytest.raises(ValueError, match="rows must each have 2 pictures and a caption, got"):
        picture_grid([[picture]], ["a", "b"], ["first"], 64.0)
    with pytest.raises(ValueError, match="rows must each have 1 pictures"):
        picture_grid([], ["a"], [], 64.0)


def test_arrows_point_where_things_go() -> None:
    """A square that moves to the lower right, estimated, is drawn as arrows to the lower right."""
    side, shift = 224, (24, 16)
    frames = torch.full((2, 3, side, side), 0.5)
    texture = torch.rand(3, 20, 20, generator=torch.Generator().manual_seed(0))
    square = texture.repeat_interleave(4, 1).repeat_interleave(4, 2)
    for frame, (x, y) in zip(frames, [(60, 60), (60 + shift[0], 60 + shift[1])], strict=True):
        frame[:, y : y + 80, x : x + 80] = square
    flow = load_flow_estimator("dis", None)(frames[:1], frames[1:])[0]

    drawn = flow_arrows(Image.new("RGB", (side, side), "white"), flow, (255, 0, 0), width=1.5)

    # Ink lies between the square and where it goes, but for the estimate's blurred edges.
    y, x = (torch.tensor(np.asarray(drawn))[..., 1] < 128).nonzero().T
    blur = 16
    assert len(x) > 500
    for ink, moved in ((x, shift[0]), (y, shift[1])):
        assert 60 - blur / 2 < ink.min() < 60 + blur
        assert 140 + moved - blur < ink.max() < 140 + moved + 1.5 * blur


@pytest.mark.parametrize(("dx", "dy"), [(20, 0), (0, 20), (-20, 0), (0, -20), (14, -14)])
def test_the_head_of_an_arrow_is_where_things_arrive(dx: float, dy: float) -> None:
    flow = torch.zeros(2, 112, 112)
    flow[:, 48:56, 48:56] = torch.tensor([dx, dy]).view(2, 1, 1)

    drawn = flow_arrows(Image.new("RGB", (224, 224), "white"), flow, (255, 0, 0), width=2)

    # Twice the size: the arrow leads from (104, 104) to (104 + 2 dx, 104 + 2 dy).
    tip = drawn.getpixel((round(104 + 1.8 * dx), round(104 + 1.8 * dy)))
    beyond = drawn.getpixel((round(104 + 2.4 * dx), round(104 + 2.4 * dy)))
    assert tip[0] > 200
    assert tip[1] < 120
    assert beyond == (255, 255, 255)
    ink = (torch.tensor(np.asarray(drawn))[..., 1] < 128).float()
    y, x = ink.nonzero().float().T
    # The head is heavier than the tail: the middle of the ink lies beyond the middle of the line.
    assert ((x.mean() - 104) * dx + (y.mean() - 104) * dy) > dx**2 + dy**2


def test_what_is_still_has_no_arrow() -> None:
    picture = Image.new("RGB", (224, 224), "white")

    drawn = flow_arrows(picture, torch.full((2, 224, 224), 0.7), (255, 0, 0))

    assert drawn.getextrema() == ((255, 255),) * 3


def test_text_is_shortened_to_its_room() -> None:
    font = text_font(14)

    assert text_that_fits("left_arm", 200, font) == "left_arm"
    short = text_that_fits("left_arm_forearm_roll", 60, font)
    assert short.startswith("left")
    assert short.endswith("...")
    assert font.getlength(short) <= 60
