"""Every benchmark at its smallest, as users run it."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from commands import environment
from tiny import REPOSITORY

SMALLEST = ("--device=cpu", "--rounds=2", "--warmup=0")


def run_benchmark(name: str, *flags: str, tmp_path: Path) -> dict[str, Any]:
    """Run a benchmark in a fresh process; returns its report."""
    output = tmp_path / "report.json"
    script = REPOSITORY / "benchmarks" / f"{name}.py"
    result = subprocess.run(
        [sys.executable, str(script), *flags, f"--output={output}"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=tmp_path,
        env=environment(tmp_path),
    )
    assert result.returncode == 0, result.stderr
    report: dict[str, Any] = json.loads(output.read_text())
    assert report["command"].startswith(f"python benchmarks/{name}.py --device=cpu")
    assert str(tmp_path) not in result.stdout
    return report


def test_host(tmp_path: Path) -> None:
    report = run_benchmark("host", *SMALLEST, "--times=3", tmp_path=tmp_path)

    # Which is faster, a busy machine does not tell: tests/unit/joint/test_modes.py counts flags.
    setting = {f"{policy}, setting all flags" for policy in ("motion_pi0", "motion_pi05")}
    assert report["raw"].keys() == {"queued action", "training mode"}
    for rates in report["raw"].values():
        assert rates.keys() == {"pi0", "pi05", "motion_pi0", "motion_pi05", *setting}
        assert min(min(figures) for figures in rates.values()) > 0


def test_extraction(tmp_path: Path) -> None:
    sizes = ("--frames=24", "--episode_frames=12", "--camera_size=[32,48]", "--horizon=4")
    amounts = ("--image_resolution=[64,64]", "--plain_pairs=4", "--num_workers=1", "--vae=flow")
    report = run_benchmark("extraction", *SMALLEST, *sizes, *amounts, tmp_path=tmp_path)

    rates = report["raw"]["pairs_per_s"]
    assert {name: len(figures) for name, figures in rates.items()} == {
        "plain loop": 2,
        "lerobot-motion-precompute": 2,
    }
    assert min(min(figures) for figures in rates.values()) > 0
    assert report["settings"]["pairs"] == 2 * (12 - 4)
    stages = report["raw"]["stage_seconds"]
    assert {"decode", "letterbox", "flow", "encode", "write"} < stages.keys()
    assert min(stages[name] for name in ("decode", "letterbox", "flow", "encode", "write")) > 0


def test_extraction_memory(tmp_path: Path) -> None:
    flags = ("--memory=true", "--memory_frames=[20,40]")
    report = run_benchmark("extraction", *SMALLEST, *flags, tmp_path=tmp_path)

    peaks = report["raw"]["peak_bytes"]
    assert peaks.keys() == {"20", "40"}
    # Python with PyTorch and LeRobot, at the least.
    assert min(peaks.values()) > 200e6


def test_dataloading(tmp_path: Path) -> None:
    sizes = ("--frames=24", "--episode_frames=12", "--camera_size=[32,48]", "--horizon=4")
    amounts = ("--batch_size=2", "--num_workers=1", "--batches=2")
    report = run_benchmark("dataloading", *SMALLEST, *sizes, *amounts, tmp_path=tmp_path)

    (table,) = report["tables"]
    names = ["pi0", "motion_pi0 from a store", "motion_pi0 on the fly (dis)"]
    assert [row[0] for row in table["rows"]] == names
    assert table["rows"][0][2] == "1.00 (1.00–1.00)"
    stock, store, on_the_fly = report["raw"]["preprocessor_ms_per_sample"].values()
    assert 0 < stock["median"] < on_the_fly["median"]
    assert store["median"] < on_the_fly["median"]
    assert all(re.fullmatch(r"[\d.]+ \([\d.]+–[\d.]+\)", row[1]) for row in table["rows"])


def test_training(tmp_path: Path) -> None:
    sizes = ("--frames=16", "--episode_frames=8", "--camera_size=[32,48]", "--horizon=4")
    amounts = ("--batch_size=2", "--num_workers=0", "--batches=1", "--rounds=1", "--warmup=0")
    flags = ("--device=cpu", *sizes, *amounts)
    report = run_benchmark("training", *flags, tmp_path=tmp_path)

    (table,) = report["tables"]
    stock, ours, *_ = rows = {row[0]: row for row in table["rows"]}.values()
    assert (stock[0], ours[0]) == ("pi0", "motion_pi0")
    assert len(rows) == 9
    for row in rows:
        assert all(float(milliseconds) > 0 for milliseconds in row[3:7])
    kept = {row[0]: int(row[7].removesuffix(" MB")) for row in rows}
    assert kept["pi0"] < kept["motion_pi0, sdpa"] < kept["motion_pi0"]
    assert kept["motion_pi0, warm-up"] < kept["motion_pi0"]


def test_regimes(tmp_path: Path) -> None:
    flags = ("--device=cpu", "--size=tiny", "--regimes=[warm-up,LoRA]", "--dtype=bfloat16")
    report = run_benchmark("regimes", *flags, "--policy=motion_pi05", tmp_path=tmp_path)

    sizes, _ = report["tables"]
    names = ["motion_pi05, warm-up", "motion_pi05, LoRA", "pi05, LoRA"]
    assert [row[0] for row in sizes["rows"]] == names
    warmup, adapters, stock = report["raw"]["computed"]
    # The head alone learns, in float32: its gradient, two moments, and a few counters.
    assert warmup["gradients"] == 4 * warmup["num_learning"]
    assert 0 < warmup["optimizer"] - 2 * warmup["gradients"] < 4_000
    assert warmup["weights"] < adapters["weights"]
    assert stock["trainable"]["motion head"] == 0 < stock["trainable"]["action expert"]
