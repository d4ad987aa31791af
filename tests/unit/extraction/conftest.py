from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from extractions import make_extraction
from tiny import write_dataset

from lerobot_motion.extraction import extract
from lerobot_motion.extraction.extract import Extraction

# Neither square nor of the networks' resolution.
SIZE = (72, 96)


@pytest.fixture(scope="session")
def image_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Root of a data set of images: four episodes of twelve frames."""
    root = tmp_path_factory.mktemp("images") / "dataset"
    return write_dataset(root, num_episodes=4, num_frames=12, size=SIZE)


@pytest.fixture(scope="session")
def video_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Root of a data set of videos: two episodes of 40 frames, longer than a clip."""
    root = tmp_path_factory.mktemp("videos") / "dataset"
    return write_dataset(root, num_episodes=2, num_frames=40, size=SIZE, use_videos=True)


@pytest.fixture
def extraction(image_root: Path, tmp_path: Path) -> Extraction:
    """A store to be made of the images: two episodes a shard, no process of its own."""
    return make_extraction(image_root, tmp_path / "store")


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the shards that are written."""
    names: list[str] = []
    write: Callable[..., None] = extract.write_shard

    def write_and_note(store: Path, shard: Any, tensors: Any) -> None:
        names.append(Path(shard.file).stem)
        write(store, shard, tensors)

    monkeypatch.setattr(extract, "write_shard", write_and_note)
    return names
