"""What a policy needs to know of the `lerobot-train` run that builds it."""

from dataclasses import dataclass, field

from lerobot.configs.train import TrainPipelineConfig


@dataclass(frozen=True)
class TrainRun:
    """Settings of a training run.

    Attributes:
        num_steps: Optimizer steps.
        first_step: Optimizer steps before it, of the run that it resumes.
        log_freq: Steps of a log interval; 0: nothing is logged.
        rename_map: Observation keys of the dataset by their name in the policy.
        resume: Whether the run continues a checkpoint.
        adapters: Whether the run trains adapters (--peft).
        streaming: Whether the dataset is streamed.
        image_transforms: Whether frames are transformed at random.
        geometric_transforms: Names of those transforms that move pixels.
        episodes: Episodes of the run, or None for all.
        eval_split: Share of them that is held out.
        pipeline: LeRobot's own configuration of the run, for the model card.
    """

    num_steps: int
    first_step: int = 0
    log_freq: int = 0
    rename_map: dict[str, str] = field(default_factory=dict)
    resume: bool = False
    adapters: bool = False
    streaming: bool = False
    image_transforms: bool = False
    geometric_transforms: tuple[str, ...] = ()
    episodes: tuple[int, ...] | None = None
    eval_split: float = 0.0
    pipeline: TrainPipelineConfig | None = field(default=None, repr=False, compare=False)
