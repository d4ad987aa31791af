import io
import json
import sys
from pathlib import Path

import pytest
from eval_results import Outcomes, episodes
from matplotlib.figure import Figure
from PIL import Image

from lerobot_motion.report.chart import draw_chart
from lerobot_motion.report.reading import Checkpoint, Run, Task
from lerobot_motion.report.rendering import to_json, to_markdown
from lerobot_motion.report.statistics import wilson_interval
from lerobot_motion.report.summary import Report, make_report

LIBERO = ("libero_spatial", "libero_object", "libero_goal", "libero_10")


def checkpoint(name: str, outcomes: Outcomes, seed: int | None = 1000) -> Checkpoint:
    successes = {
        Task(suite, task_id): tuple(of_task)
        for suite, tasks in outcomes.items()
        for task_id, of_task in tasks.items()
    }
    return Checkpoint(name, (Run(Path(name) / "eval_info.json", seed, successes),))


@pytest.fixture
def libero() -> Report:
    """Two checkpoints in all of LIBERO."""
    outcomes = {
        name: {i: episodes(num, 10) for i in range(10)}
        for name, num in zip(LIBERO, (9, 9, 8, 7), strict=True)
    }
    perfect = {name: {i: episodes(10, 10) for i in range(10)} for name in LIBERO}
    return make_report([checkpoint("ours", perfect), checkpoint("stock", outcomes)], "stock", 0.02)


def lines_with(markdown: str, label: str) -> list[str]:
    return [line for line in markdown.splitlines() if line.startswith(f"| {label} |")]


def test_success_beside_the_papers(libero: Report) -> None:
    markdown = to_markdown(libero)

    assert "| task | ours | stock | paper: pi0.5 with motion |" in markdown
    assert lines_with(markdown, "libero_10/3") == [
        "| libero_10/3 | 100.0% [72.2, 100.0] (10/10) | 70.0% [39.7, 89.2] (7/10) |  |"
    ]
    (suite,) = lines_with(markdown, "**libero_10**")
    assert "70.0% [60.4, 78.1] (70/100)" in suite
    (overall,) = lines_with(markdown, "**overall**")
    assert overall.endswith("82.5% [78.5, 85.9] (330/400) | 97.5% |")
    assert "arXiv 2512.18007, abstract" in markdown


def test_differences_and_how_they_are_known(libero: Report) -> None:
    markdown = to_markdown(libero)

    overall, *suites = lines_with(markdown, "ours - stock")
    assert overall.startswith("| ours - stock | overall | +17.5 | [+14.")
    assert overall.endswith("| <0.001 | 400 | 70 | 0 | 330 | 0 |")
    assert len(suites) == 4
    assert "not corrected for the number of comparisons" in markdown
    assert "| ours | ours/eval_info.json | 40 | 400 | 1000-1009 (10) |" in markdown
    assert "episode i of each task has the seed --seed + i" in markdown
    assert "It does not record the checkpoint, the seed" in markdown
    assert "were not paired" not in markdown


def test_episodes_that_a_difference_needs(libero: Report) -> None:
    (need,) = libero.needs

    text = to_markdown(libero).split("## Episodes that a difference needs\n\n")[1]

    assert text.startswith(
        f"ours and stock: to see a difference of 2 points on the same seeds takes {need.num_pairs} "
        "episodes of each, over all tasks, if in 17.5% of them only one succeeds (as observed). "
        f"On different seeds, from a success rate of 82.5%, 2 points take {need.num_independent} "
        "episodes of each, over all tasks. (Two-sided test at 0.05, power 0.8.)"
    )


def test_what_cannot_be_needed_is_said() -> None:
    half = checkpoint("half", {"a": {0: episodes(2, 4)}})

    alike = to_markdown(
        make_report([half, checkpoint("twin", {"a": {0: episodes(2, 4)}})], "twin", 0.3)
    )
    alone = to_markdown(make_report([half], None, 0.6))

    assert "if in 30.0% of them only one succeeds (it can be no fewer at such a differ" in alike
    assert "half and another checkpoint: From 50.0%, no difference of 60 points is pos" in alone


def test_nothing_is_said_twice_nor_of_what_is_not_known() -> None:
    single = make_report([checkpoint("ours", {"aloha": {0: [True, False]}}, seed=None)], None, None)

    markdown = to_markdown(single)

    assert len(lines_with(markdown, "aloha/0")) == 1
    assert not lines_with(markdown, "**aloha**")
    assert not lines_with(markdown, "**overall**")
    assert "| ours | ours/eval_info.json | 1 | 2 | unknown |" in markdown
    for word in ("paper", "Seeds are those", "Difference on", "a difference needs"):
        assert word not in markdown


