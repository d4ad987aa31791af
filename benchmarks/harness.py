"""What all benchmarks share: their command line, fair repetition, clocks and memory gauges."""

import datetime
import logging
import shlex
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import draccus
import psutil
import torch
from draccus.utils import DraccusException
from machine import this_machine
from reporting import Report, Table, add_to_results

logger = logging.getLogger(__name__)

SIZES = ("tiny", "full")
# Time between two looks at the memory of a process and its children, in seconds.
_MEMORY_INTERVAL_S = 0.05
# Where files lie is nobody's business.
_UNPUBLISHED = ("--output", "--results", "--work_dir")


@dataclass
class BenchmarkArguments:
    """Flags of every benchmark."""

    # tiny: two cores and minutes. full: a GPU, at the sizes of real use.
    size: str = "tiny"
    # Device of the networks. null: cuda if there is one, else cpu.
    device: str | None = None
    # Timed rounds; in each, every variant runs once, in turn. null: what the size says.
    rounds: int | None = None
    # Rounds before them that are not counted.
    warmup: int = 1
    # JSON file for the report. null: none.
    output: Path | None = None
    # Markdown file (benchmarks/RESULTS.md) to put the report into. null: it is only printed.
    results: Path | None = None
    # Folder for data sets and stores, kept afterwards. null: a temporary one.
    work_dir: Path | None = None


@dataclass(frozen=True)
class Findings:
    """What a benchmark found; see `Report` for the attributes."""

    title: str
    settings: dict[str, Any]
    tables: list[Table]
    notes: list[str]
    raw: dict[str, Any]


def fill(args: BenchmarkArguments, sizes: Mapping[str, Mapping[str, Any]]) -> None:
    """Fill the flags that were left at null with the values of the size.

    Args:
        args: The command line.
        sizes: Values by flag, for each size.

    Raises:
        ValueError: If the size is unknown, or there is less than a round.
    """
    if args.size not in SIZES:
        raise ValueError(f"size must be one of {SIZES}, got {args.size!r}.")
    for name, value in sizes[args.size].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if (args.rounds or 0) < 1 or args.warmup < 0:
        raise ValueError(
            f"there must be at least 1 round and no negative warmup, got {args.rounds} and "
            f"{args.warmup}."
        )


def main[Arguments: BenchmarkArguments](
    arguments: type[Arguments],
    benchmark: Callable[[Arguments, Path], Findings],
    argv: Sequence[str] | None = None,
) -> int:
    """Run a benchmark from its command line: print its report, and write it where asked to.

    Args:
        arguments: Class of the command line.
        benchmark: Called with the command line and a folder to work in.
        argv: Arguments, or None for those of the process.

    Returns:
        Exit status: 0, 1 for an error, 2 for a wrong command line.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    try:
        args = draccus.parse(arguments, args=given)
    except DraccusException as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    logging.basicConfig(level="WARNING", format="%(levelname)s %(message)s")
    try:
        with _work_dir(args.work_dir) as folder:
            _publish(args, benchmark(args, folder), _command(sys.argv[0], given))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except torch.OutOfMemoryError as error:
        message = str(error).splitlines()[0]
        print(f"error: {message} Try a smaller --batch_size.", file=sys.stderr)
        return 1
    return 0


def _publish(args: BenchmarkArguments, found: Findings, command: str) -> None:
    report = Report(
        date=datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        command=command,
        machine=this_machine(),
        **{part.name: getattr(found, part.name) for part in fields(found)},
    )
    print(f"## {report.section}\n\n### {report.title}\n\n{report.markdown()}")
    if args.output is not None:
        report.save(args.output)
    if args.results is not None:
        text = args.results.read_text() if args.results.is_file() else ""
        args.results.write_text(add_to_results(text, report))


def _command(script: str, given: Sequence[str]) -> str:
    published = [part for part in given if not part.startswith(_UNPUBLISHED)]
    return shlex.join(["python", f"benchmarks/{Path(script).name}", *published])


@contextmanager
def _work_dir(path: Path | None) -> Iterator[Path]:
    if path is not None:
        path.mkdir(parents=True, exist_ok=True)
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="benchmark_") as folder:
        yield Path(folder)


# --- time ---


@dataclass
class Clock:
    """Seconds that passed in a `timed` context, known at its end."""

    seconds: float = 0.0


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has done all that it was asked to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def timed(device: torch.device) -> Iterator[Clock]:
    """Within this context time is taken, from an idle device to an idle device.

    Args:
        device: Device of the networks.
    """
    clock = Clock()
    synchronize(device)
    start = time.perf_counter()
    yield clock
    synchronize(device)
    clock.seconds = time.perf_counter() - start


class Stopwatch:
    """Adds up the time spent in functions, from an idle device to an idle device."""

    def __init__(self, device: torch.device) -> None:
        """Start at zero.

        Args:
            device: Device of the networks.
        """
        self.device = device
        self.seconds: dict[str, float] = {}

    def watch(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a function so that its time is added to a name's."""

        def watched(*args: Any, **kwargs: Any) -> Any:
            with timed(self.device) as clock:
                result = function(*args, **kwargs)
            self.seconds[name] = self.seconds.get(name, 0.0) + clock.seconds
            return result

        return watched


