"""Pure rendering: tensors to pictures."""

import bisect
import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from einops import rearrange
from lerobot.utils.constants import OBS_IMAGES
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional

from lerobot_motion.flow.motion_image import flow_to_motion_image

_MARGIN = 8
_TEXT_SIZE = 16
_TEXT_LINE = 24
INK = (40, 40, 40)
FRAME = (200, 200, 200)
# What moves farther within the horizon counts as moving.
MOVING_PX = 1.0
# Of arrows and lines: what happened, and what was predicted.
TARGET_COLOR = (240, 140, 0)
PREDICTED_COLOR = (0, 120, 230)
_CELLS = 14
_SHARE_OF_CELL = 0.25
_FINER = 3


def to_pil(image: Tensor, low: float = 0.0) -> Image.Image:
    """Convert an image to Pillow's.

    Args:
        image: Image in [low, 1], (3, H, W); values outside are clipped.
        low: 0 for frames, -1 for motion images.

    Returns:
        The picture, H x W, RGB.
    """
    scaled = (image.float() - low) / (1.0 - low)
    pixels = (scaled.clamp(0, 1) * 255).round().byte()
    return Image.fromarray(rearrange(pixels, "c h w -> h w c").cpu().numpy())


def enlarged(picture: Image.Image, width: int) -> Image.Image:
    """Enlarge a small picture, so that it can be seen and there is room for text over it.

    Args:
        picture: Any picture.
        width: Its width in pixels, at least.

    Returns:
        The picture, enlarged by the smallest whole factor that makes it so wide.
    """
    factor = math.ceil(width / picture.width)
    size = (factor * picture.width, factor * picture.height)
    return picture if factor <= 1 else picture.resize(size, Image.Resampling.BICUBIC)


@lru_cache(maxsize=8)
def color_wheel(size: int, max_magnitude: float) -> Image.Image:
    """Draw the legend of motion images: the colour of every direction and magnitude.

    Args:
        size: Side of the picture, in pixels; the wheel fills it.
        max_magnitude: Displacement at the rim, in pixels.

    Returns:
        The wheel on white, with a thin rim; shared, not to be drawn on.
    """
    line = torch.linspace(-1.0, 1.0, size) * max_magnitude
    flow_y, flow_x = torch.meshgrid(line, line, indexing="ij")
    inside = torch.hypot(flow_x, flow_y) <= max_magnitude
    flow = torch.stack([flow_x, flow_y]) * inside  # (2, size, size)
    wheel = to_pil(flow_to_motion_image(flow[None], max_magnitude)[0], low=-1.0)
    draw = ImageDraw.Draw(wheel)
    draw.ellipse((0, 0, size - 1, size - 1), outline=FRAME)
    return wheel


def picture_grid(
    rows: Sequence[Sequence[Image.Image]],
    titles: Sequence[str],
    captions: Sequence[str],
    max_magnitude: float | None,
) -> Image.Image:
    """Lay out rows of pictures under column titles, with the colour wheel as legend.

    Args:
        rows: Pictures of one size; every row has as many as there are titles.
        titles: Column titles; shortened to the width of a picture.
        captions: One line of text for every row; shortened to the width of all pictures.
        max_magnitude: Displacement at the rim of the legend's wheel, in pixels; None for pictures
            that need no legend.

    Returns:
        The picture.

    Raises:
        ValueError: If there are no rows, or the numbers do not match.
    """
    if not rows or any(len(row) != len(titles) for row in rows) or len(captions) != len(rows):
        raise ValueError(
            f"rows must each have {len(titles)} pictures and a caption, got "
            f"{[len(row) for row in rows]} pictures and {len(captions)} captions."
        )
    width, height = rows[0][0].size
    legend = 0 if max_magnitude is None else min(96, height)
    row_height = _TEXT_LINE + height + _MARGIN
    canvas = Image.new(
        "RGB",
        (
            _MARGIN + len(titles) * (width + _MARGIN),
            _TEXT_LINE + len(rows) * row_height + legend + 2 * _MARGIN,
        ),
        "white",
    )
    draw = ImageDraw.Draw(canvas)
    for column, title in enumerate(titles):
        text = text_that_fits(title, width, _font(bold=True))
        draw.text((_column(column, width), 4), text, fill=INK, font=_font(bold=True))
    for index, (row, caption) in enumerate(zip(rows, captions, strict=True)):
        top = _TEXT_LINE + index * row_height
        text = text_that_fits(caption, canvas.width - 2 * _MARGIN, _font())
        draw.text((_MARGIN, top + 3), text, fill=INK, font=_font())
        for column, picture in enumerate(row):
            paste_framed(canvas, picture, (_column(column, width), top + _TEXT_LINE))
    if max_magnitude is not None:
        _draw_legend(canvas, legend, max_magnitude)
    return canvas


def _column(index: int, width: int) -> int:
    return _MARGIN + index * (width + _MARGIN)


def _font(*, bold: bool = False) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return text_font(_TEXT_SIZE + 1 if bold else _TEXT_SIZE - 2)


