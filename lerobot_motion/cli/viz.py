"""See a dataset's motion targets beside what a policy imagines, and measure how far it is off.

    lerobot-motion-viz --policy.path=<checkpoint> --dataset.repo_id=<user>/<name> \
        --output=outputs/viz --metrics=true

Without `--policy.path` it shows the dataset's targets alone: a check before training.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lerobot.datasets import LeRobotDatasetMetadata
from lerobot.utils.random_utils import set_seed

# Importing the configurations registers their types.
import lerobot_motion.motion_pi0.configuration_motion_pi0
import lerobot_motion.motion_pi05.configuration_motion_pi05  # noqa: F401
from lerobot_motion.checkpoints.loading import CheckpointSource
from lerobot_motion.cli.command import run_command
from lerobot_motion.cli.precompute_arguments import DatasetArguments
from lerobot_motion.extraction.recordings import (
    Recordings,
    choose_cameras,
    choose_episodes,
    open_dataset,
)
from lerobot_motion.extraction.targets import usable_device
from lerobot_motion.flow.estimator import check_estimator_name
from lerobot_motion.steps import MotionTargetStep
from lerobot_motion.viz.checkpoints import held_out_episodes, read_motion_config
from lerobot_motion.viz.imagination import Imagination, Observations, load_imagination
from lerobot_motion.viz.metrics import table
from lerobot_motion.viz.output import Output
from lerobot_motion.viz.render import Job, render
from lerobot_motion.viz.stream import RerunStream
from lerobot_motion.viz.targets import TargetSettings, check_step

# What a checkpoint settles, and what it is without one.
_WITHOUT_POLICY: dict[str, Any] = {
    "motion_target": "flow_image",
    "image_resolution": (224, 224),
    "flow_max_magnitude": 64.0,
}


@dataclass
class PolicyArguments:
    """Which checkpoint imagines."""

    # Checkpoint of motion_pi0 or motion_pi05: a local directory (…/checkpoints/<step>/
    # pretrained_model) or a hub id. Left out: the dataset's targets alone are shown.
    path: str = ""
    # Revision on the Hub: a branch, a tag or a commit. null: main.
    revision: str | None = None


@dataclass
class VizArguments:
    """See motion targets beside what a policy imagines, and measure it."""

    dataset: DatasetArguments = field(default_factory=DatasetArguments)
    policy: PolicyArguments = field(default_factory=PolicyArguments)
    # What to write: a folder (a video of each episode, a contact sheet, the legend, the figures),
    # or a file: .mp4 or .gif (all episodes, the contact sheet beside it), .png (the sheet alone).
    output: Path | None = None
    # Replace what is there already.
    overwrite: bool = False
    # Measure: end-point error, angular error, moving against still pixels, PSNR of the motion
    # image, beside predicting no motion and repeating the motion that was seen last. Prints a table
    # and writes JSON to the output.
    metrics: bool = False
    # Look at the episodes that the checkpoint's run held out (--dataset.eval_split).
    held_out: bool = False
    # Look at every n-th frame; the video runs at the pace of life all the same.
    stride: int = 1
    # Stream to a Rerun viewer, too.
    display_data: bool = False
    # Address of a viewer that runs already. null: one is started.
    display_ip: str | None = None
    # Port of that viewer.
    display_port: int | None = None
    # Observation keys of the dataset by the policy's names, for a dataset with other names than the
    # one that the policy was trained on: '{observation.images.front: observation.images.top}'.
    rename_map: dict[str, str] = field(default_factory=dict)
    # Camera to look at, by the dataset's own name, or several, separated by commas. null: the
    # policy's motion cameras, or the only one.
    camera: str | None = None
    # Frames from an observation to its future frame. null: the policy's, or one second.
    horizon: int | None = None
    # What is drawn: flow_image or future_image. null: the policy's, or flow_image.
    motion_target: str | None = None
    # Height and width to which frames are letterboxed, in pixels. null: the policy's, or 224x224.
    image_resolution: tuple[int, int] | None = None
    # Displacement drawn at full saturation, in pixels. null: the policy's, or 64.
    flow_max_magnitude: float | None = None
    # Optical flow of the targets: raft_large, raft_small or dis (OpenCV, on the CPU, no weights).
    # null: that which the policy was trained with, or raft_large.
    flow_estimator: str | None = None
    # Weights of RAFT: a local safetensors file in torchvision's naming. null: those that the policy
    # was trained with, or torchvision's own.
    flow_weights: str | None = None
    # Euler steps of the imagination.
    num_steps: int = 10
    # Frames at once.
    batch_size: int = 16
    # Rows of the contact sheet: the frames that move most, one of every stretch.
    num_rows: int = 4
    # Seed of the imagination's noise.
    seed: int = 0
    # Device of the networks. null: cuda if there is one, else cpu.
    device: str | None = None
    # By how much the time of a video frame may be off, in seconds.
    tolerance_s: float = 1e-4
    # Messages to show: debug, info, warning or error. debug: errors with their traceback.
    log_level: str = "warning"


def check_arguments(args: VizArguments) -> Output | None:
    """Refuse a command line that cannot be carried out, before anything is read.

    Args:
        args: The command line.

    Returns:
        Where to write, or None.

    Raises:
        ValueError: If an argument is out of range or contradicts another.
        OSError: If the output is there already.
    """
    if args.output is None and not args.metrics and not args.display_data:
        raise ValueError(
            "nothing to do: pass --output=<folder or file>, --metrics=true or --display_data=true."
        )
    for name in ("stride", "num_steps", "batch_size", "num_rows"):
        if getattr(args, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(args, name)}.")
    if args.held_out and not args.policy.path:
        raise ValueError("held_out needs --policy.path: a checkpoint says what its run held out.")
    if args.held_out and args.dataset.episodes is not None:
        raise ValueError(
            "held_out and dataset.episodes both choose episodes, got "
            f"{args.dataset.episodes}: pass one of them."
        )
    if args.policy.path:
        given = [*_WITHOUT_POLICY, "horizon", "camera"]
        given = [name for name in given if getattr(args, name) is not None]
        if given:
            raise ValueError(
                f"{', '.join(given)}: a checkpoint settles what it imagines. Leave it out with "
                "--policy.path."
            )
    if args.flow_estimator is not None:
        check_estimator_name(args.flow_estimator)
    if args.output is None:
        return None
    output = Output(args.output, args.overwrite)
    output.check(metrics=args.metrics)
    return output


def make_job(args: VizArguments) -> Job:
    """Settle what to look at, and load the policy.

    Args:
        args: The command line.

    Raises:
        ValueError: If an argument, the checkpoint or the dataset does not suit.
        OSError: If something cannot be read.
        ImportError: If the checkpoint has adapters and peft is not installed.
    """
    device = usable_device(args.device)
    source = CheckpointSource(args.policy.path, revision=args.policy.revision)
    config = read_motion_config(source, device) if args.policy.path else None
    if config is not None and args.flow_estimator not in (None, config.flow_estimator):
        config.flow_estimator, config.flow_weights = args.flow_estimator, None
    if config is not None:
        config.flow_weights = args.flow_weights or config.flow_weights
    step = _target_step(args, config)
    check_step(step)
    meta = open_dataset(args.dataset.repo_id, args.dataset.root, args.dataset.revision)
    asked = held_out_episodes(source, meta) if args.held_out else args.dataset.episodes
    horizon = meta.fps if args.horizon is None else args.horizon
    if config is not None:
        horizon = config.motion_horizon
    episodes = choose_episodes(meta, asked, horizon)
    imagination = None
    if config is not None:
        imagination = _imagination(args, source, config, meta, episodes)
    cameras = choose_cameras(meta, args.camera) if imagination is None else imagination.cameras
    views = [
        Recordings(meta, camera, args.tolerance_s, args.dataset.video_backend) for camera in cameras
    ]
    for view in views:
        view.fetch(episodes)
    step = replace(step, camera=list(cameras) if len(cameras) > 1 else cameras[0])
    return Job(
        views=views,
        episodes=episodes,
        settings=TargetSettings(horizon, step, device),
        imagination=imagination,
        stride=args.stride,
        batch_size=args.batch_size,
        num_rows=args.num_rows,
        metrics=args.metrics,
        facts=_facts(args, step, horizon, meta),
    )


def _imagination(
    args: VizArguments,
    source: CheckpointSource,
    config: Any,
    meta: LeRobotDatasetMetadata,
    episodes: Sequence[int],
) -> Imagination:
    seen = Observations(
        meta, episodes, args.rename_map, args.tolerance_s, args.dataset.video_backend
    )
    return load_imagination(source, config, seen, num_steps=args.num_steps, seed=args.seed)


def _target_step(args: VizArguments, config: Any | None) -> MotionTargetStep:
    """The step that makes targets in training; its cameras await the dataset's own names."""
    if config is not None:
        return MotionTargetStep(**config.motion_target_settings)
    settled = {
        name: default if getattr(args, name) is None else getattr(args, name)
        for name, default in _WITHOUT_POLICY.items()
    }
    return MotionTargetStep(
        camera=[],
        flow_estimator=args.flow_estimator or "raft_large",
        flow_weights=args.flow_weights,
        max_magnitude=settled["flow_max_magnitude"],
        # No latents are made.
        vae="",
        latent_shape=[],
        image_resolution=list(settled["image_resolution"]),
        motion_target=settled["motion_target"],
    )


