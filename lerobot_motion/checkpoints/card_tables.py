"""The facts of a model card, and its tables: what a policy is, and how it was trained."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub.constants import ENDPOINT
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from lerobot.__version__ import __version__ as lerobot_version
from lerobot.configs.train import TrainPipelineConfig

from lerobot_motion import __version__
from lerobot_motion.checkpoints.origin import checkpoint_label, is_hub_id
from lerobot_motion.motion_target import NO_TARGET

DISTRIBUTION = "lerobot_policy_motion"
_LISTED_TASKS = 5

Rows = Mapping[str, str | None]


@dataclass(frozen=True)
class DatasetFacts:
    """What a card says of the training dataset.

    Attributes:
        repo_id: Its repository, on the Hub or local.
        num_episodes: Episodes that it holds.
        num_frames: Frames that it holds.
        fps: Frames per second.
        robot_type: The robot that it was recorded with, if known.
        tasks: Its instructions.
    """

    repo_id: str
    num_episodes: int
    num_frames: int
    fps: float
    robot_type: str | None
    tasks: tuple[str, ...]


@dataclass(frozen=True)
class MeanLosses:
    """Losses of the last training batches of a run.

    Attributes:
        num_batches: Batches that the means are taken over.
        values: Mean of each loss by its name; NaN if it was not computed.
        in_warmup: Whether the batches are of the warm-up.
    """

    num_batches: int
    values: dict[str, float]
    in_warmup: bool


@dataclass(frozen=True)
class Training:
    """How a checkpoint came about.

    Attributes:
        run: Configuration of the run, or None if unknown.
        dataset: The dataset, or None if unknown.
        num_updates: Optimizer steps of the motion head, those of earlier runs included; None
            without a motion head.
        losses: Losses of the last batches, or None if this process trained none.
        num_processes: Processes that trained.
        has_picture: Whether a picture of predicted motion lies beside the card.
    """

    run: TrainPipelineConfig | None = None
    dataset: DatasetFacts | None = None
    num_updates: int | None = None
    losses: MeanLosses | None = None
    num_processes: int = 1
    has_picture: bool = False


def describe_dataset(dataset_meta: Any) -> DatasetFacts:
    """Read what a card says of a dataset from its metadata.

    Args:
        dataset_meta: LeRobot's `LeRobotDatasetMetadata`.
    """
    return DatasetFacts(
        repo_id=dataset_meta.repo_id,
        num_episodes=dataset_meta.total_episodes,
        num_frames=dataset_meta.total_frames,
        fps=dataset_meta.fps,
        robot_type=dataset_meta.robot_type,
        tasks=tuple(str(task) for task in dataset_meta.tasks.index),
    )


def dataset_id(training: Training) -> str | None:
    """The training dataset's repository, if it is known and has the form of one.

    Args:
        training: How the checkpoint was trained.
    """
    known = [training.run.dataset] if training.run is not None else [training.dataset]
    repo_id = known[0].repo_id if known[0] is not None else None
    try:
        validate_repo_id(repo_id)
    except HFValidationError:
        return None
    return repo_id


def quoted(names: Iterable[str]) -> str:
    """List names as code.

    Args:
        names: The names.
    """
    return ", ".join(f"`{name}`" for name in names)


def policy_table(config: Any, training: Training, origin: str | None) -> str:
    """Tabulate what a policy is.

    Args:
        config: Its configuration.
        training: How it was trained.
        origin: The checkpoint that training began with, or None for random weights.
    """
    dataset, run = training.dataset, training.run
    rows: dict[str, str | None] = {
        "Policy": f"`{config.type}` of the LeRobot plugin `{DISTRIBUTION}` {__version__}",
        "Started from": _origin_text(config, training, origin),
        "Dataset": _dataset_text(training),
        "Tasks": _tasks_text(dataset) if dataset is not None else None,
        "Robot": f"`{dataset.robot_type}`" if dataset and dataset.robot_type else None,
        "Cameras": quoted(config.image_features),
        "Actions": f"chunks of {_frames(config.chunk_size, dataset)}",
        "Backbone": f"{config.backbone}, {config.dtype}",
        "Adapters": f"{run.peft.method_type}, rank {run.peft.r}" if run and run.peft else None,
    }
    if config.motion_target != NO_TARGET:
        rows |= _motion_rows(config, dataset)
    return _table(rows)


def training_table(config: Any, training: Training) -> str:
    """Tabulate how a policy was trained.

    Args:
        config: Its configuration.
        training: How it was trained.
    """
    run, weight = training.run, config.motion_loss_weight
    rows: dict[str, str | None] = {"Optimizer steps": _steps_text(training)}
    if config.motion_target != NO_TARGET:
        warmup = config.motion_warmup_steps
        rows["Warm-up"] = f"{_count(warmup, 'step')} of the motion head alone" if warmup else "none"
        rows["Loss"] = f"action_loss + {weight:g} · motion_loss"
    if run is not None:
        held_out = run.dataset.eval_split
        processes = f" on each of {training.num_processes} processes"
        rows |= {
            "Batch size": f"{run.batch_size}{processes if training.num_processes > 1 else ''}",
            "Optimizer": _optimizer_text(config, run),
            "Seed": str(run.seed),
            "Episodes": f"{len(run.dataset.episodes):,} of them" if run.dataset.episodes else None,
            "Held out": f"{held_out:.0%} of each task's episodes" if held_out else None,
            "Image transforms": "at random" if run.dataset.image_transforms.enable else None,
            "LeRobot": lerobot_version,
        }
    return _table(rows)


def losses_table(training: Training) -> str:
    """Tabulate the last losses, and say what they are means of.

    Args:
        training: How the policy was trained.
    """
    losses = training.losses
    if losses is None:
        return "The process that wrote this card trained no step, so it knows no losses."
    cells = {
        name: "not computed" if losses.in_warmup and name == "action_loss" else f"{value:.4g}"
        for name, value in losses.values.items()
    }
    batches = f"{losses.num_batches} batches" if losses.num_batches > 1 else "batch"
    whose = " of process 0" if training.num_processes > 1 else ""
    when = ", in the warm-up" if losses.in_warmup else ""
    return (
        f"Training losses, mean of the last {batches}{whose}{when}:\n\n"
        f"| {' | '.join(cells)} |\n|{'---|' * len(cells)}\n| {' | '.join(cells.values())} |"
    )


def _motion_rows(config: Any, dataset: DatasetFacts | None) -> Rows:
    height, width = config.image_resolution
    weights = f" (weights: `{Path(config.flow_weights).name}`)" if config.flow_weights else ""
    flow = (
        f": optical flow by `{config.flow_estimator}`{weights} on {height}×{width} px, "
        f"full saturation at {config.flow_max_magnitude:g} px"
    )
    vae = Path(config.motion_vae)
    shape = "×".join(str(size) for size in config.motion_latent_shape or ())
    stored = config.motion_latents is not None
    return {
        f"Motion camera{'s' if len(config.motion_cameras) > 1 else ''}": quoted(
            config.motion_cameras
        ),
        "Motion horizon": _frames(config.motion_horizon, dataset),
        "Motion target": f"`{config.motion_target}`{flow if config.estimates_flow else ''}",
        "Motion VAE": f"`{vae.name if vae.exists() else vae}`, latents of {shape}",
        "Motion head": (
            f"{config.motion_head_layers} transformer blocks, {config.motion_head_heads} heads, "
            f"width {config.motion_head_dim}"
        ),
        "Targets from": "a latent store" if stored else "the dataset's frames, as training went",
    }


def _origin_text(config: Any, training: Training, origin: str | None) -> str | None:
    if origin is None:
        return "random weights" if training.run is not None else None
    if not is_hub_id(origin):
        return f"`{checkpoint_label(origin)}` (local)"
    revision = config.pretrained_revision
    return _link(origin) + (f" at `{revision}`" if revision else "")


def _link(repo_id: str, kind: str = "") -> str:
    return f"[{repo_id}]({ENDPOINT}/{kind}{repo_id})"


def _dataset_text(training: Training) -> str | None:
    repo_id, facts, run = dataset_id(training), training.dataset, training.run
    if repo_id is None:
        return None
    is_local = run is not None and run.dataset.root is not None
    text = f"`{repo_id}` (a local folder)" if is_local else _link(repo_id, "datasets/")
    if facts is None:
        return text
    episodes, frames = _count(facts.num_episodes, "episode"), _count(facts.num_frames, "frame")
    return f"{text}: {episodes}, {frames} at {facts.fps:g} fps"


def _tasks_text(dataset: DatasetFacts) -> str:
    more = len(dataset.tasks) - _LISTED_TASKS
    listed = "; ".join(dataset.tasks[:_LISTED_TASKS])
    return f"{listed}; {more} more" if more > 0 else listed


def _frames(count: int, dataset: DatasetFacts | None) -> str:
    frames = _count(count, "frame")
    if dataset is None:
        return frames
    return f"{frames}, {count / dataset.fps:.2f} s at {dataset.fps:g} fps"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _steps_text(training: Training) -> str | None:
    steps, run = training.num_updates, training.run
    if run is None:
        return None if steps is None else f"{steps:,}"
    if steps is None:
        return f"a run of {run.steps:,}"
    if steps > run.steps:
        return f"{steps:,} of the motion head in all: a run of {run.steps:,}, and those before it"
    return f"{steps:,}" if steps == run.steps else f"{steps:,} of {run.steps:,}"


def _optimizer_text(config: Any, run: TrainPipelineConfig) -> str | None:
    if run.optimizer is None:
        return None
    text = f"{run.optimizer.type}, learning rate {run.optimizer.lr:g}"
    rate = config.motion_head_lr
    return text if rate is None else f"{text}; of the motion head {rate:g}"


def _table(rows: Rows) -> str:
    """A table of two columns, without the rows that are not known."""
    lines = [f"| {name} | {_cell(text)} |" for name, text in rows.items() if text is not None]
    return "\n".join(["| | |", "|---|---|", *lines])


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
