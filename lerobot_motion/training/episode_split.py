"""Which episodes a run trains on, and which it holds out (`--dataset.eval_split`)."""

import math
from collections.abc import Iterable, Sequence


def split_episodes(
    tasks: Sequence[Sequence[str]], episodes: Iterable[int], eval_split: float
) -> tuple[list[int], list[int]]:
    """Split episodes as LeRobot 0.6.1 does: of every task the last ones are held out.

    Args:
        tasks: Tasks of every episode of the dataset; the first one counts.
        episodes: Episodes of the run.
        eval_split: Share that is held out, rounded up for every task.

    Returns:
        The episodes that are trained on, and those that are held out; each in ascending order.
    """
    if not eval_split:
        return sorted(episodes), []
    by_task: dict[str, list[int]] = {}
    for episode in episodes:
        by_task.setdefault(tasks[episode][0] if tasks[episode] else "", []).append(episode)
    trained: list[int] = []
    held_out: list[int] = []
    for of_task in by_task.values():
        count = len(of_task) - math.ceil(len(of_task) * eval_split)
        trained += of_task[:count]
        held_out += of_task[count:]
    return sorted(trained), sorted(held_out)
