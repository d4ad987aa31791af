"""Draw what a policy imagines beside what happened, and measure it.

    python examples/picture_motion.py --policy.path=<checkpoint> --dataset.repo_id=<id> \
        --dataset.root=<folder> --output=motion.png

Rows of observation, target motion image and predicted motion image, and the end-point error of the
predicted flow beside that of predicting no motion.
"""

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import draccus
import lerobot_policy_motion  # noqa: F401 - registers the policy types
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.datasets import LeRobotDataset, LeRobotDatasetMetadata
from lerobot.datasets.factory import resolve_delta_timestamps
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from lerobot.utils.random_utils import set_seed
from torch import Tensor
from tqdm import tqdm

from lerobot_motion.flow.letterbox import letterbox
from lerobot_motion.flow.motion_image import motion_image_to_flow
from lerobot_motion.models.latent_codec import load_latent_codec
from lerobot_motion.steps import MOTION_LATENT, MOTION_TARGET_STEP, MOTION_VALID, MotionTargetStep
from lerobot_motion.visualize import picture_grid, to_pil

logger = logging.getLogger(__name__)


@dataclass
class DatasetArguments:
    """Which recordings to look at."""

    # Repository of the dataset, on the Hub or local.
    repo_id: str = ""
    # Folder of the dataset. null: LeRobot's cache.
    root: str | None = None


@dataclass
class PolicyArguments:
    """Which checkpoint imagines."""

    # Checkpoint: local directory or repository on the Hub.
    path: str = ""


@dataclass
class PictureArguments:
    """Draw and measure predicted motion."""

    dataset: DatasetArguments = field(default_factory=DatasetArguments)
    policy: PolicyArguments = field(default_factory=PolicyArguments)
    # Frames, spread evenly over the dataset, on which the error is measured.
    num_frames: int = 64
    # Rows of the picture: the frames that move most, one of every stretch of the dataset.
    num_rows: int = 5
    # Frames imagined at once.
    batch_size: int = 16
    # Euler steps of the imagination.
    num_steps: int = 10
    # Seed of the imagination's noise.
    seed: int = 0
    # Picture to write; the figures go beside it, as .json.
    output: Path = Path("motion.png")


@dataclass
class Imagined:
    """Frames, targets and predictions, all (N, 3, H, W), and where the frames lie."""

    frames: Tensor
    targets: Tensor
    predictions: Tensor
    reconstructions: Tensor
    places: list[str]


def load(args: PictureArguments) -> tuple[Any, Any, Any]:
    """Load the policy, its preprocessor and the dataset with its future frames."""
    config = PreTrainedConfig.from_pretrained(args.policy.path)
    config.pretrained_path = Path(args.policy.path)
    # The target is drawn from the frames themselves, whatever the policy was trained from.
    config.motion_latents = None
    policy = get_policy_class(config.type).from_pretrained(args.policy.path, config=config)
    preprocessor, _ = make_pre_post_processors(
        config,
        pretrained_path=args.policy.path,
        preprocessor_overrides={
            "device_processor": {"device": config.device},
            MOTION_TARGET_STEP: config.motion_target_settings,
        },
    )
    meta = LeRobotDatasetMetadata(args.dataset.repo_id, root=args.dataset.root)
    dataset = LeRobotDataset(
        args.dataset.repo_id,
        root=args.dataset.root,
        delta_timestamps=resolve_delta_timestamps(config, meta),
    )
    return policy, preprocessor, dataset


def choose_frames(dataset: LeRobotDataset, horizon: int, num_frames: int) -> list[int]:
    """Indices of frames that have a future, spread evenly over the dataset."""
    episodes = dataset.meta.episodes
    indices = [
        index
        for start, end in zip(
            episodes["dataset_from_index"], episodes["dataset_to_index"], strict=True
        )
        for index in range(start, end - horizon)
    ]
    chosen = torch.linspace(0, len(indices) - 1, min(num_frames, len(indices))).round().long()
    return [indices[i] for i in chosen.tolist()]


