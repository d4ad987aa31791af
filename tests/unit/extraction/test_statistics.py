import pytest
import torch
from torch import Tensor

from lerobot_motion.extraction.statistics import (
    NUM_BINS,
    RANGE_PX,
    MotionStatistics,
    count_magnitudes,
    percentile,
    sum_histograms,
)


def magnitudes(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return 60 * torch.rand(*shape, generator=generator) ** 3


def shard_of(magnitude: Tensor, valid: list[bool], limit: float = 30.0) -> dict[str, Tensor]:
    """Statistics of a shard, a frame a row."""
    return {
        "valid": torch.tensor(valid),
        "mean_magnitude": magnitude.mean(dim=1),
        "max_magnitude": magnitude.amax(dim=1),
        "clipped": (magnitude > limit).float().mean(dim=1),
        "histogram": count_magnitudes(magnitude[torch.tensor(valid)]).long(),
    }


@pytest.mark.parametrize("share", [0.5, 0.95, 0.99, 0.999])
def test_percentiles_are_those_of_the_values(share: float) -> None:
    values = magnitudes(100_000)

    found = percentile(count_magnitudes(values), share, float(values.max()))

    assert found == pytest.approx(float(values.quantile(share)), abs=1 / 8)


def test_every_value_is_counted() -> None:
    values = torch.tensor([0.0, 0.124, 0.125, 255.9, 256.1, 5000.0])

    counts = count_magnitudes(values)

    assert counts[0] == 2
    assert counts[1] == 1
    assert counts[NUM_BINS - 1] == 1
    assert counts[NUM_BINS] == 2


def test_more_values_than_float32_counts_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    values = magnitudes(1_000)
    expected = count_magnitudes(values)
    monkeypatch.setattr("lerobot_motion.extraction.statistics._EXACT_IN_FLOAT32", 64)

    assert expected.dtype == torch.int64
    assert torch.equal(count_magnitudes(values), expected)


def test_a_percentile_beyond_the_range_is_the_largest_value() -> None:
    assert percentile(count_magnitudes(torch.full((10,), RANGE_PX + 50)), 0.5, 306.0) == 306.0


def test_nothing_counted_is_no_motion() -> None:
    assert percentile(sum_histograms([]), 0.999, 0.0) == 0.0


def test_merged_shards_are_as_one() -> None:
    magnitude = magnitudes(6, 500)
    magnitude[5] = 0.0
    valid = [True, True, False, True, True, True]
    magnitude[2] = 0.0

    parts = [shard_of(magnitude[:2], valid[:2]), shard_of(magnitude[2:], valid[2:])]
    merged = MotionStatistics.merge(parts)

    content = magnitude[torch.tensor(valid)]
    assert (merged.frames, merged.masked) == (6, 1)
    assert merged.mean == pytest.approx(float(content.mean()), rel=1e-5)
    assert merged.p95 == pytest.approx(float(content.quantile(0.95)), abs=1 / 8)
    assert merged.max == float(content.max())
    assert merged.clipped == pytest.approx(float((content > 30.0).float().mean()), rel=1e-5)
    assert merged == MotionStatistics.merge([shard_of(magnitude, valid)])


def test_a_store_without_any_future_has_statistics() -> None:
    shard = shard_of(torch.zeros(3, 10), [False] * 3)

    merged = MotionStatistics.merge([shard])

    assert (merged.frames, merged.masked, merged.mean, merged.p999) == (3, 3, 0.0, 0.0)
