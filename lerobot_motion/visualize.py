"""Pure rendering: tensors to pictures."""

from collections.abc import Sequence

import torch
from einops import rearrange
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from lerobot_motion.flow.motion_image import flow_to_motion_image

_MARGIN = 8
_TEXT_SIZE = 16
_TEXT_LINE = 24
_INK = (40, 40, 40)
_FRAME = (200, 200, 200)


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


def color_wheel(size: int, max_magnitude: float) -> Image.Image:
    """Draw the legend of motion images: the colour of every direction and magnitude.

    Args:
        size: Side of the picture, in pixels; the wheel fills it.
        max_magnitude: Displacement at the rim, in pixels.

    Returns:
        The wheel on white, with a thin rim.
    """
    line = torch.linspace(-1.0, 1.0, size) * max_magnitude
    flow_y, flow_x = torch.meshgrid(line, line, indexing="ij")
    inside = torch.hypot(flow_x, flow_y) <= max_magnitude
    flow = torch.stack([flow_x, flow_y]) * inside  # (2, size, size)
    wheel = to_pil(flow_to_motion_image(flow[None], max_magnitude)[0], low=-1.0)
    draw = ImageDraw.Draw(wheel)
    draw.ellipse((0, 0, size - 1, size - 1), outline=_FRAME)
    return wheel


def picture_grid(
    rows: Sequence[Sequence[Image.Image]],
    titles: Sequence[str],
    captions: Sequence[str],
    max_magnitude: float,
) -> Image.Image:
    """Lay out rows of pictures under column titles, with the colour wheel as legend.

    Args:
        rows: Pictures of one size; every row has as many as there are titles.
        titles: Column titles.
        captions: One line of text for every row.
        max_magnitude: Displacement at the rim of the legend's wheel, in pixels.

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
    legend = min(96, height)
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
        draw.text((_column(column, width), 4), title, fill=_INK, font=_font(bold=True))
    for index, (row, caption) in enumerate(zip(rows, captions, strict=True)):
        top = _TEXT_LINE + index * row_height
        draw.text((_MARGIN, top + 3), caption, fill=_INK, font=_font())
        for column, picture in enumerate(row):
            _paste_framed(canvas, picture, (_column(column, width), top + _TEXT_LINE))
    _draw_legend(canvas, legend, max_magnitude)
    return canvas


def _column(index: int, width: int) -> int:
    return _MARGIN + index * (width + _MARGIN)


def _font(*, bold: bool = False) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(_TEXT_SIZE + 1 if bold else _TEXT_SIZE - 2)


def _paste_framed(canvas: Image.Image, picture: Image.Image, corner: tuple[int, int]) -> None:
    """Paste a picture with a thin frame, without which a still motion image vanishes on white."""
    canvas.paste(picture, corner)
    left, top = corner
    box = (left - 1, top - 1, left + picture.width, top + picture.height)
    ImageDraw.Draw(canvas).rectangle(box, outline=_FRAME)


def _draw_legend(canvas: Image.Image, size: int, max_magnitude: float) -> None:
    top = canvas.height - size - _MARGIN
    canvas.paste(color_wheel(size, max_magnitude), (_MARGIN, top))
    text = (
        "Colour: where each pixel is about to go.\n"
        f"White: it stays. Rim: {max_magnitude:g} px or more."
    )
    position = (2 * _MARGIN + size, top + size // 2 - _TEXT_LINE)
    ImageDraw.Draw(canvas).multiline_text(position, text, fill=_INK, font=_font(), spacing=6)


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
