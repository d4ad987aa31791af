import pytest

from lerobot_motion.training.episode_split import split_episodes

TASKS = [["push"], ["pull"], ["push"], ["push"], []]


@pytest.mark.parametrize(
    ("episodes", "eval_split", "trained", "held_out"),
    [
        (range(5), 0.0, [0, 1, 2, 3, 4], []),
        (range(5), 0.1, [0, 2], [1, 3, 4]),
        (range(5), 0.5, [0], [1, 2, 3, 4]),
        # In the order of the run: the last one named is held out.
        ([3, 0, 2], 0.3, [0, 3], [2]),
    ],
)
def test_of_every_task_the_last_are_held_out(
    episodes: list[int], eval_split: float, trained: list[int], held_out: list[int]
) -> None:
    assert split_episodes(TASKS, episodes, eval_split) == (trained, held_out)
