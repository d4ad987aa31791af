"""What the commands share: one data set, one pi0 checkpoint, one trained run, one home.

They are built once, also where pytest-xdist runs several workers.
"""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import succeed
from filelock import FileLock
from runs import CAMERAS, POLICY, TRAINED_RUN, Run, data_flags
from tiny import save_stock_checkpoint, write_dataset


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Working directory and home of every command."""
    base = tmp_path_factory.getbasetemp()
    home = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "home"
    home.mkdir(exist_ok=True)
    return home


@pytest.fixture(scope="session")
def dataset(home: Path) -> Path:
    """Root of a video data set: two cameras, four episodes of 20 frames."""

    def build(root: Path) -> None:
        write_dataset(root, cameras=CAMERAS, num_episodes=4, num_frames=20, use_videos=True)

    return once(home / "data", build)


@pytest.fixture(scope="session")
def stock_checkpoint(home: Path) -> Path:
    """A checkpoint of LeRobot's own pi0, with processors that know nothing of motion."""
    return once(home / "stock", lambda path: save_stock_checkpoint(path, cameras=CAMERAS))


@pytest.fixture(scope="session")
def trained(home: Path, dataset: Path, stock_checkpoint: Path) -> Run:
    """Six steps from the stock checkpoint, three of them warm-up; checkpoints after 2, 4 and 6."""
    log = home / "trained.log"

    def build(output_dir: Path) -> None:
        result = succeed(
            "lerobot-train",
            *POLICY,
            *data_flags(dataset, output_dir),
            *TRAINED_RUN,
            f"--policy.pretrained_path={stock_checkpoint}",
            home=home,
        )
        log.write_text(result.stderr)

    output_dir = once(home / "trained", build)
    return Run(output_dir, log.read_text())


def once(path: Path, build: Callable[[Path], object]) -> Path:
    """Build a directory unless another worker did."""
    done = path.with_suffix(".done")
    with FileLock(path.with_suffix(".lock")):
        if not done.exists():
            build(path)
            done.touch()
    return path
