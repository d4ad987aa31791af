"""Episodes that a run held out, against those that LeRobot itself holds out."""

from pathlib import Path

import pytest
from imagining import save_checkpoint
from lerobot.configs.default import DatasetConfig
from lerobot.configs.train import TrainPipelineConfig
from lerobot.datasets.factory import make_train_eval_datasets
from tiny import make_motion_config, write_dataset

from lerobot_motion.checkpoints.loading import CheckpointSource
from lerobot_motion.extraction.recordings import open_dataset
from lerobot_motion.viz.checkpoints import held_out_episodes


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("held") / "data", num_episodes=5, num_frames=6)


@pytest.mark.parametrize(("split", "episodes"), [(0.2, None), (0.5, None), (0.34, [4, 0, 2])])
def test_the_same_episodes(
    split: float, episodes: list[int] | None, data: Path, tmp_path: Path
) -> None:
    dataset = DatasetConfig("tests/tiny", root=str(data), eval_split=split, episodes=episodes)
    run = TrainPipelineConfig(dataset=dataset, policy=make_motion_config())
    _, held_out = make_train_eval_datasets(run)
    settings = {"repo_id": "tests/tiny", "eval_split": split, "episodes": episodes}
    save_checkpoint(tmp_path / "trained", dataset_settings=settings)

    found = held_out_episodes(
        CheckpointSource(str(tmp_path / "trained")), open_dataset("tests/tiny", str(data))
    )

    assert held_out is not None
    assert found == sorted(held_out.episodes)
