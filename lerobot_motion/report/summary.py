"""What a report says, before it is written in any form."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from lerobot_motion.report.published import OVERALL, PublishedFigure, published_figures
from lerobot_motion.report.reading import Checkpoint, Task, show_numbers
from lerobot_motion.report.statistics import (
    PairCounts,
    episodes_needed,
    mcnemar_p_value,
    paired_difference_interval,
    pairs_needed,
    wilson_interval,
)

_SEPARATELY = "To report them side by side, without their difference: --pair=false."


@dataclass(frozen=True)
class Rate:
    """Success of a checkpoint in some tasks.

    Attributes:
        num_successes: Episodes that succeeded.
        num_episodes: All episodes.
        interval: 95% Wilson interval of the success rate.
    """

    num_successes: int
    num_episodes: int
    interval: tuple[float, float]

    @property
    def rate(self) -> float:
        """Share of the episodes that succeeded."""
        return self.num_successes / self.num_episodes


@dataclass(frozen=True)
class Row:
    """Success in a task, a suite, or all tasks.

    Attributes:
        kind: `task`, `suite` or `overall`.
        label: Its name.
        rates: That of each checkpoint; None for one that lacks some of the tasks.
        published: What the paper reports for the same tasks.
    """

    kind: str
    label: str
    rates: tuple[Rate | None, ...]
    published: tuple[PublishedFigure, ...]


@dataclass(frozen=True)
class Comparison:
    """Difference of two checkpoints on the same episodes.

    Attributes:
        first: Name of the one.
        second: Name of the other, which is subtracted.
        label: The tasks: a suite, or `overall`.
        counts: How the two fared.
        interval: 95% score interval of the difference.
        p_value: Of the exact McNemar test.
    """

    first: str
    second: str
    label: str
    counts: PairCounts
    interval: tuple[float, float]
    p_value: float


@dataclass(frozen=True)
class Need:
    """How many episodes a difference needs.

    Attributes:
        names: The two checkpoints, or the one that another is to be compared with.
        difference: Difference of the success rates, in (0, 1).
        discordance: Share of episodes in which only one succeeded; None without pairs.
        num_pairs: Episodes of each on the same seeds; None without pairs.
        rate: Success rate from which the difference is counted.
        num_independent: Episodes of each on different seeds; None if from `rate` no such
            difference is possible.
    """

    names: tuple[str, ...]
    difference: float
    discordance: float | None
    num_pairs: int | None
    rate: float
    num_independent: int | None


@dataclass(frozen=True)
class Report:
    """What a report says.

    Attributes:
        checkpoints: What was evaluated.
        rows: Success in each task, each suite, and overall.
        comparisons: Differences from the baseline.
        needs: Episodes that a difference needs, if one was asked for.
    """

    checkpoints: tuple[Checkpoint, ...]
    rows: tuple[Row, ...]
    comparisons: tuple[Comparison, ...]
    needs: tuple[Need, ...]


def make_report(
    checkpoints: Sequence[Checkpoint], baseline: str | None, detect: float | None
) -> Report:
    """Compute everything that a report says.

    Args:
        checkpoints: What was evaluated.
        baseline: The checkpoint that each other one is compared with, episode by episode. None: no
            comparison.
        detect: A difference of success rates in (0, 1) to say how many episodes it needs.

    Raises:
        ValueError: If two checkpoints cannot be compared.
    """
    by_name = {checkpoint.name: checkpoint for checkpoint in checkpoints}
    comparisons: list[Comparison] = []
    if baseline is not None:
        for checkpoint in checkpoints:
            if checkpoint.name != baseline:
                comparisons += compare(checkpoint, by_name[baseline])
    rows = summarize(checkpoints)
    needs = [] if detect is None else _needs(checkpoints, comparisons, detect)
    return Report(tuple(checkpoints), tuple(rows), tuple(comparisons), tuple(needs))


def summarize(checkpoints: Sequence[Checkpoint]) -> list[Row]:
    """Success in each task, each suite, and overall.

    Args:
        checkpoints: What was evaluated.
    """
    tasks = sorted({task for checkpoint in checkpoints for task in checkpoint.tasks})
    rows = []
    for suite, of_suite in _by_suite(tasks).items():
        rows += [_row("task", str(task), [task], checkpoints) for task in of_suite]
        rows.append(_row("suite", suite, of_suite, checkpoints))
    return [*rows, _row("overall", OVERALL, tasks, checkpoints)]


def _by_suite(tasks: Collection[Task]) -> dict[str, list[Task]]:
    suites: dict[str, list[Task]] = {}
    for task in tasks:
        suites.setdefault(task.suite, []).append(task)
    return suites


def _row(kind: str, label: str, tasks: Sequence[Task], checkpoints: Sequence[Checkpoint]) -> Row:
    rates = tuple(_rate(checkpoint, tasks) for checkpoint in checkpoints)
    return Row(kind, label, rates, tuple(published_figures(tasks)))


def _rate(checkpoint: Checkpoint, tasks: Sequence[Task]) -> Rate | None:
    outcomes = [checkpoint.outcomes(task) for task in tasks]
    if not all(outcomes):
        return None
    num_successes, num_episodes = sum(map(sum, outcomes)), sum(map(len, outcomes))
    return Rate(num_successes, num_episodes, wilson_interval(num_successes, num_episodes))


def compare(first: Checkpoint, second: Checkpoint) -> list[Comparison]:
    """Compare two checkpoints episode by episode: in all tasks, then in each of several suites.

    Args:
        first: The one.
        second: The other.

    Raises:
        ValueError: If their tasks, numbers of episodes or seeds differ, or are not known.
    """
    pairs = _paired_outcomes(first, second)
    suites = _by_suite(pairs)
    groups = {OVERALL: list(pairs), **(suites if len(suites) > 1 else {})}
    comparisons = []
    for label, tasks in groups.items():
        counts = _count([pair for task in tasks for pair in pairs[task]])
        comparisons.append(
            Comparison(
                first.name,
                second.name,
                label,
                counts,
                paired_difference_interval(counts),
                mcnemar_p_value(counts),
            )
        )
    return comparisons


def _paired_outcomes(first: Checkpoint, second: Checkpoint) -> dict[Task, list[tuple[bool, bool]]]:
    """Outcomes of both in every episode, by task."""
    title = f"{first.name} ({first.files}) and {second.name} ({second.files}) cannot be paired"
    for one, other in ((first, second), (second, first)):
        lacking = [str(task) for task in one.tasks if task not in other.tasks]
        if lacking:
            raise ValueError(
                f"{title}: {one.name} has {', '.join(lacking)}, {other.name} has not. Choose tasks "
                f"that both have with --tasks. {_SEPARATELY}"
            )
    pairs = {}
    for task in first.tasks:
        num_first, num_second = len(first.outcomes(task)), len(second.outcomes(task))
        if num_first != num_second:
            raise ValueError(
                f"{title}: {task} has {num_first} episode(s) of {first.name}, {num_second} of "
                f"{second.name}. Evaluate both with one --eval.n_episodes. {_SEPARATELY}"
            )
        ours, theirs = first.outcome_of_seed(task), second.outcome_of_seed(task)
        if ours is None or theirs is None:
            unknown = first.name if ours is None else second.name
            raise ValueError(
                f"{title}: the seeds of {unknown} are not known, lerobot-eval does not record "
                "them. Pass the --seed of each lerobot-eval (1000, unless another was given): "
                f"--seeds=<seed>,<seed>. {_SEPARATELY}"
            )
        if ours.keys() != theirs.keys():
            raise ValueError(
                f"{title}: in {task}, {first.name} has the seeds {show_numbers(ours)}, "
                f"{second.name} {show_numbers(theirs)}. Evaluate both with one --seed. "
                f"{_SEPARATELY}"
            )
        pairs[task] = [(ours[seed], theirs[seed]) for seed in sorted(ours)]
    return pairs


def _count(pairs: Sequence[tuple[bool, bool]]) -> PairCounts:
    return PairCounts(
        both=pairs.count((True, True)),
        first_only=pairs.count((True, False)),
        second_only=pairs.count((False, True)),
        neither=pairs.count((False, False)),
    )


def _needs(
    checkpoints: Sequence[Checkpoint], comparisons: Sequence[Comparison], difference: float
) -> list[Need]:
    # Of its own tasks: side by side, no checkpoint need have those of the others.
    in_own_tasks = {c.name: _rate(c, c.tasks) for c in checkpoints}
    rates = {name: rate.rate for name, rate in in_own_tasks.items() if rate is not None}
    compared = [comparison for comparison in comparisons if comparison.label == OVERALL]
    if not compared:
        return [
            Need((name,), difference, None, None, rate, _independent(rate, difference))
            for name, rate in rates.items()
        ]
    return [
        Need(
            (comparison.first, comparison.second),
            difference,
            comparison.counts.discordance,
            pairs_needed(difference, comparison.counts.discordance),
            rates[comparison.second],
            _independent(rates[comparison.second], difference),
        )
        for comparison in compared
    ]


def _independent(rate: float, difference: float) -> int | None:
    """Episodes to tell a better policy apart, or a worse one where none can be that much better."""
    for other in (rate + difference, rate - difference):
        if 0 <= other <= 1:
            return episodes_needed(rate, other)
    return None
