import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from lerobot.datasets import LeRobotDataset, LeRobotDatasetMetadata
from lerobot.datasets.dataset_tools import delete_episodes, merge_datasets
from tiny import CAMERA, write_dataset

from lerobot_motion.dataset_identity import DatasetIdentity, dataset_identity, sha256_of


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three episodes of six frames."""
    return write_dataset(tmp_path_factory.mktemp("data") / "one", num_episodes=3, num_frames=6)


def identity_of(root: Path, repo_id: str = "tests/tiny") -> DatasetIdentity:
    return dataset_identity(LeRobotDatasetMetadata(repo_id, root=root), CAMERA)


def test_the_same_recordings_have_the_same_identity(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root, tmp_path / "copy")

    assert identity_of(tmp_path / "copy") == identity_of(root)
    renamed = identity_of(tmp_path / "copy", "someone/else")
    assert renamed != identity_of(root)
    assert renamed.matches(identity_of(root))


def test_an_identity_describes_the_dataset(root: Path) -> None:
    identity = identity_of(root)

    assert (identity.fps, identity.num_episodes, identity.num_frames) == (10, 3, 18)
    assert str(identity) == (
        f"tests/tiny (3 episodes, 18 frames, fingerprint {identity.fingerprint[:12]})"
    )


def test_other_lengths_are_other_recordings(root: Path, tmp_path: Path) -> None:
    other = write_dataset(tmp_path / "other", num_episodes=3, num_frames=7)

    assert not identity_of(other).matches(identity_of(root))


def test_other_pictures_of_the_same_length_are_other_recordings(root: Path, tmp_path: Path) -> None:
    other = write_dataset(tmp_path / "other", num_episodes=3, num_frames=6, size=(40, 40))

    assert not identity_of(other).matches(identity_of(root))


def test_another_rate_is_another_recording(root: Path) -> None:
    identity = identity_of(root)

    assert not replace(identity, fps=identity.fps + 1).matches(identity)


def test_edited_recordings_are_other_recordings(root: Path, tmp_path: Path) -> None:
    dataset = LeRobotDataset("tests/tiny", root=root)
    parts = [
        delete_episodes(
            dataset, episode_indices=[i], output_dir=tmp_path / f"{i}", repo_id=f"tests/without{i}"
        )
        for i in (0, 2)
    ]
    merged = merge_datasets(parts, "tests/merged", tmp_path / "merged")

    identities = [identity_of(root), *(identity_of(d.root) for d in (*parts, merged))]
    assert len({identity.fingerprint for identity in identities}) == 4


def test_recordings_without_statistics_have_an_identity(root: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(root, bare)
    episodes = next((bare / "meta" / "episodes").rglob("*.parquet"))
    table = pq.read_table(episodes)
    columns = [name for name in table.column_names if not name.startswith("stats/")]
    pq.write_table(table.select(columns), episodes)

    assert identity_of(bare).num_frames == 18
    assert identity_of(bare) == identity_of(bare)


def test_the_order_of_keys_does_not_matter() -> None:
    assert sha256_of({"a": 1, "b": [2]}) == sha256_of({"b": [2], "a": 1})
    assert sha256_of({"a": 1}) != sha256_of({"a": 2})
