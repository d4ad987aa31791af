"""Which frames go into which shard, and in which pieces they are decoded."""

from collections.abc import Iterator, Sequence

from lerobot_motion.extraction.recordings import Clip
from lerobot_motion.latent_store import SHARDS, Shard

# Long enough for a decoder's seek to cost little, short enough for a worker's memory (29 MB at
# 480 x 640).
CLIP_FRAMES = 32


def episode_runs(episodes: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Sum up episodes as runs.

    Args:
        episodes: Episodes in order.

    Returns:
        First and last episode of each run of consecutive ones.
    """
    runs: list[tuple[int, int]] = []
    for episode in episodes:
        if runs and runs[-1][1] == episode - 1:
            runs[-1] = (runs[-1][0], episode)
        else:
            runs.append((episode, episode))
    return tuple(runs)


def plan_shards(
    ranges: Sequence[tuple[int, int]], runs: Sequence[tuple[int, int]], shard_frames: int
) -> list[Shard]:
    """Divide episodes into shards of whole, consecutive episodes.

    Args:
        ranges: Dataset index of every episode's first frame, and one past its last.
        runs: First and last episode of each run of the chosen episodes.
        shard_frames: Frames after which a shard ends with its episode.

    Returns:
        The shards in order; the same arguments give the same shards.

    Raises:
        ValueError: If `shard_frames` is not positive.
    """
    if shard_frames < 1:
        raise ValueError(f"shard_frames must be at least 1, got {shard_frames}.")
    shards: list[Shard] = []
    for first, last in runs:
        begin = first
        for episode in range(first, last + 1):
            num_frames = ranges[episode][1] - ranges[begin][0]
            if num_frames >= shard_frames or episode == last:
                name = f"{SHARDS}/{len(shards):06d}.safetensors"
                shards.append(Shard(name, begin, episode + 1, ranges[begin][0], ranges[episode][1]))
                begin = episode + 1
    return shards


def clips_of(ranges: Sequence[tuple[int, int]], shards: Sequence[Shard]) -> Iterator[Clip]:
    """Every frame of shards once, in order.

    Args:
        ranges: Dataset index of every episode's first frame, and one past its last.
        shards: Which shards.
    """
    for shard in shards:
        for episode in range(shard.episode_from, shard.episode_to):
            length = ranges[episode][1] - ranges[episode][0]
            for start in range(0, length, CLIP_FRAMES):
                yield Clip(episode, tuple(range(start, min(start + CLIP_FRAMES, length))))


def validity(ranges: Sequence[tuple[int, int]], shard: Shard, horizon: int) -> list[bool]:
    """Which frames of a shard have a future frame within their episode.

    Args:
        ranges: Dataset index of every episode's first frame, and one past its last.
        shard: Which shard.
        horizon: Frames from an observation to its future frame.
    """
    return [
        index + horizon < stop
        for start, stop in ranges[shard.episode_from : shard.episode_to]
        for index in range(start, stop)
    ]
