import inspect
import json
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from lerobot.datasets import LeRobotDataset, LeRobotDatasetMetadata
from tiny import CAMERA, write_dataset

from lerobot_motion.extraction.recordings import (
    Clip,
    Recordings,
    choose_cameras,
    choose_episodes,
    open_dataset,
)


@pytest.fixture
def meta(image_root: Path) -> LeRobotDatasetMetadata:
    return open_dataset("tests/tiny", str(image_root))


def root_of(kind: str, request: pytest.FixtureRequest) -> Path:
    root: Path = request.getfixturevalue(f"{kind}_root")
    return root


# --- frames ---


@pytest.mark.parametrize("kind", ["image", "video"])
def test_frames_are_those_of_lerobots_items(kind: str, request: pytest.FixtureRequest) -> None:
    root = root_of(kind, request)
    dataset = LeRobotDataset("tests/tiny", root=root)
    recordings = Recordings(dataset.meta, CAMERA)
    start, stop = recordings.ranges[1]
    positions = (0, 3, 7, stop - start - 1)

    frames = recordings.read(Clip(1, positions))

    expected = torch.stack([dataset[start + position][CAMERA] for position in positions])
    assert frames.dtype == torch.uint8
    assert torch.equal(frames.float() / 255, expected)


@pytest.mark.parametrize("kind", ["image", "video"])
def test_recordings_may_be_sent_to_other_processes(
    kind: str, request: pytest.FixtureRequest
) -> None:
    recordings = Recordings(open_dataset("tests/tiny", str(root_of(kind, request))), CAMERA)
    frames = recordings.read(Clip(0, (2,)))

    sent: Recordings = pickle.loads(pickle.dumps(recordings))

    assert torch.equal(sent.read(Clip(0, (2,))), frames)


def test_data_files_that_are_not_all_there_suffice(image_root: Path, tmp_path: Path) -> None:
    root = tmp_path / "part"
    shutil.copytree(image_root, root)
    whole = Recordings(open_dataset("tests/tiny", str(root)), CAMERA)
    frames = whole.read(Clip(3, (5, 6)))
    data = next((root / "data").rglob("*.parquet"))
    drop_rows_below(data, 20)

    part = Recordings(open_dataset("tests/tiny", str(root)), CAMERA)

    assert torch.equal(part.read(Clip(3, (5, 6))), frames)
    with pytest.raises(ValueError, match="the data of episode 0 are not where the metadata say"):
        part.read(Clip(0, (0,)))


def test_video_whose_data_are_not_all_there_is_an_error(video_root: Path, tmp_path: Path) -> None:
    root = tmp_path / "part"
    shutil.copytree(video_root, root)
    drop_rows_below(next((root / "data").rglob("*.parquet")), 20)
    recordings = Recordings(open_dataset("tests/tiny", str(root)), CAMERA)

    with pytest.raises(
        ValueError, match="must hold the frames with index 0 to 39 in order, got 20"
    ):
        recordings.read(Clip(0, (0,)))


def drop_rows_below(data: Path, index: int) -> None:
    import pyarrow.parquet as pq

    table = pq.read_table(data)
    pq.write_table(table.slice(index), data)


# --- what is there ---


def test_an_unknown_dataset_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    folder = tmp_path / "nowhere"

    with pytest.raises(
        OSError, match=r"no LeRobotDataset 'someone/none' could be read from the folder \S+/nowhere"
    ):
        open_dataset("someone/none", str(folder))


def test_a_dataset_must_be_named() -> None:
    with pytest.raises(ValueError, match=r"Pass --dataset.repo_id="):
        open_dataset("")


def test_a_dataset_of_an_older_format_is_named(image_root: Path, tmp_path: Path) -> None:
    root = tmp_path / "old"
    shutil.copytree(image_root, root)
    info = json.loads((root / "meta" / "info.json").read_text())
    (root / "meta" / "info.json").write_text(json.dumps({**info, "codebase_version": "v2.1"}))

    with pytest.raises(OSError, match=r"no LeRobotDataset 'tests/tiny' could be read .*v2.1"):
        open_dataset("tests/tiny", str(root))


def test_missing_files_are_fetched_or_named(
    video_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "part"
    shutil.copytree(video_root, root)
    video = next((root / "videos").rglob("*.mp4"))
    content = video.read_bytes()
    video.unlink()
    recordings = Recordings(open_dataset("tests/tiny", str(root)), CAMERA)
    asked: list[list[str]] = []

    def pull(self: Any, allow_patterns: list[str]) -> None:
        asked.append(allow_patterns)
        if len(asked) > 1:
            video.write_bytes(content)

    signature = inspect.signature(LeRobotDatasetMetadata._pull_from_repo)
    assert "allow_patterns" in signature.parameters
    monkeypatch.setattr(LeRobotDatasetMetadata, "_pull_from_repo", pull)

    name = str(video.relative_to(root))
    with pytest.raises(OSError, match=f"1 files are missing in .*, the first is {re.escape(name)}"):
        recordings.fetch([0, 1])
    recordings.fetch([0, 1])
    recordings.fetch([0, 1])

    assert asked == [[name], [name]]


# --- what is asked for ---


def test_the_only_camera_need_not_be_named(meta: LeRobotDatasetMetadata) -> None:
    assert choose_cameras(meta, None) == [CAMERA]


def test_cameras_are_chosen_by_name(tmp_path: Path) -> None:
    names = ("observation.images.left", "observation.images.right")
    write_dataset(tmp_path / "two", cameras=names, num_episodes=1, num_frames=3)
    meta = open_dataset("tests/tiny", str(tmp_path / "two"))

    assert choose_cameras(meta, f"{names[1]}, {names[0]},{names[1]}") == [names[1], names[0]]
    with pytest.raises(ValueError, match=r"camera must be set, there are several: \['obs"):
        choose_cameras(meta, None)
    with pytest.raises(
        ValueError, match=r"must be one of \['observation.images.left', .*got observation.nose\."
    ):
        choose_cameras(meta, f"{names[0]},observation.nose")


def test_episodes_are_put_in_order(meta: LeRobotDatasetMetadata) -> None:
    assert choose_episodes(meta, None, 5) == [0, 1, 2, 3]
    assert choose_episodes(meta, [3, 0, 3], 5) == [0, 3]


@pytest.mark.parametrize(
    ("episodes", "horizon", "message"),
    [
        ([1, 4, -1], 5, r"has the episodes 0 to 3, got \[-1, 4\]"),
        ([], 5, "at least one episode, got none"),
        (None, 0, "horizon must be at least 1 frame, got 0"),
        (None, 12, r"shorter than the longest episode \(12 frames\), got 12.*--horizon=6"),
    ],
)
def test_what_cannot_be_is_refused(
    meta: LeRobotDatasetMetadata, episodes: list[int] | None, horizon: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        choose_episodes(meta, episodes, horizon)


def test_data_files_that_cannot_be_read_are_an_error(image_root: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(image_root, tmp_path / "copy"))
    (file,) = (root / "data").rglob("*.parquet")
    content = bytearray(file.read_bytes())
    content[100 : len(content) // 2] = bytes(len(content) // 2 - 100)
    file.write_bytes(content)
    recordings = Recordings(open_dataset("tests/tiny", str(root)), CAMERA)

    with pytest.raises(OSError, match=r"its data files could not be read .*disk .* may be full"):
        recordings.open()