# --- memory ---


class PeakMemory:
    """Watches the resident memory of a process and its children, from a thread of its own."""

    def __init__(self, pid: int | None = None) -> None:
        """Prepare to watch.

        Args:
            pid: The process, or None for this one.
        """
        self.process = psutil.Process(pid)
        self.peak = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "PeakMemory":
        """Begin to watch."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop watching; `peak` holds the largest sum, in bytes."""
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            self.peak = max(self.peak, resident_memory(self.process))
            if self._done.wait(_MEMORY_INTERVAL_S):
                return


def resident_memory(process: psutil.Process) -> int:
    """Resident memory of a process and its children, in bytes.

    Pages that they share count once for each, so that the sum is an upper bound.
    """
    total = 0
    try:
        for each in [process, *process.children(recursive=True)]:
            total += _resident(each)
    except psutil.NoSuchProcess:
        return 0
    return total


def _resident(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:  # it ended meanwhile
        return 0


# --- repetition ---


@dataclass(frozen=True)
class Outcome:
    """Figures of a variant.

    Attributes:
        rates: Of every timed round, what the variant returned.
        peak_memory: Largest resident memory of this process and its children, in bytes.
        peak_gpu_memory: Largest memory that was allocated on the GPU, in bytes, or None.
    """

    rates: list[float]
    peak_memory: int
    peak_gpu_memory: int | None


def interleave(
    variants: Mapping[str, Callable[[int], float]], rounds: int, warmup: int, device: torch.device
) -> dict[str, Outcome]:
    """Run variants in turn, round by round, so that what slows a machine down slows all of them.

    Every other round goes backwards. Before the timed rounds come those of the warm-up, and one in
    which memory is watched, since watching takes time.

    Args:
        variants: By name; called with the number of the round, each returns its rate.
        rounds: Timed rounds.
        warmup: Rounds that are not counted.
        device: Device of the networks.
    """
    for number in range(warmup):
        for variant in variants.values():
            variant(number)
    memory = {
        name: _memory_of(partial(variant, warmup), device) for name, variant in variants.items()
    }
    rates: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds):
        names = list(variants) if number % 2 == 0 else list(variants)[::-1]
        for name in names:
            rates[name].append(variants[name](warmup + 1 + number))
    return {name: Outcome(rates[name], *memory[name]) for name in variants}


def _memory_of(run: Callable[[], object], device: torch.device) -> tuple[int, int | None]:
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    with PeakMemory() as memory:
        run()
    return memory.peak, torch.cuda.max_memory_allocated(device) if on_gpu else None
