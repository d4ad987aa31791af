"""What a benchmark found, as JSON and as Markdown tables; RESULTS.md is made of them.

python benchmarks/reporting.py --reports=[a.json,b.json] --results=benchmarks/RESULTS.md
"""

import json
import re
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import draccus
from machine import Machine


@dataclass(frozen=True)
class Summary:
    """Figures of repeated runs.

    Attributes:
        median: Their median.
        low: The smallest.
        high: The largest.
    """

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        """The median with its spread, for a table."""
        return f"{number(self.median)} ({number(self.low)}–{number(self.high)})"


def summarize(values: Sequence[float]) -> Summary:
    """Median, smallest and largest of repeated runs.

    Args:
        values: A figure for each run.

    Raises:
        ValueError: If there is none.
    """
    if not values:
        raise ValueError("there must be at least one figure to sum up, got none.")
    return Summary(statistics.median(values), min(values), max(values))


def paired_ratios(values: Sequence[float], baseline: Sequence[float]) -> Summary:
    """Sum up ratios of runs that were made in pairs, one right after the other.

    Args:
        values: A figure for each run.
        baseline: Of the run beside it, by which it is divided.

    Raises:
        ValueError: If the runs are not in pairs.
    """
    if len(values) != len(baseline):
        raise ValueError(f"runs must be in pairs, got {len(values)} and {len(baseline)}.")
    return summarize([value / base for value, base in zip(values, baseline, strict=True)])


def times_beside(rates: Sequence[float], baseline: Sequence[float]) -> list[str]:
    """Two cells of a table: the time of a run in milliseconds, and its ratio to another's.

    Args:
        rates: How often a second, for each run.
        baseline: Of the run beside it, by whose time its own is divided.

    Raises:
        ValueError: If there is none, or the runs are not in pairs.
    """
    milliseconds = summarize([1e3 / rate for rate in rates])
    return [str(milliseconds), str(paired_ratios(baseline, rates))]


def number(value: float) -> str:
    """Write a figure with three digits that count: 1234, 123, 12.3, 1.23, 0.123."""
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:#.3g}".rstrip(".")


def megabytes(value: int | None) -> str:
    """Write a number of bytes for a table; none is a dash."""
    return "–" if value is None else f"{value / 1e6:.0f} MB"


@dataclass(frozen=True)
class Table:
    """A table of a report.

    Attributes:
        columns: Titles; the first column is aligned to the left, the others to the right.
        rows: Texts, as many in a row as there are columns.
    """

    columns: list[str]
    rows: list[list[str]]

    def markdown(self) -> str:
        """The table in Markdown.

        Raises:
            ValueError: If a row is longer or shorter than the titles.
        """
        odd = [row for row in self.rows if len(row) != len(self.columns)]
        if odd:
            raise ValueError(f"rows must have {len(self.columns)} columns, got {odd[0]}.")
        rule = ["---", *["---:"] * (len(self.columns) - 1)]
        return "\n".join(f"| {' | '.join(row)} |" for row in [self.columns, rule, *self.rows])


@dataclass(frozen=True)
class Report:
    """What a benchmark found.

    Attributes:
        title: Names the benchmark and its variant; a later report of this title replaces it.
        date: Day of the run, ISO 8601.
        command: Command line that made it.
        machine: Where it ran.
        settings: What was run, after all defaults were settled.
        tables: The figures to publish.
        notes: Sentences that belong to them.
        raw: Every figure that was measured.
    """

    title: str
    date: str
    command: str
    machine: Machine
    settings: dict[str, Any]
    tables: list[Table]
    notes: list[str] = field(default_factory=list)
    raw: dict[str, Any] = field(default_factory=dict)

    @property
    def section(self) -> str:
        """Heading of the section of RESULTS.md that the report belongs to."""
        return f"{self.machine.name}, {self.date}"

    def markdown(self) -> str:
        """The report in Markdown, without its heading."""
        versions = ", ".join(f"{name} {value}" for name, value in self.machine.versions.items())
        settings = ", ".join(f"{name} {value}" for name, value in self.settings.items())
        parts = [
            f"```bash\n{self.command}\n```",
            *(table.markdown() for table in self.tables),
            *self.notes,
            f"Settings: {settings}. {self.machine.threads} threads of PyTorch; {versions}.",
        ]
        return "\n\n".join(parts)

    def save(self, path: Path) -> None:
        """Write the report as JSON.

        Args:
            path: The file.

        Raises:
            OSError: If it cannot be written.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=2, default=str) + "\n")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a report from JSON.

        Args:
            path: The file.

        Raises:
            OSError: If it cannot be read.
            ValueError: If it is not a report.
        """
        try:
            content = json.loads(path.read_text())
            parts = {
                "machine": Machine(**content["machine"]),
                "tables": [Table(**table) for table in content["tables"]],
            }
            return cls(**{**content, **parts})
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is not a benchmark's report ({error!r}).") from error


def add_to_results(results: str, report: Report) -> str:
    """Put a report into its section of RESULTS.md, in the place of an earlier one of its title.

    Args:
        results: The file's text.
        report: What was found.

    Returns:
        The new text.
    """
    preamble, *sections = _split(results, 2)
    bodies = dict(map(_heading_and_body, sections))
    introduction, *reports = _split(bodies.get(report.section, ""), 3)
    texts = dict(map(_heading_and_body, reports))
    texts[report.title] = report.markdown()
    bodies[report.section] = _join(introduction, texts, 3)
    return _join(preamble, bodies, 2) + "\n"


def _split(text: str, level: int) -> list[str]:
    """What comes before the first heading of a level, then each heading's text with it."""
    return [part.strip() for part in re.split(rf"^{'#' * level} ", text, flags=re.MULTILINE)]


def _heading_and_body(part: str) -> tuple[str, str]:
    heading, _, body = part.partition("\n")
    return heading.strip(), body.strip()


def _join(introduction: str, bodies: dict[str, str], level: int) -> str:
    parts = [f"{'#' * level} {heading}\n\n{body}" for heading, body in bodies.items()]
    return "\n\n".join(part for part in [introduction, *parts] if part)


@dataclass
class ReportingArguments:
    """Put reports of earlier runs, perhaps on other machines, into RESULTS.md."""

    # JSON files that benchmarks wrote (--output).
    reports: list[Path] = field(default_factory=list)
    # The file to put them into.
    results: Path = Path(__file__).with_name("RESULTS.md")


def main() -> None:
    """Run the command."""
    args = draccus.parse(ReportingArguments)
    for path in args.reports:
        text = args.results.read_text() if args.results.is_file() else ""
        args.results.write_text(add_to_results(text, Report.load(path)))


if __name__ == "__main__":
    main()
