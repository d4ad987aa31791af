"""Peak memory of lerobot-motion-precompute on data sets of two lengths: it must not grow."""

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from harness import Findings, PeakMemory
from reporting import Table, megabytes
from synthetic import REPO_ID, write_dataset

CAMERA_SIZE = (64, 64)
EPISODE_FRAMES = 250
# A shard is kept in memory until it is written: even the short data set must fill some.
SHARD_FRAMES = 250
NUM_WORKERS = 2


@dataclass(frozen=True)
class MemoryOptions:
    """What is measured.

    Attributes:
        short: Frames of the short data set.
        long: Frames of the long one.
        device: Device of the networks.
    """

    short: int
    long: int
    device: str


def measure_memory(options: MemoryOptions, folder: Path) -> Findings:
    """Run the command on both data sets, each in a fresh process.

    Args:
        options: What is measured.
        folder: Where to write.

    Raises:
        ValueError: If a run fails.
        OSError: If something cannot be written.
    """
    peaks = {
        frames: _peak_memory(frames, options.device, folder)
        for frames in (options.short, options.long)
    }
    growth = peaks[options.long] - peaks[options.short]
    share = growth / peaks[options.short]
    rows = [[str(frames), megabytes(peak)] for frames, peak in peaks.items()]
    return Findings(
        title=f"extraction, memory, {options.device}",
        settings={
            "camera": "{}x{}".format(*CAMERA_SIZE),
            "estimator": "dis",
            "vae": "pool",
            "workers": NUM_WORKERS,
            "shard_frames": SHARD_FRAMES,
        },
        tables=[Table(["frames", "peak memory"], rows)],
        notes=[
            "Resident memory of the command and its workers, pages that they share counted once "
            f"for each. The longer run takes {growth / 1e6:+.0f} MB ({share:+.1%})."
        ],
        raw={"peak_bytes": {str(frames): peak for frames, peak in peaks.items()}},
    )


def _peak_memory(frames: int, device: str, folder: Path) -> int:
    root = folder / f"frames_{frames}"
    if not root.exists():
        write_dataset(root, num_frames=frames, episode_frames=EPISODE_FRAMES, size=CAMERA_SIZE)
    with tempfile.TemporaryDirectory(dir=folder) as output:
        command = [
            sys.executable,
            "-c",
            "import sys; from lerobot_motion.cli.precompute import main; sys.exit(main())",
            f"--dataset.repo_id={REPO_ID}",
            f"--dataset.root={root}",
            "--horizon=10",
            "--image_resolution=[64,64]",
            "--flow_estimator=dis",
            "--vae=pool",
            f"--num_workers={NUM_WORKERS}",
            f"--shard_frames={SHARD_FRAMES}",
            f"--device={device}",
            f"--output={output}",
        ]
        return _run_and_watch(command)


def _run_and_watch(command: list[str]) -> int:
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        ) as process,
        PeakMemory(process.pid) as memory,
    ):
        if process.wait() != 0:
            errors.seek(0)
            raise ValueError(f"lerobot-motion-precompute failed:\n{errors.read()[-2000:]}")
    return memory.peak
