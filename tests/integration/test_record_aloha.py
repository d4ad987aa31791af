"""The example that records demonstrations, as a user runs it."""

import importlib.util
import os
import subprocess
import sys
from itertools import repeat
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("mink", reason="needs the extra `sim`")

from lerobot_motion.sim.aloha_expert import Episode

REPOSITORY = Path(__file__).parents[2]
EXAMPLE = REPOSITORY / "examples" / "record_aloha_transfer_cube.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("record_aloha_transfer_cube", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def run_example(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(EXAMPLE), *arguments],
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
        cwd=REPOSITORY,
        env={"MUJOCO_GL": "egl"} | dict(os.environ),
    )


@pytest.mark.parametrize("use_videos", ["true", "false"])
def test_records_a_data_set_lerobot_can_open(tmp_path, use_videos):
    root = tmp_path / "cube"
    result = run_example(
        *("--num_episodes=1", "--fps=5", "--height=96", "--width=128", "--draft=true"),
        *("--repo_id=local/cube", f"--root={root}", f"--use_videos={use_videos}"),
        *("--num_workers=1",),
    )

    assert result.returncode == 0, result.stderr
    assert result.stdout.count("\n") == 1
    assert "Recorded 1 episodes, 20 frames" in result.stdout
    assert "succeeded on 1 of 1 seeds (100%)" in result.stdout
    assert list(tmp_path.iterdir()) == [root]  # Nothing unfinished is left beside it.
    check_dataset(root)


def check_dataset(root: Path) -> None:
    from lerobot.configs.types import FeatureType
    from lerobot.datasets.lerobot_dataset import LeRobotDataset
    from lerobot.envs.configs import AlohaEnv
    from lerobot.envs.utils import env_to_policy_features
    from lerobot.utils.feature_utils import dataset_to_policy_features

    dataset = LeRobotDataset("local/cube", root=root)
    recorded = dataset_to_policy_features(dataset.features)
    expected = env_to_policy_features(AlohaEnv(task="AlohaTransferCube-v0"))
    assert set(recorded) == set(expected)
    for name, feature in expected.items():
        assert recorded[name].type == feature.type
        if feature.type is not FeatureType.VISUAL:  # LeRobot's is 480 x 640.
            assert recorded[name].shape == feature.shape

    assert (dataset.fps, dataset.num_episodes, len(dataset)) == (5, 1, 20)
    first, last = dataset[0], dataset[19]
    assert first["task"] == "transfer_cube"
    assert first["observation.images.top"].shape == (3, 96, 128)
    assert first["observation.images.top"].mean() > 0.02  # Not black.
    assert last["timestamp"].item() == pytest.approx(19 / 5)
    # A frame's action is where the arms go next, so it is near, and not, where they are.
    difference = (last["action"] - last["observation.state"]).abs()
    assert 0 < difference[:6].max() < 0.2


def test_dry_run_writes_nothing(tmp_path):
    root = tmp_path / "cube"
    result = run_example("--num_episodes=2", "--dry_run=true", f"--root={root}")

    assert result.returncode == 0, result.stderr
    assert "Dry run: the expert succeeded on 2 of 2 seeds (100%)" in result.stdout
    assert list(tmp_path.iterdir()) == []


def test_frame_rate_must_divide_the_control_rate():
    result = run_example("--fps=30")

    assert result.returncode != 0
    assert "fps must divide 50 (one of 1, 2, 5, 10, 25, 50), got 30." in result.stderr


@pytest.mark.parametrize("name", ["num_episodes", "height", "width", "num_workers"])
def test_counts_must_be_positive(example, name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        example.RecordConfig(**{name: 0}).check()


def test_videos_need_even_sizes(example):
    with pytest.raises(ValueError, match="even height and width, got 97 x 128"):
        example.RecordConfig(height=97, width=128).check()
    example.RecordConfig(height=97, width=128, use_videos=False).check()


def test_existing_root_is_refused(example, tmp_path):
    (tmp_path / "cube").mkdir()
    config = example.RecordConfig(root=tmp_path / "cube")
    assert example.choose_root(config) == tmp_path / "cube"  # Empty: may be recorded into.

    (tmp_path / "cube" / "something").touch()
    with pytest.raises(FileExistsError, match=r"cube exists .* choose another --root"):
        example.choose_root(config)


def test_a_failed_recording_leaves_nothing(example, tmp_path, monkeypatch):
    def fail(_config, root, _tally):
        root.mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr(example, "record", fail)
    monkeypatch.setattr(example, "prepare_environment", lambda: None)

    with pytest.raises(KeyboardInterrupt):
        example.record_in_place(example.RecordConfig(root=tmp_path / "cube"), example.Tally())
    assert list(tmp_path.iterdir()) == []


def episode(success: bool) -> Episode:
    nothing = np.zeros((20, 14), np.float32)
    return Episode(np.zeros((20, 23)), nothing, nothing, np.full(20, 4.0 if success else 0.0))


def fake_simulation(outcomes):
    class Fake:
        model = None

        def run(self, _expert, _seed):
            return episode(next(outcomes))

    return Fake


def test_failures_are_left_out_and_counted(example, monkeypatch):
    outcomes = iter([True, False, False, True])
    monkeypatch.setattr(example, "TransferCubeSimulation", fake_simulation(outcomes))
    tally = example.Tally()

    episodes = example.play_successes(0, tally)
    assert next(episodes).success
    assert next(episodes).success
    assert str(tally) == "the expert succeeded on 2 of 4 seeds (50%)"


def test_too_many_failures_stop_the_recording(example, monkeypatch):
    monkeypatch.setattr(example, "TransferCubeSimulation", fake_simulation(repeat(False)))

    with pytest.raises(RuntimeError, match=r"Stopped: .* 0 of 6 seeds \(0%\)"):
        next(example.play_successes(0, example.Tally()))