def text_font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Font of all text in pictures.

    Args:
        size: Its height in pixels.
    """
    return ImageFont.load_default(size)


def text_that_fits(
    text: str, width: float, font: ImageFont.FreeTypeFont | ImageFont.ImageFont
) -> str:
    """Shorten a text to a width.

    Args:
        text: One line.
        width: Room for it in pixels.
        font: Its font.

    Returns:
        The text, or as much of its beginning as fits, with dots after it.
    """
    if font.getlength(text) <= width:
        return text
    room = bisect.bisect_right(
        range(len(text)), width, key=lambda count: font.getlength(f"{text[:count]}...")
    )
    return f"{text[: max(0, room - 1)]}..."


def short_name(camera: str) -> str:
    """What a camera is called in pictures: its name without what all of them begin with.

    Args:
        camera: Observation key of the camera.
    """
    return camera.removeprefix(f"{OBS_IMAGES}.")


def paste_framed(canvas: Image.Image, picture: Image.Image, corner: tuple[int, int]) -> None:
    """Paste a picture with a thin frame, without which a still motion image vanishes on white.

    Args:
        canvas: Where to; it is changed.
        picture: What to paste.
        corner: Left and top of the picture, in pixels.
    """
    canvas.paste(picture, corner)
    left, top = corner
    box = (left - 1, top - 1, left + picture.width, top + picture.height)
    ImageDraw.Draw(canvas).rectangle(box, outline=FRAME)


def _draw_legend(canvas: Image.Image, size: int, max_magnitude: float) -> None:
    top = canvas.height - size - _MARGIN
    canvas.paste(color_wheel(size, max_magnitude), (_MARGIN, top))
    text = (
        "Colour: where each pixel is about to go.\n"
        f"White: it stays. Rim: {max_magnitude:g} px or more."
    )
    position = (2 * _MARGIN + size, top + size // 2 - _TEXT_LINE)
    ImageDraw.Draw(canvas).multiline_text(position, text, fill=INK, font=_font(), spacing=6)


def side_by_side(pictures: Sequence[Image.Image]) -> Image.Image:
    """Put pictures next to each other, on white.

    Args:
        pictures: At least one; of any size.

    Returns:
        The picture.
    """
    height = max(picture.height for picture in pictures)
    canvas = Image.new("RGB", (sum(picture.width for picture in pictures), height), "white")
    left = 0
    for picture in pictures:
        canvas.paste(picture, (left, 0))
        left += picture.width
    return canvas


def flow_arrows(
    picture: Image.Image, flow: Tensor, color: tuple[int, int, int], *, width: float = 2.0
) -> Image.Image:
    """Draw arrows over a picture, from where things are to where they go.

    One arrow for every cell of a grid of which at least a quarter moves: the mean displacement of
    what moves there, from its middle. Lengths are true: the tip is where things arrive.

    Args:
        picture: What moves, of any size.
        flow: Displacement in pixels of its own grid, (2, H, W); channel 0 points right, 1 down.
        color: Colour of the arrows.
        width: Their width, in pixels of the picture.

    Returns:
        A new picture.
    """
    scale = picture.width / flow.shape[-1]
    # Drawn large and shrunk: Pillow draws hard edges only.
    layer = Image.new("RGBA", (picture.width * _FINER, picture.height * _FINER), (*color, 0))
    draw = ImageDraw.Draw(layer)
    for x, y, dx, dy in _arrows_of_cells(flow.float().cpu()):
        values = (value * scale * _FINER for value in (x, y, x + dx, y + dy))
        _draw_arrow(draw, tuple(values), color, width * _FINER)
    overlay = layer.resize(picture.size, Image.Resampling.LANCZOS)
    return Image.alpha_composite(picture.convert("RGBA"), overlay).convert("RGB")


def _arrows_of_cells(flow: Tensor) -> list[tuple[float, float, float, float]]:
    """Middle and mean displacement (x, y, dx, dy) of what moves in each cell, where enough does."""
    height, width = flow.shape[-2:]
    side = max(1, width // _CELLS)
    moves = (torch.linalg.vector_norm(flow, dim=0) > MOVING_PX).float()
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    values = torch.stack([moves, moves * x, moves * y, *(moves * flow)])  # (5, H, W)
    share, *sums = functional.avg_pool2d(values, side).flatten(1)  # (cells,) each
    enough = share >= _SHARE_OF_CELL
    means = [(total[enough] / share[enough]).tolist() for total in sums]
    return list(zip(*means, strict=True))


def _draw_arrow(
    draw: ImageDraw.ImageDraw, line: tuple[float, ...], color: tuple[int, int, int], width: float
) -> None:
    x, y, tip_x, tip_y = line
    length = math.hypot(tip_x - x, tip_y - y)
    along_x, along_y = (tip_x - x) / length, (tip_y - y) / length
    head = min(3.5 * width, length)
    neck_x, neck_y = tip_x - head * along_x, tip_y - head * along_y
    for extra, ink in ((0.7 * width, (0, 0, 0, 255)), (0.0, (*color, 255))):
        half = 0.45 * head + 0.6 * extra
        end_x, end_y = tip_x + extra * along_x, tip_y + extra * along_y
        draw.line((x, y, neck_x, neck_y), fill=ink, width=max(1, round(width + extra)))
        sides = [
            (neck_x - half * along_y, neck_y + half * along_x),
            (neck_x + half * along_y, neck_y - half * along_x),
        ]
        draw.polygon([(end_x, end_y), *sides], fill=ink)
