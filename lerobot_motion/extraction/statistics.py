"""How large the motion of a dataset is, gathered with little memory and merged over shards."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Self

import torch
from torch import Tensor

NUM_BINS = 2048
BINS_PER_PIXEL = 8
# Above, a displacement is counted in the bin of the overflow.
RANGE_PX = NUM_BINS / BINS_PER_PIXEL
_EXACT_IN_FLOAT32 = 2**24


def count_magnitudes(magnitude: Tensor) -> Tensor:
    """Histogram of displacements; nothing is waited for on a GPU.

    Args:
        magnitude: Displacements in pixels, any shape, finite.

    Returns:
        Counts, (2049,), int64: bins of 1/8 px, and the overflow.
    """
    # Of so many values at once float32 counts exactly; not every device has float64.
    parts = torch.split(magnitude.float().flatten(), _EXACT_IN_FLOAT32)
    counts = torch.stack(
        [torch.histc(part, bins=NUM_BINS, min=0, max=RANGE_PX).long() for part in parts]
    ).sum(dim=0)
    return torch.cat([counts, (magnitude.numel() - counts.sum())[None]])


def sum_histograms(histograms: Sequence[Tensor]) -> Tensor:
    """Add histograms of `count_magnitudes`: (2049,) each -> (2049,), int64, on the CPU."""
    empty = torch.zeros(NUM_BINS + 1, dtype=torch.int64)
    return torch.stack([empty, *(counts.cpu() for counts in histograms)]).sum(dim=0)


def percentile(histogram: Tensor, share: float, largest: float) -> float:
    """Read a percentile off a histogram, to a part of 1/8 px.

    Args:
        histogram: Counts of `count_magnitudes`, (2049,).
        share: Share of displacements below, in [0, 1].
        largest: The largest displacement, in pixels.

    Returns:
        Displacement in pixels; 0 if nothing was counted.
    """
    counts: list[float] = histogram.tolist()
    wanted = share * sum(counts)
    below = 0.0
    for index, count in enumerate(counts[:NUM_BINS]):
        if count and below + count >= wanted:
            return min(largest, (index + (wanted - below) / count) / BINS_PER_PIXEL)
        below += count
    return largest


@dataclass(frozen=True)
class FrameCounts:
    """What is known of every store, whatever its targets are.

    Attributes:
        frames: Frames in the store.
        masked: Frames without a future frame in their episode.
    """

    frames: int
    masked: int

    @classmethod
    def merge(cls, shards: Iterable[dict[str, Tensor]]) -> Self:
        """Put the counts of shards together.

        Args:
            shards: Of every shard, `valid`, (N,).
        """
        masks = [shard["valid"] for shard in shards]
        frames = sum(len(mask) for mask in masks)
        return cls(frames=frames, masked=frames - sum(int(mask.sum()) for mask in masks))

    def as_dict(self) -> dict[str, float | int]:
        """The figures as the manifest holds them."""
        return {
            name: round(value, 6) if isinstance(value, float) and math.isfinite(value) else value
            for name, value in asdict(self).items()
        }


@dataclass(frozen=True)
class MotionStatistics(FrameCounts):
    """What a store's motion is like; displacements in pixels of the letterboxed image.

    Attributes:
        mean: Mean displacement over the camera's pixels.
        p50: Median.
        p95: 95th percentile.
        p99: 99th percentile.
        p999: 99.9th percentile.
        max: Largest displacement.
        clipped: Share of pixels that move farther than what is drawn at full saturation.
    """

    mean: float
    p50: float
    p95: float
    p99: float
    p999: float
    max: float
    clipped: float

    @classmethod
    def merge(cls, shards: Iterable[dict[str, Tensor]]) -> Self:
        """Put the statistics of shards together, one at a time.

        Args:
            shards: Of every shard, `valid`, `mean_magnitude`, `max_magnitude`, `clipped`, (N,), and
                `histogram`, (2049,).
        """
        frames = valid = 0
        total = clipped = largest = 0.0
        histogram = torch.zeros(NUM_BINS + 1, dtype=torch.float64)
        for shard in shards:
            frames += len(shard["valid"])
            valid += int(shard["valid"].sum())
            total += float(shard["mean_magnitude"].double().sum())
            clipped += float(shard["clipped"].double().sum())
            largest = max(largest, float(shard["max_magnitude"].max()))
            histogram += shard["histogram"].double()
        p50, p95, p99, p999 = (percentile(histogram, s, largest) for s in (0.5, 0.95, 0.99, 0.999))
        count = max(valid, 1)
        return cls(
            frames=frames,
            masked=frames - valid,
            mean=total / count,
            p50=p50,
            p95=p95,
            p99=p99,
            p999=p999,
            max=largest,
            clipped=clipped / count,
        )
