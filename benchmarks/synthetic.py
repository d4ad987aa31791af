"""Data sets and networks to measure with: their values do not matter, their sizes do."""

from pathlib import Path

import cv2
import numpy as np
import torch
from diffusers import AutoencoderKL
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from numpy.typing import NDArray
from safetensors.torch import save_file
from torchvision.models.optical_flow import raft_large, raft_small

REPO_ID = "benchmarks/synthetic"
FPS = 30
STATE_DIM = ACTION_DIM = 14
# Pixels that the ground and the square move in a frame.
_GROUND_SPEED, _SQUARE_SPEED = 1, 3
_RAFTS = {"raft_large": raft_large, "raft_small": raft_small}

Image = NDArray[np.uint8]


def write_dataset(
    root: Path,
    *,
    num_frames: int,
    episode_frames: int,
    size: tuple[int, int],
    cameras: tuple[str, ...] = ("observation.images.top",),
    use_videos: bool = True,
) -> Path:
    """Write a LeRobotDataset of a square over a ground that both move, as LeRobot records one.

    Args:
        root: Its folder, which must not exist.
        num_frames: Frames in all.
        episode_frames: Frames of an episode; the last may be shorter.
        size: Height and width of a frame, in pixels.
        cameras: Names of the cameras.
        use_videos: Videos, or images in the data files.

    Returns:
        Its root.
    """
    dataset = LeRobotDataset.create(
        REPO_ID,
        fps=FPS,
        root=root,
        use_videos=use_videos,
        features=_features(size, cameras, use_videos=use_videos),
        streaming_encoding=use_videos,
        encoder_queue_maxsize=episode_frames,
        image_writer_threads=0 if use_videos else 4,
    )
    random = np.random.default_rng(0)
    for start in range(0, num_frames, episode_frames):
        scenes = [Scene(size, seed=start + i) for i in range(len(cameras))]
        for frame in range(min(episode_frames, num_frames - start)):
            dataset.add_frame(
                {
                    "observation.state": random.normal(size=STATE_DIM).astype(np.float32),
                    "action": random.normal(size=ACTION_DIM).astype(np.float32),
                    "task": "push the square",
                    **{
                        camera: scene.frame(frame)
                        for camera, scene in zip(cameras, scenes, strict=True)
                    },
                }
            )
        dataset.save_episode()
    dataset.finalize()
    return root


def _features(
    size: tuple[int, int], cameras: tuple[str, ...], *, use_videos: bool
) -> dict[str, dict[str, object]]:
    vision: dict[str, object] = {
        "dtype": "video" if use_videos else "image",
        "shape": (*size, 3),
        "names": ["height", "width", "channels"],
    }
    vectors = {"observation.state": STATE_DIM, "action": ACTION_DIM}
    return {
        **{
            key: {"dtype": "float32", "shape": (dim,), "names": [f"j{i}" for i in range(dim)]}
            for key, dim in vectors.items()
        },
        **dict.fromkeys(cameras, vision),
    }


class Scene:
    """A textured square that moves over a textured ground that moves more slowly."""

    def __init__(self, size: tuple[int, int], seed: int) -> None:
        """Draw the textures.

        Args:
            size: Height and width of a frame, in pixels.
            seed: Seed of the textures.
        """
        self.height, self.width = size
        random = np.random.default_rng(seed)
        self.ground = _texture(random, self.height, self.width)
        side = max(2, self.height // 3)
        self.square = _texture(random, side, side)

    def frame(self, time: int) -> Image:
        """A frame, (H, W, 3), uint8.

        Args:
            time: Its position in the episode.
        """
        image = np.roll(self.ground, time * _GROUND_SPEED, axis=1)
        side = len(self.square)
        left = time * _SQUARE_SPEED % max(1, self.width - side)
        top = (self.height - side) // 2
        image[top : top + side, left : left + side] = self.square
        return image


def _texture(random: np.random.Generator, height: int, width: int) -> Image:
    """Blobs of some 8 px, which videos can hold."""
    coarse = random.integers(0, 256, (max(2, height // 8), max(2, width // 8), 3), dtype=np.uint8)
    return np.asarray(cv2.resize(coarse, (width, height)), dtype=np.uint8)


def write_random_raft(name: str, path: Path) -> Path:
    """Write a RAFT of random weights whose updates are zero, so that its flow stays finite.

    Args:
        name: raft_large or raft_small.
        path: The safetensors file, in torchvision's naming.

    Returns:
        The file.
    """
    torch.manual_seed(0)
    model = _RAFTS[name](weights=None)
    state = model.state_dict()
    for key in state:
        if "flow_head.conv2" in key:
            state[key] = torch.zeros_like(state[key])
    save_file({key: value.contiguous() for key, value in state.items()}, path)
    return path


def write_random_sdxl_vae(path: Path) -> Path:
    """Write an autoencoder of SDXL's configuration with random weights.

    Args:
        path: Directory, in diffusers' format.

    Returns:
        The directory.
    """
    torch.manual_seed(0)
    autoencoder = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=4,
        sample_size=1024,
        scaling_factor=0.13025,
    )
    autoencoder.save_pretrained(path)
    return path
