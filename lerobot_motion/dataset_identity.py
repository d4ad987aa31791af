"""Which recordings something was computed from, told by their content."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq

if TYPE_CHECKING:
    from lerobot.datasets import LeRobotDatasetMetadata


@dataclass(frozen=True)
class DatasetIdentity:
    """Which recordings a store belongs to.

    Attributes:
        repo_id: Repository id under which the dataset was opened.
        revision: Revision that was asked for, or None.
        fps: Frames per second.
        num_episodes: Episodes in the dataset.
        num_frames: Frames in the dataset.
        fingerprint: Hash over every episode's frame range and the statistics of its camera.
    """

    repo_id: str
    revision: str | None
    fps: int
    num_episodes: int
    num_frames: int
    fingerprint: str

    def matches(self, other: "DatasetIdentity") -> bool:
        """Whether both are the same recordings; names may differ, as on another machine."""
        return (self.fps, self.fingerprint) == (other.fps, other.fingerprint)

    def __str__(self) -> str:
        """Describe the dataset for an error message."""
        return (
            f"{self.repo_id} ({self.num_episodes} episodes, {self.num_frames} frames, "
            f"fingerprint {self.fingerprint[:12]})"
        )


def dataset_identity(
    meta: "LeRobotDatasetMetadata", camera: str, revision: str | None = None
) -> DatasetIdentity:
    """Identify a dataset by its episodes.

    The fingerprint covers each episode's frame range (deleting or merging episodes renumbers
    `index`) and the camera's statistics, by which datasets of equally long episodes differ.

    Args:
        meta: Metadata of the dataset.
        camera: The dataset's name of the motion camera.
        revision: Revision that was asked for.
    """
    ranges = zip(
        meta.episodes["dataset_from_index"], meta.episodes["dataset_to_index"], strict=True
    )
    content = {"episodes": list(ranges), "camera_means": _camera_means(Path(meta.root), camera)}
    return DatasetIdentity(
        repo_id=meta.repo_id,
        revision=revision,
        fps=meta.fps,
        num_episodes=meta.total_episodes,
        num_frames=meta.total_frames,
        fingerprint=sha256_of(content),
    )


def _camera_means(root: Path, camera: str) -> list[Any]:
    """Every episode's mean colour, or none if the dataset was recorded without statistics."""
    column = f"stats/{camera}/mean"
    means: list[tuple[int, Any]] = []
    for path in sorted((root / "meta" / "episodes").rglob("*.parquet")):
        if column in pq.read_schema(path).names:
            table = pq.read_table(path, columns=["episode_index", column]).to_pydict()
            means += zip(table["episode_index"], table[column], strict=True)
    return [mean for _, mean in sorted(means, key=lambda item: item[0])]


def sha256_of(content: Any) -> str:
    """Hash of what JSON can hold, whatever the order of keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
