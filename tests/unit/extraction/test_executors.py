import importlib.util
import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import dill
import pytest
from datatrove.executor import SlurmPipelineExecutor
from extractions import content_of, work_of

from lerobot_motion.extraction import tasks
from lerobot_motion.extraction.build import build_store
from lerobot_motion.extraction.executors import (
    _ASK_NVML,
    Launch,
    _clean_processes,
    build_with_tasks,
    submit_tasks,
)
from lerobot_motion.extraction.extract import Extraction
from lerobot_motion.extraction.store_directory import locked
from lerobot_motion.latent_store import LatentStore

# One worker does the tasks in this process; test_precompute_kill.py has several.
LOCAL = Launch("local", tasks=3, workers=1)
SLURM = Launch(
    "slurm",
    tasks=2,
    workers=1,
    options={
        "time": "04:00:00",
        "partition": "gpu",
        "gpus_per_task": 1,
        "cpus_per_task": 8,
        "sbatch_args": {"account": "robots"},
    },
)


def build_locally(extraction: Extraction, launch: Launch = LOCAL) -> int:
    return build_with_tasks(extraction, work_of(extraction), launch)


# --- local ---


def test_the_result_is_that_of_one_process(extraction: Extraction, tmp_path: Path) -> None:
    whole = replace(extraction, store=tmp_path / "whole")
    build_store(whole)

    assert build_locally(extraction) == 48

    assert content_of(extraction.store) == content_of(whole.store)


def test_shards_that_went_are_made_again(extraction: Extraction, writes: list[str]) -> None:
    """Also by tasks that datatrove had marked as completed."""
    launch = replace(LOCAL, logging_dir=extraction.store.parent / "logs")
    build_locally(extraction, launch)
    before = content_of(extraction.store)
    (extraction.store / "shards" / "000000.safetensors").unlink()
    writes.clear()

    assert build_locally(extraction, launch) == 24

    assert writes == ["000000"]
    assert content_of(extraction.store) == before


def test_a_damaged_shard_is_made_again(extraction: Extraction, writes: list[str]) -> None:
    build_locally(extraction)
    before = content_of(extraction.store)
    (extraction.store / "shards" / "000001.safetensors").write_bytes(b"half")
    writes.clear()

    build_locally(extraction)

    assert writes == ["000001"]
    assert content_of(extraction.store) == before


def test_a_complete_store_is_left_alone(extraction: Extraction, writes: list[str]) -> None:
    build_locally(extraction)
    writes.clear()

    assert build_locally(extraction) == 0

    assert writes == []


def test_a_store_that_lacks_its_manifest_is_closed(
    extraction: Extraction, writes: list[str]
) -> None:
    build_locally(extraction)
    (extraction.store / "manifest.json").unlink()
    writes.clear()

    assert build_locally(extraction) == 0

    assert writes == []
    LatentStore(extraction.store).check_integrity()


