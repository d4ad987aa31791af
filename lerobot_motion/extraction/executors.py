"""A store made by datatrove's executors: on this machine, on a Slurm cluster, or with Ray.

Needs datatrove, the extra `cluster`.
"""

import importlib.util
import inspect
import logging
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import multiprocess
from datatrove.executor import (
    LocalPipelineExecutor,
    RayPipelineExecutor,
    SlurmPipelineExecutor,
)
from datatrove.pipeline.base import PipelineStep
from datatrove.utils.logging import logger as datatrove_logger

from lerobot_motion.extraction.build import build_store
from lerobot_motion.extraction.extract import Extraction
from lerobot_motion.extraction.store_directory import (
    LOCK,
    TASKS,
    begin,
    check_owner,
    is_complete,
    locked,
    missing_shards,
)
from lerobot_motion.extraction.tasks import CloseStore, MakeShards, Work, shard_files
from lerobot_motion.latent_store import Shard

logger = logging.getLogger(__name__)

# What this module sets itself. Completed tasks are not skipped: their shards may have gone since.
_OWN_OPTIONS = {"self", "pipeline", "tasks", "workers", "logging_dir", "skip_completed", "depends"}
_POLL_S = 0.5
# Makes PyTorch ask NVML, not CUDA, whether there is a GPU (its notes on multiprocessing). diffusers
# asks when it is imported, and a process that has asked CUDA is no parent for one that uses it.
_ASK_NVML = "PYTORCH_NVML_BASED_CUDA_CHECK"


class _LocalExecutor(LocalPipelineExecutor):
    """datatrove's, whose tasks do not write into the progress bar."""

    def _run_for_rank(self, rank: int, local_rank: int = 0, node_rank: int = -1) -> Any:
        datatrove_logger.disable("datatrove")
        return super()._run_for_rank(rank, local_rank, node_rank)


EXECUTORS: dict[str, type[Any]] = {
    "local": LocalPipelineExecutor,
    "slurm": SlurmPipelineExecutor,
    "ray": RayPipelineExecutor,
}


