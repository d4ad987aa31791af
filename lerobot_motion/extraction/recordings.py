"""One camera of a LeRobotDataset: where its episodes lie, and their frames at native resolution."""

import bisect
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow.parquet as pq
import torch
from datasets.exceptions import DatasetGenerationError
from einops import rearrange
from huggingface_hub.errors import HFValidationError
from lerobot.datasets import LeRobotDatasetMetadata
from lerobot.datasets.feature_utils import get_hf_features_from_features
from lerobot.datasets.io_utils import load_nested_dataset
from lerobot.datasets.utils import CompatibilityError
from lerobot.datasets.video_utils import decode_video_frames
from torch import Tensor

logger = logging.getLogger(__name__)

# What the Hub's client and LeRobot raise where there is no dataset, no network or another format.
_HUB_ERRORS = (
    OSError,
    httpx.HTTPError,
    HFValidationError,
    CompatibilityError,
    NotImplementedError,
    RuntimeError,
)


def open_dataset(
    repo_id: str, root: str | None = None, revision: str | None = None
) -> LeRobotDatasetMetadata:
    """Read a dataset's metadata, from its folder or from the Hub.

    Args:
        repo_id: Repository of the dataset.
        root: Its folder, or None for LeRobot's cache.
        revision: Revision on the Hub, or None for LeRobot's choice.

    Raises:
        OSError: If there is no such dataset, or it is of a format that LeRobot does not read.
        ValueError: If no dataset is named.
    """
    if not repo_id:
        raise ValueError(
            "dataset.repo_id must name a dataset. Pass --dataset.repo_id=<user>/<name>."
        )
    try:
        return LeRobotDatasetMetadata(repo_id, root=root, revision=revision)
    except _HUB_ERRORS as error:
        where = f"the folder {root}" if root else "LeRobot's cache"
        reason = " ".join(str(error).split()) or type(error).__name__
        raise OSError(
            f"dataset: no LeRobotDataset {repo_id!r} could be read from {where} or from the Hub "
            f"({reason}). Check --dataset.repo_id, --dataset.root and --dataset.revision."
        ) from error


def choose_cameras(meta: LeRobotDatasetMetadata, names: str | None) -> list[str]:
    """Check the cameras that were asked for.

    Args:
        meta: Metadata of the dataset.
        names: Cameras, separated by commas, or None for the only one.

    Raises:
        ValueError: If one is unknown, there is none, or there are several and none is named.
    """
    cameras = [key for key in meta.camera_keys if key not in meta.depth_keys]
    if not cameras:
        raise ValueError(f"dataset {meta.repo_id} has no camera; motion images need one.")
    if names is None and len(cameras) > 1:
        raise ValueError(
            f"camera must be set, there are several: {cameras}. Pass --camera={cameras[0]}, say, "
            "or several, separated by commas."
        )
    chosen = cameras if names is None else [name.strip() for name in names.split(",")]
    unknown = [name for name in chosen if name not in cameras]
    if unknown:
        raise ValueError(
            f"camera must be one of {cameras} (the dataset's own names), got {', '.join(unknown)}."
        )
    return list(dict.fromkeys(chosen))


def choose_episodes(
    meta: LeRobotDatasetMetadata, episodes: Sequence[int] | None, horizon: int
) -> list[int]:
    """Check the episodes that were asked for, and the horizon against their lengths.

    Args:
        meta: Metadata of the dataset.
        episodes: Episodes in any order, or None for all.
        horizon: Frames from an observation to its future frame.

    Returns:
        The episodes in order.

    Raises:
        ValueError: If one is out of range or there is none, or no episode is longer than the
            horizon.
    """
    chosen = sorted(set(range(meta.total_episodes) if episodes is None else episodes))
    if not chosen:
        raise ValueError("dataset.episodes must name at least one episode, got none.")
    outside = [episode for episode in chosen if not 0 <= episode < meta.total_episodes]
    if outside:
        raise ValueError(
            f"dataset.episodes: {meta.repo_id} has the episodes 0 to {meta.total_episodes - 1}, "
            f"got {outside[:10]}."
        )
    if horizon < 1:
        raise ValueError(f"horizon must be at least 1 frame, got {horizon}.")
    all_lengths: list[int] = meta.episodes["length"][:]
    longest = max(all_lengths[episode] for episode in chosen)
    if horizon >= longest:
        raise ValueError(
            f"horizon must be shorter than the longest episode ({longest} frames), got {horizon}: "
            f"no frame would have a future. Pass --horizon={max(1, longest // 2)}, say."
        )
    return chosen


@dataclass(frozen=True)
class Clip:
    """Frames of one episode, by their position in it."""

    episode: int
    frames: tuple[int, ...]