def test_an_error_in_a_task_is_the_commands(
    extraction: Extraction, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise ValueError("frame 3 of episode 1 cannot be decoded")

    with monkeypatch.context() as patch:
        patch.setattr(tasks, "make_shards", fail)
        with pytest.raises(ValueError, match="frame 3 of episode 1 cannot be decoded"):
            build_locally(extraction)
    assert not (extraction.store / "manifest.json").exists()
    assert (extraction.store / ".tasks" / "logs").is_dir()

    assert build_locally(extraction) == 48

    assert not (extraction.store / ".tasks").exists()


def test_the_launcher_holds_the_lock(
    extraction: Extraction, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def try_to_lock(*_: Any) -> None:
        with pytest.raises(OSError, match="is being made by another process"):
            locked(extraction.store).__enter__()
        tried.append(True)

    monkeypatch.setattr(tasks, "make_shards", try_to_lock)

    with pytest.raises(ValueError, match="2 of 2 shards are missing"):
        build_locally(extraction)

    assert tried


def test_shards_count_as_progress_when_they_are_there(
    extraction: Extraction, capsys: pytest.CaptureFixture[str]
) -> None:
    build_locally(extraction)

    shown = capsys.readouterr().err
    assert re.search(r"100%.* 48/48 ", shown)
    assert "datatrove" not in shown


# --- options ---


@pytest.mark.parametrize("before", [None, "0"])
def test_what_tasks_are_forked_from_does_not_ask_cuda(
    before: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """tests/integration/test_precompute_command.py sees that a fork of it may then use a GPU."""
    monkeypatch.delenv(_ASK_NVML, raising=False)
    if before is not None:
        monkeypatch.setenv(_ASK_NVML, before)

    with _clean_processes(2):
        assert os.environ[_ASK_NVML] == "1"

    assert os.environ.get(_ASK_NVML) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("cloud", 1, 1), r"executor must be one of \('local', 'slurm', 'ray'\), got 'cloud'"),
        (("local", 0, 1), "tasks and workers must be at least 1, got 0 and 1"),
        (("local", 1, -1), "tasks and workers must be at least 1, got 1 and -1"),
        (
            ("local", 1, 1, {"partition": "gpu"}),
            "LocalPipelineExecutor has no partition; it has .*local_tasks, .*start_method",
        ),
        (("local", 1, 1, {"tasks": 4}), "LocalPipelineExecutor has no tasks"),
        (
            ("slurm", 1, 1, {"time": "1:00:00", "queue": "x"}),
            "SlurmPipelineExecutor has no queue; it has .*partition, ",
        ),
        (("slurm", 1, 1), "SlurmPipelineExecutor needs partition and time"),
        (
            ("slurm", 1, 1, {"time": 86400, "partition": "gpu"}),
            "time must be in quotes, .* a number, 86400",
        ),
    ],
)
def test_bad_options_are_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Launch(*arguments)


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray is installed")
def test_ray_must_be_installed() -> None:
    with pytest.raises(ValueError, match="executor=ray needs Ray, .* pip install ray"):
        Launch("ray", 1, 1)


def test_rays_executor_is_built_with_its_options(
    extraction: Extraction, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Only built: Ray is not run here."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    launch = Launch("ray", 4, 2, {"gpus_per_task": 1, "cpus_per_task": 6})

    executor = launch.build([tasks.MakeShards(work_of(extraction), [])], tmp_path)

    assert type(executor).__name__ == "RayPipelineExecutor"
    assert (executor.tasks, executor.workers, executor.gpus_per_task) == (4, 2, 1)
    assert executor.skip_completed is False
    assert (launch.elsewhere, launch.cores_per_task, launch.threads) == (True, 6, None)


def test_local_workers_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 16)

    assert Launch("local", 8, 3).threads == 5
    assert Launch("local", 8, 32).cores_per_task == 1


# --- slurm, without a scheduler ---


@pytest.fixture
def sbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[dict[str, str]]]:
    """Puts an `sbatch` on the path that notes what it is given; returns what it was given."""
    folder = tmp_path / "bin"
    folder.mkdir()
    command = folder / "sbatch"
    command.write_text(
        "#!/bin/sh\n"
        f'number=$(ls {folder} | grep -c script); file="{folder}/script$number"\n'
        'for last; do :; done\necho "$@" > "$file.args"; cp "$last" "$file"\n'
        'echo "Submitted batch job $((100 + number / 2))"\n'
    )
    nodes = folder / "scontrol"
    nodes.write_text("#!/bin/sh\necho node1\n")
    for path in (command, nodes):
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.chdir(tmp_path)

    def submitted() -> list[dict[str, str]]:
        return [
            {"script": path.read_text(), "arguments": path.with_suffix(".args").read_text()}
            for path in sorted(folder.glob("script*[0-9]"), key=lambda p: int(p.name[6:]))
        ]

    return submitted