@dataclass(frozen=True)
class Launch:
    """How tasks are run.

    Attributes:
        executor: One of `EXECUTORS`.
        tasks: Number of tasks.
        workers: Tasks that run at once.
        options: Further options of datatrove's executor.
        logging_dir: Folder of its logs, or None for one of ours.
    """

    executor: str
    tasks: int
    workers: int
    options: dict[str, Any] = field(default_factory=dict)
    logging_dir: Path | None = None

    def __post_init__(self) -> None:
        """Validate.

        Raises:
            ValueError: If something is out of range or unknown, or Ray is not installed.
        """
        if self.executor not in EXECUTORS:
            raise ValueError(f"executor must be one of {tuple(EXECUTORS)}, got {self.executor!r}.")
        if self.tasks < 1 or self.workers < 1:
            raise ValueError(
                f"tasks and workers must be at least 1, got {self.tasks} and {self.workers}."
            )
        parameters = inspect.signature(self._class.__init__).parameters
        valid = sorted(set(parameters) - _OWN_OPTIONS)
        unknown = sorted(set(self.options) - set(valid))
        if unknown:
            raise ValueError(
                f"executor_options: {self._class.__name__} has no {', '.join(unknown)}; it has "
                f"{', '.join(valid)}."
            )
        required = [
            name
            for name in valid
            if parameters[name].default is inspect.Parameter.empty and name not in self.options
        ]
        if required:
            raise ValueError(
                f"executor_options: {self._class.__name__} needs {' and '.join(required)}, as in "
                "--executor_options='{time: \"04:00:00\", partition: gpu}'."
            )
        if self.executor == "slurm" and not isinstance(self.options["time"], str):
            raise ValueError(
                f'executor_options: time must be in quotes, as in {{time: "24:00:00"}}; without '
                f"them YAML reads a number, {self.options['time']}."
            )
        if self.executor == "ray" and importlib.util.find_spec("ray") is None:
            raise ValueError("executor=ray needs Ray, which is not installed. Run: pip install ray")

    @property
    def _class(self) -> type[Any]:
        return EXECUTORS[self.executor]

    @property
    def elsewhere(self) -> bool:
        """Whether tasks run on other machines than this."""
        return self.executor != "local"

    @property
    def cores_per_task(self) -> int:
        """Cores that a task may use."""
        if self.elsewhere:
            return int(self.options.get("cpus_per_task", 1))
        return max(1, (os.cpu_count() or 1) // self.workers)

    @property
    def threads(self) -> int | None:
        """Threads of a task at most; elsewhere the cluster sees to it."""
        return None if self.elsewhere else self.cores_per_task

    def build(self, pipeline: list[PipelineStep], logging_dir: Path, **settings: Any) -> Any:
        """Build datatrove's executor.

        Args:
            pipeline: Steps of a task.
            logging_dir: Folder of its logs.
            settings: Replaces tasks, workers and options.
        """
        build = _LocalExecutor if self.executor == "local" else self._class
        return build(
            **{
                "pipeline": pipeline,
                "tasks": self.tasks,
                "workers": self.workers,
                "logging_dir": str(logging_dir),
                "skip_completed": False,
                **self.options,
                **settings,
            }
        )


def build_with_tasks(extraction: Extraction, work: Work, launch: Launch) -> int:
    """Make what is missing of a store by tasks, and wait for them.

    This process holds the store's lock; tasks do not ask for it. They write each a range of shards.

    Args:
        extraction: The store.
        work: The same for tasks.
        launch: How they are run, local or ray.

    Returns:
        The number of frames that were missing.

    Raises:
        ValueError: If the directory holds something else, a frame cannot be used, or shards are
            missing in the end.
        OSError: If something cannot be read or written, or another process makes the store.
    """

    def make(missing: Sequence[Shard], progress: Callable[[int], object]) -> None:
        if not missing:
            return
        for shard in missing:  # what there is of them is damaged
            (work.store / shard.file).unlink(missing_ok=True)
        executor = launch.build(
            [MakeShards(work, shard_files(missing))], launch.logging_dir or work.store / TASKS
        )
        with _quiet(), _watched(work.store, missing, progress), _clean_processes(launch.workers):
            executor.run()

    return build_store(extraction, make)


def submit_tasks(extraction: Extraction, work: Work, launch: Launch) -> str | None:
    """Submit jobs to Slurm: one that makes what is missing of a store, one that closes it then.

    Args:
        extraction: The store.
        work: The same for tasks.
        launch: How they are run, slurm.

    Returns:
        What was submitted, for a person to read, or None if the store is complete.

    Raises:
        ValueError: If the directory holds something else.
        OSError: If it cannot be written, another process makes the store, or Slurm is not there.
    """
    store, settings = extraction.store, extraction.settings
    check_owner(store, settings)
    if is_complete(store):
        return None
    with locked(store):
        begin(store, settings)
        missing = missing_shards(store, settings, extraction.shards)
        (store / LOCK).unlink(missing_ok=True)
    logs = launch.logging_dir or _new_logging_dir(settings.fingerprint)
    name = launch.options.get("job_name", "motion_targets")
    make = launch.build(
        [MakeShards(work, shard_files(missing))], logs.absolute() / "shards", job_name=name
    )
    close = launch.build(
        [CloseStore(work)],
        logs.absolute() / "close",
        job_name=f"{name}_close",
        tasks=1,
        workers=1,
        depends=make,
    )
    with _quiet():
        _run_sbatch(close)
    return (
        f"job {make.job_id}: {len(missing)} shards in {launch.tasks} tasks\n"
        f"job {close.job_id}: the manifest, after them\n"
        f"logs: {logs.absolute()}"
    )


def _new_logging_dir(fingerprint: str) -> Path:
    """A folder of its own for every launch, beside what LeRobot writes."""
    return Path("outputs", "motion_tasks", fingerprint[:12], time.strftime("%Y-%m-%d_%H-%M-%S"))


def _run_sbatch(executor: Any) -> None:
    try:
        executor.run()
    except FileNotFoundError as error:
        raise OSError(
            f"executor=slurm: {error.filename} was not found. Run the command where jobs are "
            "submitted."
        ) from error
    except subprocess.CalledProcessError as error:
        raise OSError(f"executor=slurm: sbatch refused the job ({error}); see above.") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Within this context datatrove tells of its doings in its log files only."""
    datatrove_logger.disable("datatrove")
    try:
        yield
    finally:
        datatrove_logger.enable("datatrove")


@contextmanager
def _clean_processes(workers: int) -> Iterator[None]:
    """Within this context new processes are no copies of this one, of its threads, lock and GPU."""
    before, asks = multiprocess.get_start_method(allow_none=True), os.environ.get(_ASK_NVML)
    multiprocess.set_start_method("forkserver", force=True)
    os.environ[_ASK_NVML] = "1"
    if workers > 1:  # they share one import of PyTorch
        multiprocess.set_forkserver_preload(["__main__", MakeShards.__module__])
    try:
        yield
    finally:
        multiprocess.set_start_method(before, force=True)
        if asks is None:
            del os.environ[_ASK_NVML]
        else:
            os.environ[_ASK_NVML] = asks


@contextmanager
def _watched(
    store: Path, shards: Sequence[Shard], progress: Callable[[int], object]
) -> Iterator[None]:
    """Within this context shards count as progress once they are there."""
    stop = threading.Event()

    def watch() -> None:
        waiting, stopped = list(shards), False
        while waiting and not stopped:
            stopped = stop.wait(_POLL_S)
            there = {shard.file for shard in waiting if (store / shard.file).exists()}
            if there:
                progress(sum(shard.num_frames for shard in waiting if shard.file in there))
            waiting = [shard for shard in waiting if shard.file not in there]

    watcher = threading.Thread(target=watch, name="progress")
    watcher.start()
    try:
        yield
    finally:
        stop.set()
        watcher.join()
