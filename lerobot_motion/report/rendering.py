"""A report as Markdown and as JSON."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

from lerobot_motion.report.published import PublishedFigure
from lerobot_motion.report.reading import Checkpoint, show_seeds
from lerobot_motion.report.statistics import ALPHA, POWER
from lerobot_motion.report.summary import Comparison, Need, Rate, Report, Row

_TRUST = (
    "A result of lerobot-eval holds the successes of its episodes by suite and number of the task. "
    "It does not record the checkpoint, the seed, or the environment and its settings (such as "
    "--env.episode_length, --env.task of a simulator with a single task, like aloha, or whether it "
    "was libero or libero_plus, whose suites are called alike): that these are what they should be "
    "is not checked here."
)
_SEEDS = (
    "Seeds are those of --seeds, counted as lerobot-eval counts them: episode i of each task has "
    "the seed --seed + i."
)


def to_markdown(report: Report) -> str:
    """A report to be read.

    Args:
        report: What it says.
    """
    parts = ["# Evaluation", _results(report.checkpoints), "## Success", _success(report)]
    if report.comparisons:
        parts += ["## Difference on the same episodes", _differences(report.comparisons)]
    if report.needs:
        parts += ["## Episodes that a difference needs", *map(_need, report.needs)]
    parts += ["## What is known, and how", _provenance(report)]
    return "\n\n".join(parts) + "\n"


def _results(checkpoints: Iterable[Checkpoint]) -> str:
    rows = []
    for checkpoint in checkpoints:
        tasks = checkpoint.tasks
        num_episodes = sum(len(checkpoint.outcomes(task)) for task in tasks)
        rows.append(
            [
                checkpoint.name,
                checkpoint.files,
                str(len(tasks)),
                str(num_episodes),
                show_seeds(checkpoint),
            ]
        )
    return _table(["checkpoint", "results", "tasks", "episodes", "seeds of a task"], rows)


def shown_rows(report: Report) -> list[Row]:
    """The rows that say something, and something new: a suite of one task is that task.

    Args:
        report: What it says.
    """
    num_suites = sum(row.kind == "suite" for row in report.rows)
    shown, num_tasks = [], 0
    for row in report.rows:
        if row.kind == "task":
            num_tasks += 1
        elif row.kind == "suite":
            num_tasks, of_suite = 0, num_tasks
            if of_suite == 1:
                continue
        elif num_suites == 1:
            continue
        if any(rate is not None for rate in row.rates):
            shown.append(row)
    return shown


def policies_of(rows: Iterable[Row]) -> list[str]:
    """The paper's policies of which a row has a figure.

    Args:
        rows: Rows of a report.
    """
    return list(dict.fromkeys(figure.policy for row in rows for figure in row.published))


def _success(report: Report) -> str:
    rows = shown_rows(report)
    policies = policies_of(rows)
    head = ["task", *(checkpoint.name for checkpoint in report.checkpoints)]
    head += [f"paper: {policy}" for policy in policies]
    body = []
    for row in rows:
        cells = [_rate(rate) for rate in row.rates]
        cells += [_published(row.published, policy) for policy in policies]
        label = row.label if row.kind == "task" else f"**{row.label}**"
        body.append([label, *cells])
    note = "In brackets: 95% Wilson interval; in parentheses: episodes that succeeded, of all."
    return f"{_table(head, body)}\n\n{note}"


def _rate(rate: Rate | None) -> str:
    if rate is None:
        return ""
    low, high = rate.interval
    of_all = f"({rate.num_successes}/{rate.num_episodes})"
    return f"{_percent(rate.rate)}% [{_percent(low)}, {_percent(high)}] {of_all}"


def _published(figures: Iterable[PublishedFigure], policy: str) -> str:
    return next((f"{_percent(f.rate)}%" for f in figures if f.policy == policy), "")


def _differences(comparisons: Sequence[Comparison]) -> str:
    head = ["difference", "tasks", "points", "95% interval", "p", "episodes", "only the first"]
    head += ["only the second", "both", "neither"]
    body = []
    for comparison in comparisons:
        counts = comparison.counts
        low, high = comparison.interval
        body.append(
            [
                f"{comparison.first} - {comparison.second}",
                comparison.label,
                _points(counts.difference),
                f"[{_points(low)}, {_points(high)}]",
                "<0.001" if comparison.p_value < 0.001 else f"{comparison.p_value:.3f}",
                *map(str, (counts.num_pairs, counts.first_only, counts.second_only)),
                *map(str, (counts.both, counts.neither)),
            ]
        )
    note = (
        "Points: difference of the success rates in percent, each episode paired with that of the "
        "same task and seed. Interval: Tango's score interval. p: exact McNemar test, two-sided"
    )
    several = len(comparisons) > 1
    note += ", not corrected for the number of comparisons." if several else "."
    return f"{_table(head, body)}\n\n{note}"


def _need(need: Need) -> str:
    """One paragraph: on the same seeds, and on different ones."""
    points = f"{100 * need.difference:.4g} points"
    sentences = []
    if need.num_pairs is not None and need.discordance is not None:
        least = need.discordance < need.difference
        why = "it can be no fewer at such a difference" if least else "as observed"
        share = max(need.discordance, need.difference)
        sentences.append(
            f"{' and '.join(need.names)}: to see a difference of {points} on the same seeds takes "
            f"{need.num_pairs} episodes of each, over all tasks, if in {_percent(share)}% of them "
            f"only one succeeds ({why})."
        )
    else:
        sentences.append(f"{need.names[0]} and another checkpoint:")
    if need.num_independent is None:
        sentences.append(f"From {_percent(need.rate)}%, no difference of {points} is possible.")
    else:
        sentences.append(
            f"On different seeds, from a success rate of {_percent(need.rate)}%, {points} take "
            f"{need.num_independent} episodes of each, over all tasks."
        )
    sentences.append(f"(Two-sided test at {ALPHA:g}, power {POWER:g}.)")
    return " ".join(sentences)


def _provenance(report: Report) -> str:
    parts = []
    if any(show_seeds(checkpoint) != "unknown" for checkpoint in report.checkpoints):
        parts.append(_SEEDS)
    parts.append(_TRUST)
    if len(report.checkpoints) > 1 and not report.comparisons:
        parts.append(
            "The checkpoints were not paired episode by episode: overlapping intervals do not show "
            "that they are equally good, nor does this report say that they differ."
        )
    figures = [figure for row in shown_rows(report) for figure in row.published]
    if figures:
        sources = ", ".join(dict.fromkeys(figure.source for figure in figures))
        parts.append(
            f"Figures of the paper: {sources}. They stand beside whole suites and benchmarks only; "
            "its episodes, seeds, settings and checkpoints are others than these."
        )
    return "\n\n".join(parts)


def _table(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _points(difference: float) -> str:
    return f"{100 * difference + 0.0:+.1f}"


def to_json(report: Report) -> str:
    """A report to be read by programs. Rates and differences are fractions.

    Args:
        report: What it says.
    """
    names = [checkpoint.name for checkpoint in report.checkpoints]
    content = {
        "format": 1,
        "checkpoints": [_checkpoint(checkpoint) for checkpoint in report.checkpoints],
        "success": [_row(row, names) for row in report.rows],
        "differences": [_comparison(comparison) for comparison in report.comparisons],
        "needs": [
            {
                "checkpoints": list(need.names),
                "difference": need.difference,
                "alpha": ALPHA,
                "power": POWER,
                "discordance": need.discordance,
                "episodes_same_seeds": need.num_pairs,
                "success_rate": need.rate,
                "episodes_different_seeds": need.num_independent,
            }
            for need in report.needs
        ],
    }
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def _checkpoint(checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "name": checkpoint.name,
        "results": [{"path": str(run.path), "seed": run.seed} for run in checkpoint.runs],
    }


def _row(row: Row, names: Sequence[str]) -> dict[str, Any]:
    return {
        "kind": row.kind,
        "label": row.label,
        "checkpoints": {
            name: {
                "success_rate": rate.rate,
                "wilson_95": list(rate.interval),
                "successes": rate.num_successes,
                "episodes": rate.num_episodes,
            }
            for name, rate in zip(names, row.rates, strict=True)
            if rate is not None
        },
        "published": [
            {"policy": f.policy, "success_rate": f.rate, "source": f.source} for f in row.published
        ],
    }


def _comparison(comparison: Comparison) -> dict[str, Any]:
    counts = comparison.counts
    return {
        "first": comparison.first,
        "second": comparison.second,
        "label": comparison.label,
        "difference": counts.difference,
        "score_95": list(comparison.interval),
        "mcnemar_p": comparison.p_value,
        "episodes": counts.num_pairs,
        "only_first": counts.first_only,
        "only_second": counts.second_only,
        "both": counts.both,
        "neither": counts.neither,
    }
