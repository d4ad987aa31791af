"""Steps of a datatrove pipeline that make a store: its shards in many tasks, then its manifest.

Needs datatrove, the extra `cluster`.
"""

import logging
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import multiprocess
import torch
from datatrove.pipeline.base import PipelineStep

from lerobot_motion.extraction.build import fetch, finish_store
from lerobot_motion.extraction.extract import Extraction, make_shards
from lerobot_motion.extraction.recordings import Recordings, open_dataset
from lerobot_motion.extraction.settings import check_dataset, check_networks
from lerobot_motion.extraction.store_directory import LOCK, locked, missing_shards, read_settings
from lerobot_motion.extraction.targets import Compute, usable_device
from lerobot_motion.latent_store import Shard

logger = logging.getLogger(__name__)

_WATCHER = "end with launcher"


@dataclass(frozen=True)
class Work:
    """What a task has to know to work on a store that was begun; small, it travels to machines.

    Attributes:
        store: Directory of the store, absolute; its settings stand there.
        repo_id: Repository of the dataset.
        root: Its folder, absolute, or None for LeRobot's cache.
        revision: Its revision on the Hub, or None for LeRobot's choice.
        tolerance_s: By how much the time of a video frame may be off, in seconds.
        video_backend: LeRobot's video decoder, or None for its choice.
        compute: How the targets are computed, but for the device.
        device: Device that was asked for, or None for what a task's machine has.
        threads: Threads of a task at most, or None for no limit.
    """

    store: Path
    repo_id: str
    root: str | None
    revision: str | None
    tolerance_s: float
    video_backend: str | None
    compute: Compute
    device: str | None = None
    threads: int | None = None

    def open(self, rank: int = 0) -> Extraction:
        """Open the store where a task runs.

        Args:
            rank: Number of the task; tasks that see several GPUs spread over them.

        Raises:
            ValueError: If the dataset or a network is not that of the store, or the device is not
                there.
            OSError: If something cannot be read.
        """
        settings = read_settings(self.store)
        if settings is None:
            raise FileNotFoundError(
                f"no latent store at {self.store}: it must lie where all machines see it under the "
                "same path. Name such a directory with --output."
            )
        compute = replace(self.compute, device=usable_device(self._device_of(rank)))
        meta = open_dataset(self.repo_id, self.root, self.revision)
        recordings = Recordings(meta, settings.camera, self.tolerance_s, self.video_backend)
        check_dataset(settings, recordings)
        check_networks(settings, compute)
        return Extraction(self.store, settings, recordings, compute)

    def _device_of(self, rank: int) -> str | None:
        """The device that a task is to use: of several GPUs only its own is ever touched."""
        if self.device in {None, "cuda"} and torch.cuda.is_available():
            return f"cuda:{rank % torch.cuda.device_count()}"
        return self.device


class MakeShards(PipelineStep):
    """Makes a range of shards, those that are still missing."""

    name = "motion targets"
    type = "lerobot_motion"

    def __init__(self, work: Work, files: Sequence[str]) -> None:
        """Divide shards among tasks.

        Args:
            work: The store.
            files: The shards that were missing when the tasks were launched, by their files.
        """
        super().__init__()
        self.work = work
        self.files = list(files)

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Any:
        """Make the shards of a task; see datatrove's `PipelineStep.run`.

        Raises:
            ValueError: If a frame cannot be used, or the machine has another dataset or network.
            OSError: If something cannot be read or written.
        """
        own = set(share_of(self.files, rank, world_size))
        if not own:
            return data
        end_with_launcher()
        with at_most_threads(self.work.threads):
            extraction = self.work.open(rank)
            shards = [shard for shard in extraction.shards if shard.file in own]
            missing = missing_shards(extraction.store, extraction.settings, shards)
            if missing:
                fetch(extraction, missing)
                make_shards(extraction, missing, self._count)
        return data

    def _count(self, num_frames: int) -> None:
        self.stat_update("frames", value=num_frames)


class CloseStore(PipelineStep):
    """Checks that a store is complete, draws its contact sheet and writes its manifest."""

    name = "manifest"
    type = "lerobot_motion"

    def __init__(self, work: Work) -> None:
        """Name the store.

        Args:
            work: The store.
        """
        super().__init__()
        self.work = work

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Any:
        """Finish the store; see datatrove's `PipelineStep.run`.

        Raises:
            ValueError: If a shard is missing or damaged.
            OSError: If something cannot be read or written.
        """
        if rank == 0:
            with locked(self.work.store):
                finish_store(self.work.open())
                (self.work.store / LOCK).unlink(missing_ok=True)
        return data


def share_of(files: Sequence[str], rank: int, world_size: int) -> Sequence[str]:
    """A task's share of shards: consecutive ones, as many as any other task's or one more.

    Args:
        files: All shards.
        rank: Number of the task.
        world_size: Number of tasks.
    """
    return files[rank * len(files) // world_size : (rank + 1) * len(files) // world_size]


def shard_files(shards: Sequence[Shard]) -> list[str]:
    """Files of shards."""
    return [shard.file for shard in shards]


@contextmanager
def at_most_threads(number: int | None) -> Iterator[None]:
    """Within this context PyTorch and OpenCV use a part of the machine.

    Args:
        number: Threads, or None for no limit.
    """
    before = torch.get_num_threads(), cv2.getNumThreads()
    if number is not None:
        torch.set_num_threads(min(before[0], number))
        cv2.setNumThreads(min(before[1], number))
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])


def end_with_launcher() -> None:
    """End this process when the one that launched it is gone, even if that was killed.

    Its lock is free then: another run may be at the store.
    """
    launcher = multiprocess.parent_process()
    watched = any(thread.name == _WATCHER for thread in threading.enumerate())
    if launcher is None or watched:  # the launcher itself, or a further task of this process
        return

    def wait() -> None:
        launcher.join()
        os._exit(1)

    threading.Thread(target=wait, name=_WATCHER, daemon=True).start()
