"""Image data sets with features of one's own choosing."""

from pathlib import Path

import numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from tiny import CAMERA_SIZE, textured_frames

VISION = {
    "dtype": "image",
    "shape": (*CAMERA_SIZE, 3),
    "names": ["height", "width", "channels"],
}


def write_images(
    root: Path, cameras: tuple[str, ...], vectors: dict[str, int], num_frames: int = 12
) -> Path:
    """Write a data set of one episode.

    Args:
        root: Where to; it must not exist.
        cameras: Camera keys; none for a data set without images.
        vectors: Sizes of the vectors by their keys; their values are far from zero.
        num_frames: Length of the episode.
    """
    dataset = LeRobotDataset.create(
        "tests/tiny",
        fps=10,
        root=root,
        use_videos=False,
        features={
            **{
                key: {"dtype": "float32", "shape": (dim,), "names": [f"j{i}" for i in range(dim)]}
                for key, dim in vectors.items()
            },
            **dict.fromkeys(cameras, VISION),
        },
    )
    random = np.random.default_rng(0)
    frames = (textured_frames(num_frames) * 255).byte().permute(0, 2, 3, 1).numpy()
    for frame in frames:
        values = {
            key: random.normal(loc=7.0, size=dim).astype(np.float32) for key, dim in vectors.items()
        }
        dataset.add_frame({"task": "push the square", **values, **dict.fromkeys(cameras, frame)})
    dataset.save_episode()
    dataset.finalize()
    return root
