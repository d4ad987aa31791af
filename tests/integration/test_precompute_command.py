"""`lerobot-motion-precompute` as users run it: whole, killed and continued."""

import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from commands import SCRIPTS, environment, run_python, succeed
from extractions import content_of
from runs import CAMERAS

from lerobot_motion.extraction.executors import _ASK_NVML
from lerobot_motion.latent_store import LatentStore

COMMAND = "lerobot-motion-precompute"
DEADLINE_S = 300
# What a process of --executor=local is forked from has imported this, and must not have asked CUDA
# for anything: its children could not use a GPU then. NVML is told to know one.
FORKED = """
import os, torch
torch.cuda._device_count_nvml = lambda: 1
import lerobot_motion.extraction.tasks
assert torch.cuda.is_available()
child = os.fork()
if not child:
    os._exit(torch.cuda._is_in_bad_fork())
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def flags(dataset: Path, output: Path) -> list[str]:
    """Both cameras, four shards each."""
    return [
        "--dataset.repo_id=tests/tiny",
        f"--dataset.root={dataset}",
        f"--camera={','.join(CAMERAS)}",
        "--horizon=4",
        "--image_resolution=[112,112]",
        "--flow_estimator=dis",
        "--flow_max_magnitude=auto",
        "--vae=flow",
        "--num_workers=2",
        "--shard_frames=1",
        f"--output={output}",
    ]


@pytest.fixture(scope="module")
def whole(dataset: Path, home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stores that were made without a stop."""
    output = tmp_path_factory.mktemp("whole")
    result = succeed(COMMAND, *flags(dataset, output), home=home)
    assert re.search(r"frames/s", result.stderr), "no progress bar"
    assert result.stdout.count("frames:   80, of which 16 masked at episode ends") == len(CAMERAS)
    return output


def test_every_frame_of_every_camera_has_its_target(whole: Path) -> None:
    for camera in CAMERAS:
        store = LatentStore(whole / camera)
        store.check_integrity()
        latent, valid = store.read(torch.arange(80))
        assert len(store.shards) == 4
        assert valid.reshape(4, 20).sum(dim=1).tolist() == [16] * 4
        assert latent[valid].flatten(1).std(dim=1).min() > 0.01
        assert (whole / camera / "contact_sheet.png").stat().st_size > 10_000


def test_a_killed_run_is_continued_to_the_same_bytes(
    whole: Path, dataset: Path, home: Path, tmp_path: Path
) -> None:
    command = [str(SCRIPTS / COMMAND), *flags(dataset, tmp_path)]
    first_store = tmp_path / CAMERAS[0]
    with subprocess.Popen(
        command, env=environment(home), cwd=home, stderr=subprocess.DEVNULL
    ) as process:
        wait_for(first_store / "shards" / "000001.safetensors", process)
        process.send_signal(signal.SIGKILL)
    assert not (first_store / "manifest.json").exists()

    succeed(COMMAND, *flags(dataset, tmp_path), home=home)

    assert content_of(tmp_path) == content_of(whole)


def test_processes_of_the_local_executor_may_use_a_gpu(home: Path) -> None:
    assert run_python(FORKED, home, **{_ASK_NVML: "1"}).stdout == "0\n"


def wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not path.exists():
        assert process.poll() is None, "the command ended too early"
        assert time.monotonic() < deadline, f"no {path}"
        time.sleep(0.01)
