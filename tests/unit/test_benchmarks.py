from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import extraction
import machine
import pytest
import torch
from extraction import ExtractionArguments
from harness import BenchmarkArguments, Findings, PeakMemory, fill, interleave, main
from machine import Machine, require_memory, this_machine
from reporting import (
    Report,
    Table,
    add_to_results,
    number,
    paired_ratios,
    summarize,
    times_beside,
)
from synthetic import Scene, write_random_raft

from lerobot_motion.flow.estimator import load_flow_estimator

CPU = torch.device("cpu")
TITLE = "extraction, dis and pool, cpu"


def make_report(title: str = TITLE, cell: str = "12.0", gpu: str | None = None) -> Report:
    return Report(
        title=title,
        date="2026-01-02",
        command="python benchmarks/extraction.py --size=tiny",
        machine=Machine("A CPU", 2, 1, 24_000_000_000, gpu, {"torch": "2.7"}),
        settings={"frames": 8},
        tables=[Table(["", "pairs/s"], [["plain loop", cell]])],
        raw={"pairs_per_s": [12.0]},
    )


# --- statistics ---


def test_a_summary_is_the_median_with_its_spread() -> None:
    assert str(summarize([3.0, 1.0, 10.0])) == "3.00 (1.00–10.0)"
    assert summarize([4.0, 2.0]).median == 3.0
    with pytest.raises(ValueError, match="at least one figure"):
        summarize([])


def test_ratios_are_of_runs_side_by_side() -> None:
    # A machine that halves its speed after the first round changes no ratio.
    assert paired_ratios([20.0, 10.0], [10.0, 5.0]) == summarize([2.0])
    with pytest.raises(ValueError, match="in pairs, got 1 and 2"):
        paired_ratios([1.0], [1.0, 2.0])


def test_times_stand_beside_those_of_the_same_round() -> None:
    assert times_beside([100.0, 50.0], [50.0, 50.0]) == ["15.0 (10.0–20.0)", "0.750 (0.500–1.00)"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(1234.5, "1234"), (100.0, "100"), (12.34, "12.3"), (1.0, "1.00"), (0.12345, "0.123")],
)
def test_numbers_have_three_digits_that_count(value: float, text: str) -> None:
    assert number(value) == text


# --- repetition ---


def test_variants_run_in_turn_and_only_timed_rounds_count() -> None:
    calls: list[tuple[str, int]] = []

    def variant(name: str, rate: float) -> Callable[[int], float]:
        def run(round_number: int) -> float:
            calls.append((name, round_number))
            return rate + round_number

        return run

    outcomes = interleave(
        {"a": variant("a", 10.0), "b": variant("b", 20.0)}, rounds=2, warmup=1, device=CPU
    )

    assert calls == [
        *(("a", 0), ("b", 0)),  # warm-up
        *(("a", 1), ("b", 1)),  # memory
        *(("a", 2), ("b", 2)),
        *(("b", 3), ("a", 3)),
    ]
    assert outcomes["a"].rates == [12.0, 13.0]
    assert outcomes["b"].rates == [22.0, 23.0]
    assert outcomes["a"].peak_memory > 1e6
    assert outcomes["a"].peak_gpu_memory is None


def test_peak_memory_sees_what_was_freed_again() -> None:
    with PeakMemory() as small:
        pass
    with PeakMemory() as large:
        block = bytearray(200_000_000)
        large._done.wait(0.3)
        del block
    assert large.peak > small.peak + 150_000_000


# --- command line ---


