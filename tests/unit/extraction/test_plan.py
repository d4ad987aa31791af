import pytest

from lerobot_motion.extraction.plan import (
    CLIP_FRAMES,
    clips_of,
    episode_runs,
    plan_shards,
    validity,
)
from lerobot_motion.latent_store import Shard

# Five episodes of 10, 30, 5, 40 and 10 frames.
RANGES = [(0, 10), (10, 40), (40, 45), (45, 85), (85, 95)]


def spans(shards: list[Shard]) -> list[tuple[int, int, int, int]]:
    return [(s.episode_from, s.episode_to, s.index_from, s.index_to) for s in shards]


@pytest.mark.parametrize(
    ("episodes", "runs"),
    [
        ([], ()),
        ([3], ((3, 3),)),
        ([0, 1, 2], ((0, 2),)),
        ([0, 2, 3, 7], ((0, 0), (2, 3), (7, 7))),
    ],
)
def test_runs_of_episodes(episodes: list[int], runs: tuple[tuple[int, int], ...]) -> None:
    assert episode_runs(episodes) == runs


def test_shards_hold_whole_episodes() -> None:
    shards = plan_shards(RANGES, ((0, 4),), 40)

    assert spans(shards) == [(0, 2, 0, 40), (2, 4, 40, 85), (4, 5, 85, 95)]
    assert [shard.file for shard in shards] == [
        "shards/000000.safetensors",
        "shards/000001.safetensors",
        "shards/000002.safetensors",
    ]


def test_a_gap_starts_a_new_shard() -> None:
    shards = plan_shards(RANGES, ((0, 0), (2, 2), (4, 4)), 1000)

    assert spans(shards) == [(0, 1, 0, 10), (2, 3, 40, 45), (4, 5, 85, 95)]


def test_an_episode_longer_than_a_shard_stays_whole() -> None:
    assert spans(plan_shards(RANGES, ((1, 1),), 7)) == [(1, 2, 10, 40)]


def test_a_shard_must_have_frames() -> None:
    with pytest.raises(ValueError, match="shard_frames must be at least 1, got 0"):
        plan_shards(RANGES, ((0, 4),), 0)


def test_clips_hold_every_frame_once_in_order() -> None:
    shards = plan_shards(RANGES, ((0, 0), (2, 4)), 40)

    clips = list(clips_of(RANGES, shards))

    frames = [RANGES[clip.episode][0] + frame for clip in clips for frame in clip.frames]
    assert frames == [*range(10), *range(40, 95)]
    assert max(len(clip.frames) for clip in clips) == CLIP_FRAMES


def test_frames_have_a_future_within_their_episode() -> None:
    valid = validity(RANGES, Shard("", 1, 4, 10, 85), horizon=8)

    # An episode of five frames has none.
    assert valid == [*[True] * 22, *[False] * 8, *[False] * 5, *[True] * 32, *[False] * 8]