@dataclass(frozen=True)
class Recordings:
    """One camera of a dataset. May be sent to other processes.

    Attributes:
        meta: Metadata of the dataset.
        camera: The dataset's name of the camera.
        tolerance_s: By how much the time of a video frame may be off, in seconds.
        video_backend: LeRobot's video decoder, or None for its choice.
    """

    meta: LeRobotDatasetMetadata
    camera: str
    tolerance_s: float = 1e-4
    video_backend: str | None = None

    @cached_property
    def ranges(self) -> list[tuple[int, int]]:
        """Dataset index of every episode's first frame, and one past its last."""
        starts: list[int] = self.meta.episodes["dataset_from_index"][:]
        stops: list[int] = self.meta.episodes["dataset_to_index"][:]
        return list(zip(starts, stops, strict=True))

    @property
    def is_video(self) -> bool:
        """Whether the camera's frames are in video files rather than in the data files."""
        return self.camera in self.meta.video_keys

    def fetch(self, episodes: Sequence[int]) -> None:
        """Download the files of episodes that are not here: data, and video of this camera only.

        Args:
            episodes: Which episodes.

        Raises:
            OSError: If they are not on the Hub either.
        """
        wanted = {self.meta.get_data_file_path(episode) for episode in episodes}
        if self.is_video:
            wanted |= {self.meta.get_video_file_path(episode, self.camera) for episode in episodes}
        missing = sorted(str(path) for path in wanted if not (self.meta.root / path).is_file())
        if not missing:
            return
        logger.info("Downloading %d files of %s", len(missing), self.meta.repo_id)
        try:
            # LeRobotDataset itself would fetch every camera, and the whole repository.
            self.meta._pull_from_repo(allow_patterns=missing)
        except _HUB_ERRORS as error:
            raise OSError(self._not_there(missing, error)) from error
        missing = [path for path in missing if not (self.meta.root / path).is_file()]
        if missing:
            raise OSError(self._not_there(missing, "the repository does not have them"))

    def _not_there(self, missing: list[str], reason: object) -> str:
        return (
            f"dataset {self.meta.repo_id}: {len(missing)} files are missing in {self.meta.root}, "
            f"the first is {missing[0]}, and could not be downloaded ({reason}). Fetch the dataset "
            "again, or name other episodes with --dataset.episodes."
        )

    def open(self) -> None:
        """Map the data files of images, once for all processes that will read them."""
        if not self.is_video:
            _ = self._rows

    def source(self, episode: int) -> Path:
        """File that holds the frames of an episode."""
        if self.is_video:
            return Path(self.meta.root / self.meta.get_video_file_path(episode, self.camera))
        return Path(self.meta.root / self.meta.get_data_file_path(episode))

    def read(self, clip: Clip) -> Tensor:
        """Decode frames.

        Args:
            clip: Which frames.

        Returns:
            Frames as recorded, (N, 3, H, W), uint8.

        Raises:
            ValueError: If the data or the video does not hold them.
            OSError: If a file cannot be read.
            RuntimeError: If a frame cannot be decoded.
        """
        return self._from_video(clip) if self.is_video else self._from_images(clip)

    def _from_video(self, clip: Clip) -> Tensor:
        start, stop = self.ranges[clip.episode]
        data = Path(self.meta.root / self.meta.get_data_file_path(clip.episode))
        times = _timestamps(data, start, stop)
        offset = self.meta.episodes[clip.episode][f"videos/{self.camera}/from_timestamp"]
        frames: Tensor = decode_video_frames(
            self.source(clip.episode),
            [offset + times[frame] for frame in clip.frames],
            self.tolerance_s,
            self.video_backend,
            return_uint8=True,
        )
        return frames

    def _from_images(self, clip: Clip) -> Tensor:
        wanted = [self.ranges[clip.episode][0] + frame for frame in clip.frames]
        # Only some of the data files may be here.
        column = self._rows.data.column("index")
        places = [bisect.bisect_left(column, index, key=lambda i: i.as_py()) for index in wanted]
        there = places[-1] < len(column)
        rows: dict[str, Any] = self._rows[places] if there else {"index": None}
        if rows["index"] != wanted:
            raise ValueError(
                f"the data of episode {clip.episode} are not where the metadata say; the dataset's "
                "files are not all there, or were edited. Fetch the dataset again."
            )
        images = [np.asarray(image) for image in rows[self.camera]]
        if images[0].ndim != 3 or images[0].shape[-1] != 3:
            raise ValueError(f"{self.camera} must hold RGB images, got shape {images[0].shape}.")
        return rearrange(torch.from_numpy(np.stack(images)), "n h w c -> n c h w")

    @cached_property
    def _rows(self) -> Any:
        """LeRobot's own memory-mapped table, reduced to this camera; images as Pillow's."""
        features = get_hf_features_from_features(self.meta.features)
        try:
            rows = load_nested_dataset(self.meta.root / "data", features=features)
        except DatasetGenerationError as error:
            reason = " ".join(str(error.__cause__).split())
            raise OSError(
                f"dataset {self.meta.repo_id}: its data files could not be read into the cache of "
                f"Hugging Face datasets ({reason}). The disk with HF_HOME may be full, or a file "
                "damaged: fetch the dataset again."
            ) from error
        return rows.select_columns([self.camera, "index"])


@lru_cache(maxsize=8)
def _timestamps(data: Path, start: int, stop: int) -> list[float]:
    """Times of an episode's frames from its beginning, in seconds, as LeRobot's items have them."""
    inside = [("index", ">=", start), ("index", "<", stop)]
    table = pq.read_table(data, columns=["index", "timestamp"], filters=inside)
    if table["index"].to_pylist() != list(range(start, stop)):
        raise ValueError(
            f"{data} must hold the frames with index {start} to {stop - 1} in order, got "
            f"{table.num_rows} frames. Fetch the dataset again."
        )
    times: list[float] = table["timestamp"].to_pylist()
    return times