def test_checkpoints_side_by_side() -> None:
    both = [
        checkpoint("a|b", {"x": {0: [True], 1: [True]}}),
        checkpoint("c", {"x": {0: [False]}}),
    ]

    markdown = to_markdown(make_report(both, None, None))

    assert "| task | a\\|b | c |" in markdown
    assert lines_with(markdown, "x/1") == ["| x/1 | 100.0% [20.7, 100.0] (1/1) |  |"]
    assert "The checkpoints were not paired episode by episode" in markdown


@pytest.fixture
def easy_and_hard() -> Report:
    """Two checkpoints that have no task in common."""
    easy = checkpoint("easy", {"a": {0: episodes(3, 4)}, "b": {0: episodes(1, 4)}})
    hard = checkpoint("hard", {"a_hard": {0: episodes(2, 4)}, "b_hard": {0: episodes(4, 4)}})
    return make_report([easy, hard], None, 0.2)


def test_a_row_that_nobody_has_is_not_shown(easy_and_hard: Report) -> None:
    markdown = to_markdown(easy_and_hard)

    assert lines_with(markdown, "a_hard/0") == ["| a_hard/0 |  | 50.0% [15.0, 85.0] (2/4) |"]
    assert not lines_with(markdown, "**overall**")
    # Each by its own tasks.
    assert (
        "easy and another checkpoint: On different seeds, from a success rate of 50.0%" in markdown
    )
    assert (
        "hard and another checkpoint: On different seeds, from a success rate of 75.0%" in markdown
    )


def test_json_holds_the_figures(libero: Report) -> None:
    content = json.loads(to_json(libero))

    assert content["format"] == 1
    assert content["checkpoints"][0] == {
        "name": "ours",
        "results": [{"path": "ours/eval_info.json", "seed": 1000}],
    }
    overall = content["success"][-1]
    assert overall["label"] == "overall"
    assert overall["checkpoints"]["stock"] == {
        "success_rate": 0.825,
        "wilson_95": list(wilson_interval(330, 400)),
        "successes": 330,
        "episodes": 400,
    }
    assert overall["published"][0]["success_rate"] == 0.975
    difference = content["differences"][0]
    assert (difference["difference"], difference["only_first"]) == (0.175, 70)
    assert len(content["success"]) == 40 + 4 + 1
    assert content["needs"][0]["episodes_same_seeds"] == libero.needs[0].num_pairs


def columns_of(picture: Image.Image, colour: tuple[int, int, int]) -> int:
    """How many columns of a picture have a colour."""
    width, height = picture.size
    pixels = picture.load()
    return sum(any(pixels[x, y] == colour for y in range(height)) for x in range(width))


def test_chart_shows_the_rates(libero: Report) -> None:
    picture = Image.open(io.BytesIO(draw_chart(libero))).convert("RGB")
    half = make_report([checkpoint("half", {"a": {0: episodes(2, 4)}})], None, None)
    half_picture = Image.open(io.BytesIO(draw_chart(half))).convert("RGB")

    assert picture.format is None
    assert picture.width == half_picture.width == 1080
    assert picture.height > 2 * half_picture.height
    # The bars of 100% and of 50%, in the first colour: the axis ends at 102%.
    assert columns_of(half_picture, (0, 114, 178)) < 600 < columns_of(picture, (0, 114, 178))
    assert columns_of(picture, (230, 159, 0)) > 0


def test_bars_lie_beside_the_labels_of_their_rows(
    easy_and_hard: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *args, **kwargs: figures.append(figure))
    part = checkpoint("part", {"a": {0: episodes(1, 4)}})
    whole = checkpoint("whole", {"a": {0: episodes(1, 4), 1: episodes(1, 4)}})

    draw_chart(easy_and_hard)
    draw_chart(make_report([part, whole], None, None))

    apart, together = (
        [bar.get_y() + bar.get_height() / 2 for bar in figure.axes[0].patches] for figure in figures
    )
    # Easy has the first and the third row, hard the others; nobody has a fifth, "overall".
    assert apart == pytest.approx([0, 2, 1, 3])
    assert [figure.axes[0].get_ylim() for figure in figures] == [(3.5, -0.5), (2.5, -0.5)]
    # Where both have the first task, their bars are one below the other.
    assert together == pytest.approx([-1 / 6, 1 / 6, 1, 2])
    assert [label.get_text() for label in figures[1].axes[0].get_yticklabels()] == [
        "a/0",
        "a/1",
        "a",
    ]


def test_chart_without_matplotlib(libero: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)

    with pytest.raises(ImportError, match=r"pip install 'lerobot_policy_motion\[report\]'"):
        draw_chart(libero)
