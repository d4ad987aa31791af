"""A report as a bar chart."""

import io
from typing import TYPE_CHECKING

from lerobot_motion.report.rendering import policies_of, shown_rows
from lerobot_motion.report.summary import Report, Row

if TYPE_CHECKING:  # matplotlib is an extra
    from matplotlib.axes import Axes

# Inches, points and pixels: text of 10 points at 120 dots an inch is read at 100%.
_WIDTH = 9.0
_BAR_HEIGHT = 0.28
_MARGINS = 1.5
_DPI = 120
_FONT_SIZE = 10

# Okabe and Ito's colours, which the colour-blind tell apart.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
_MARKERS = ("D", "s", "^", "v", "o")


def draw_chart(report: Report) -> bytes:
    """Draw success rates with their 95% Wilson intervals, and the paper's as markers.

    Args:
        report: What it says.

    Returns:
        A PNG.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "chart needs matplotlib, which is not installed. Run: pip install "
            "'lerobot_policy_motion[report]'"
        ) from error
    rows = _charted(report)
    # Of the fullest row: not every checkpoint has a bar in every row.
    num_bars = max(sum(rate is not None for rate in row.rates) for row in rows)
    height = _MARGINS + len(rows) * (num_bars + 1) * _BAR_HEIGHT
    figure = Figure(figsize=(_WIDTH, height), dpi=_DPI, layout="constrained")
    axes = figure.add_subplot()
    for i, checkpoint in enumerate(report.checkpoints):
        _draw_bars(axes, rows, i, num_bars, checkpoint.name)
    for i, policy in enumerate(policies_of(rows)):
        points = [
            (100 * published.rate, y)
            for y, row in enumerate(rows)
            for published in row.published
            if published.policy == policy
        ]
        x, y = zip(*points, strict=True)
        label, marker = f"paper: {policy}", _MARKERS[i % len(_MARKERS)]
        axes.scatter(x, y, marker=marker, s=60, color="white", edgecolors="black", label=label)
    axes.set_yticks(range(len(rows)), [row.label for row in rows], fontsize=_FONT_SIZE)
    axes.set_ylim(len(rows) - 0.5, -0.5)  # The first row on top.
    axes.set_xlim(0, 102)  # An interval that ends at 100 is seen to.
    axes.set_xlabel("success rate in %, with 95% Wilson intervals", fontsize=_FONT_SIZE)
    axes.tick_params(axis="x", labelsize=_FONT_SIZE)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper left", ncols=3, frameon=False, fontsize=_FONT_SIZE)
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()


def _charted(report: Report) -> list[Row]:
    """Suites rather than the tasks of several suites: LIBERO has forty."""
    rows = shown_rows(report)
    suites = [row for row in rows if row.kind == "suite"]
    if len(suites) > 1:
        in_suites = tuple(f"{row.label}/" for row in suites)
        rows = [row for row in rows if row.kind != "task" or not row.label.startswith(in_suites)]
    return rows


def _draw_bars(axes: "Axes", rows: list[Row], i: int, num_bars: int, name: str) -> None:
    """The bars of checkpoint i, in each row below those of the ones before it that are there."""
    height = 1 / (num_bars + 1)
    heights, rates = [], []
    for y, row in enumerate(rows):
        rate = row.rates[i]
        there = [j for j, other in enumerate(row.rates) if other is not None]
        if rate is not None:
            heights.append(y + (there.index(i) - (len(there) - 1) / 2) * height)
            rates.append(rate)
    lengths = [100 * rate.rate for rate in rates]
    below = [max(0.0, 100 * (rate.rate - rate.interval[0])) for rate in rates]
    above = [max(0.0, 100 * (rate.interval[1] - rate.rate)) for rate in rates]
    axes.barh(
        heights,
        lengths,
        height,
        xerr=(below, above),
        color=_COLOURS[i % len(_COLOURS)],
        error_kw={"capsize": 3, "ecolor": "#333333"},
        label=name,
    )