def run_as_slurm(pickled: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """What `launch_pickled_pipeline` does in a job of Slurm's."""
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(number))
    monkeypatch.setenv("SLURM_NODELIST", "node1")
    monkeypatch.setenv("SLURM_JOB_ID", "100")
    with pickled.open("rb") as file:
        executor = dill.load(file)
    assert type(executor) is SlurmPipelineExecutor
    executor.run()
    monkeypatch.delenv("SLURM_ARRAY_TASK_ID")


def test_slurm_gets_a_job_of_tasks_and_one_that_waits_for_it(
    extraction: Extraction, sbatch: Callable[[], list[dict[str, str]]]
) -> None:
    text = submit_tasks(extraction, work_of(extraction), SLURM)

    jobs = {
        str(re.search(r"--job-name=(\w+)", job["script"])[1]): job  # type: ignore[index]
        for job in sbatch()
        if "launch_pickled_pipeline" in job["script"]
    }
    make, close = jobs["motion_targets"], jobs["motion_targets_close"]
    for line in (
        "--array=0-1%1",
        "--time=04:00:00",
        "--partition=gpu",
        "--gpus=1",
        "--cpus-per-task=8",
        "--account=robots",
    ):
        assert f"#SBATCH {line}\n" in make["script"]
    assert re.search(r"srun .*launch_pickled_pipeline \S+/shards/executor.pik\n", make["script"])
    assert "#SBATCH --array=0-0%1\n" in close["script"]
    assert "--dependency=afterok:100 " in close["arguments"]
    assert "--dependency" not in make["arguments"]
    assert text is not None
    assert "job 100: 2 shards in 2 tasks" in text
    assert re.search(r"job 10\d: the manifest, after them", text)
    assert (extraction.store / "settings.json").is_file()
    assert not (extraction.store / "manifest.json").exists()


def test_the_jobs_make_the_store(
    extraction: Extraction,
    sbatch: Callable[[], list[dict[str, str]]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    whole = replace(extraction, store=tmp_path / "whole")
    build_store(whole)
    logs = tmp_path / "logs"
    launch = replace(SLURM, logging_dir=logs)
    submit_tasks(extraction, work_of(extraction), launch)

    for number in range(2):
        run_as_slurm(logs / "shards" / "executor.pik", monkeypatch, number)
    run_as_slurm(logs / "close" / "executor.pik", monkeypatch, 0)

    assert content_of(extraction.store) == content_of(whole.store)
    assert submit_tasks(extraction, work_of(extraction), launch) is None


def test_every_launch_has_logs_of_its_own_outside_the_store(
    extraction: Extraction, sbatch: Callable[[], list[dict[str, str]]], tmp_path: Path
) -> None:
    text = submit_tasks(extraction, work_of(extraction), SLURM)

    assert text is not None
    logs = Path(text.rsplit("logs: ", 1)[1])
    assert logs.is_relative_to(tmp_path / "outputs" / "motion_tasks")
    described = json.loads((logs / "shards" / "executor.json").read_text())
    assert described["pipeline"][0]["files"] == [
        "shards/000000.safetensors",
        "shards/000001.safetensors",
    ]
    assert sorted(path.name for path in extraction.store.iterdir()) == ["settings.json", "shards"]


def test_without_slurm_the_error_says_so(
    extraction: Extraction, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)

    with pytest.raises(OSError, match="executor=slurm: sbatch was not found"):
        submit_tasks(extraction, work_of(extraction), SLURM)


def test_a_job_that_slurm_refuses_is_an_error(
    extraction: Extraction, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "sbatch").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.chdir(tmp_path)

    with pytest.raises(OSError, match="sbatch refused the job"):
        submit_tasks(extraction, work_of(extraction), SLURM)


def test_a_store_of_other_settings_is_refused(
    extraction: Extraction, sbatch: Callable[[], list[dict[str, str]]]
) -> None:
    build_store(extraction)
    other = replace(extraction, settings=replace(extraction.settings, horizon=7))

    with pytest.raises(ValueError, match="other settings: horizon: 5, not 7"):
        submit_tasks(other, work_of(other), SLURM)

    assert sbatch() == []
