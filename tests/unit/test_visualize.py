import pytest
import torch
from PIL import Image

from lerobot_motion.visualize import color_wheel, picture_grid, to_pil


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


def test_picture_grid_refuses_rows_that_do_not_match_the_titles():
    picture = Image.new("RGB", (10, 10))
    with pytest.raises(ValueError, match="rows must each have 2 pictures and a caption, got"):
        picture_grid([[picture]], ["a", "b"], ["first"], 64.0)
    with pytest.raises(ValueError, match="rows must each have 1 pictures"):
        picture_grid([], ["a"], [], 64.0)