def test_flags_left_open_are_filled_by_the_size() -> None:
    args = BenchmarkArguments(size="full")
    fill(args, {"tiny": {"rounds": 3}, "full": {"rounds": 7}})
    assert args.rounds == 7
    given = BenchmarkArguments(rounds=2)
    fill(given, {"tiny": {"rounds": 3}, "full": {"rounds": 7}})
    assert given.rounds == 2


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (BenchmarkArguments(size="huge"), r"size must be one of .*'huge'"),
        (BenchmarkArguments(rounds=0), "at least 1 round"),
        (BenchmarkArguments(warmup=-1), "no negative warmup"),
    ],
)
def test_a_wrong_command_line_is_refused(args: BenchmarkArguments, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fill(args, {"tiny": {"rounds": 3}, "full": {"rounds": 7}})


def test_what_was_found_is_printed_and_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def benchmark(args: BenchmarkArguments, folder: Path) -> Findings:
        assert folder.is_dir()
        return Findings("speed", {"size": args.size}, [Table(["", "n"], [["a", "1"]])], [], {})

    output, results = tmp_path / "report.json", tmp_path / "RESULTS.md"
    argv = ["--size=tiny", f"--output={output}", f"--results={results}"]

    assert main(BenchmarkArguments, benchmark, argv) == 0

    report = Report.load(output)
    assert report.command.endswith(" --size=tiny")
    assert results.read_text() == f"## {report.section}\n\n### speed\n\n{report.markdown()}\n"
    assert capsys.readouterr().out == results.read_text()


def test_an_error_is_one_message(capsys: pytest.CaptureFixture[str]) -> None:
    def benchmark(args: BenchmarkArguments, folder: Path) -> Findings:
        raise ValueError(f"nothing of size {args.size} in {folder.name[:9]}")

    assert main(BenchmarkArguments, benchmark, ["--size=full"]) == 1
    assert capsys.readouterr().err == "error: nothing of size full in benchmark\n"
    assert main(BenchmarkArguments, benchmark, ["--rounds=many"]) == 2


# --- the machine ---


def test_a_full_size_run_is_refused_before_anything_is_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(extraction, "free_memory", lambda _: 8_000_000_000)
    needed = extraction.needed_bytes(
        ExtractionArguments(flow_estimator="raft_large", vae="sdxl", batch_size=128)
    )
    assert needed > 40e9
    with pytest.raises(
        ValueError,
        match=rf"--size=full needs {needed} bytes .* of cpu's memory, 8000000000 bytes",
    ):
        extraction.benchmark(ExtractionArguments(size="full", device="cpu"), tmp_path)
    assert not any(tmp_path.iterdir())


def test_what_fits_is_not_refused() -> None:
    require_memory(10, 10, "full", "main memory")


def test_an_absent_device_is_refused() -> None:
    with pytest.raises(ValueError, match="device 'nonsense' cannot be used"):
        machine.choose_device("nonsense")


def test_a_machine_is_named_by_its_parts() -> None:
    name = this_machine().name
    assert f", {this_machine().cores} cores, " in name
    assert make_report(gpu="H200").machine.name == "A CPU, 2 cores, 24 GB, H200"


# --- reports ---


def test_a_report_survives_json(tmp_path: Path) -> None:
    make_report().save(tmp_path / "a" / "report.json")
    assert Report.load(tmp_path / "a" / "report.json") == make_report()


@pytest.mark.parametrize("content", ["{", "[]", '{"machine": {}}'])
def test_what_is_no_report_is_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text(content)
    with pytest.raises(ValueError, match="is not a benchmark's report"):
        Report.load(path)


def test_a_table_in_markdown() -> None:
    table = Table(["", "pairs/s"], [["plain loop", "12"]])
    assert table.markdown() == "|  | pairs/s |\n| --- | ---: |\n| plain loop | 12 |"
    with pytest.raises(ValueError, match=r"must have 1 columns, got \['a', 'b'\]"):
        Table(["one"], [["a", "b"]]).markdown()


def test_results_gather_reports_by_machine_and_title() -> None:
    introduction = "# Measured speed\n\nHow it was measured.\n"
    once = add_to_results(introduction, make_report())
    assert once.startswith(introduction)
    assert once.count("## A CPU, 2 cores, 24 GB, no GPU, 2026-01-02\n") == 1
    assert "| plain loop | 12.0 |" in once
    assert add_to_results(once, make_report()) == once

    again = add_to_results(once, make_report(cell="13.0"))
    assert "12.0" not in again
    assert "| plain loop | 13.0 |" in again

    other = add_to_results(again, make_report(title="dataloading, cpu"))
    assert other.count("\n## ") == 1
    assert other.count("\n### ") == 2

    elsewhere = add_to_results(other, make_report(gpu="H200"))
    assert elsewhere.startswith(other.strip())
    assert elsewhere.count("\n## ") == 2


def test_a_later_day_gets_its_own_section() -> None:
    first = add_to_results("", make_report())
    later = add_to_results(first, replace(make_report(), date="2026-01-03"))
    assert later.count("## A CPU") == 2


# --- what is measured ---


def test_a_scene_moves() -> None:
    scene = Scene((48, 64), seed=0)
    first, second = scene.frame(0), scene.frame(1)
    assert first.shape == (48, 64, 3)
    assert (first != second).mean() > 0.5
    assert (scene.frame(0) == first).all()


def test_random_weights_give_a_finite_flow(tmp_path: Path) -> None:
    weights = write_random_raft("raft_small", tmp_path / "raft.safetensors")
    images = torch.rand(2, 1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    flow = load_flow_estimator("raft_small", str(weights))(images[0], images[1])
    assert flow.shape == (1, 2, 128, 128)
    assert flow.isfinite().all()