def _facts(
    args: VizArguments, step: MotionTargetStep, horizon: int, meta: LeRobotDatasetMetadata
) -> dict[str, Any]:
    """What the figures' file says of where they come from."""
    policy = {"path": args.policy.path, "num_steps": args.num_steps, "seed": args.seed}
    return {
        "dataset": {"repo_id": meta.repo_id, "camera": step.camera, "stride": args.stride},
        "policy": policy if args.policy.path else None,
        "target": {
            "motion_target": step.motion_target,
            "horizon": horizon,
            "flow_estimator": step.flow_estimator,
            "flow_max_magnitude": step.max_magnitude,
            "image_resolution": step.image_resolution,
        },
    }


def viz(args: VizArguments) -> None:
    """Draw, measure and stream, and print what came of it.

    Args:
        args: The command line.

    Raises:
        ValueError: If an argument, the checkpoint or the dataset does not suit.
        OSError: If something cannot be read or written.
        ImportError: If peft or Rerun is needed and not installed.
    """
    output = check_arguments(args)
    set_seed(args.seed)
    job = make_job(args)
    stream = None
    if args.display_data:
        stream = RerunStream("lerobot_motion_viz", args.display_ip, args.display_port)
    figures = render(job, output, stream)
    if args.metrics:
        print(table(figures.reports()))
    if output is not None:
        print(f"Written: {output.path}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see `run_command` for the exit status.

    Args:
        argv: Arguments, or None for those of the process.
    """
    return run_command(VizArguments, viz, argv, interrupted="Stopped; nothing was written.")


if __name__ == "__main__":
    sys.exit(main())