def imagine(args: PictureArguments) -> tuple[Imagined, float]:
    """Let the policy imagine the motion of frames spread over the dataset.

    Returns:
        What it imagined, and the displacement drawn at full saturation, in pixels.
    """
    policy, preprocessor, dataset = load(args)
    step = next(s for s in preprocessor.steps if isinstance(s, MotionTargetStep))
    codec = load_latent_codec(step.vae, str(policy.config.device))
    indices = choose_frames(dataset, policy.config.motion_horizon, args.num_frames)
    parts: dict[str, list[Tensor]] = {"frames": [], "targets": [], "predictions": []}
    parts["reconstructions"] = []
    places: list[str] = []
    for start in tqdm(range(0, len(indices), args.batch_size), desc="Imagining", unit="batch"):
        items = [dataset[index] for index in indices[start : start + args.batch_size]]
        batch = torch.utils.data.default_collate(items)
        parts["frames"].append(letterbox(batch[step.camera][:, 0], policy.config.image_resolution))
        targets = step.motion_images(batch[step.camera].to(policy.config.device))
        places += [
            f"episode {int(item['episode_index'])}, {float(item['timestamp']):.1f} s"
            for item in items
        ]
        processed = preprocessor(batch)
        if not bool(processed[MOTION_VALID].all()):
            raise ValueError("a chosen frame has no future within its episode.")
        parts["targets"].append(targets)
        parts["predictions"].append(policy.predict_motion(processed, num_steps=args.num_steps))
        parts["reconstructions"].append(codec.decode(processed[MOTION_LATENT]))
    tensors = {name: torch.cat(values).cpu() for name, values in parts.items()}
    return Imagined(places=places, **tensors), step.max_magnitude


def end_point_error(image: Tensor, target: Tensor, max_magnitude: float) -> Tensor:
    """Mean end-point error of each frame's flow, in pixels, (N,)."""
    difference = motion_image_to_flow(image, max_magnitude) - motion_image_to_flow(
        target, max_magnitude
    )
    lengths: Tensor = torch.linalg.vector_norm(difference, dim=1)  # (N, H, W)
    return lengths.mean(dim=(1, 2))


def measure(imagined: Imagined, max_magnitude: float) -> dict[str, float | int]:
    """End-point errors over all frames, in pixels: the policy's, no motion's, the codec's."""
    still = torch.ones_like(imagined.targets)
    errors = {
        name: end_point_error(image, imagined.targets, max_magnitude).mean().item()
        for name, image in (
            ("predicted_epe_px", imagined.predictions),
            ("no_motion_epe_px", still),
            ("codec_epe_px", imagined.reconstructions),
        )
    }
    return {**{name: round(value, 3) for name, value in errors.items()}, "frames": len(still)}


def draw(imagined: Imagined, max_magnitude: float, args: PictureArguments) -> None:
    """Write the picture of the frames that move most, one of every stretch of the dataset."""
    still = torch.ones_like(imagined.targets)
    motion = end_point_error(still, imagined.targets, max_magnitude)
    errors = end_point_error(imagined.predictions, imagined.targets, max_magnitude)
    rows, captions = [], []
    for stretch in torch.arange(len(motion)).tensor_split(min(args.num_rows, len(motion))):
        index = int(stretch[motion[stretch].argmax()])
        target = to_pil(imagined.targets[index], low=-1.0)
        observation = to_pil(imagined.frames[index])
        rows.append([observation, target, to_pil(imagined.predictions[index], low=-1.0)])
        captions.append(
            f"{imagined.places[index]}: error {errors[index]:.2f} px, "
            f"no motion {motion[index]:.2f} px"
        )
    grid = picture_grid(rows, ["observation", "target", "predicted"], captions, max_magnitude)
    temporary = args.output.with_suffix(".tmp.png")
    grid.save(temporary)
    temporary.replace(args.output)


@draccus.wrap()
def main(args: PictureArguments) -> None:
    """Imagine, measure, draw."""
    set_seed(args.seed)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    imagined, max_magnitude = imagine(args)
    figures = measure(imagined, max_magnitude)
    draw(imagined, max_magnitude, args)
    args.output.with_suffix(".json").write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures))
    print(f"Picture: {args.output}")


if __name__ == "__main__":
    main()
