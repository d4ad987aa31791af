"""What a policy needs to know of the `lerobot-train` run that builds it.

LeRobot 0.6.1 shows a policy its own configuration and the dataset's metadata, but not the run's:
whether the dataset is streamed, how observations are renamed, how many steps there are, whether it
resumes. `TrainPipelineConfig.validate`, which every run calls before it builds anything, is
therefore wrapped, here and nowhere else. tests/parity/test_lerobot_contract.py fails when LeRobot
changes what this leans on.
"""

import functools
from dataclasses import dataclass, field
from typing import Any

from lerobot.configs.train import TrainPipelineConfig


@dataclass(frozen=True)
class TrainRun:
    """Settings of a training run.

    Attributes:
        num_steps: Optimizer steps.
        rename_map: Observation keys of the dataset by their name in the policy.
        resume: Whether the run continues a checkpoint.
        streaming: Whether the dataset is streamed.
        image_transforms: Whether frames are transformed at random.
    """

    num_steps: int
    rename_map: dict[str, str] = field(default_factory=dict)
    resume: bool = False
    streaming: bool = False
    image_transforms: bool = False


def install_run_hook() -> None:
    """Let policies that have a method `enter_run(run)` see the run; done once."""
    validate = TrainPipelineConfig.validate
    if getattr(validate, "enters_run", False):
        return

    @functools.wraps(validate)
    def validate_and_enter(self: Any) -> None:
        validate(self)
        enter_run = getattr(self.policy, "enter_run", None)
        if enter_run is not None:
            enter_run(
                TrainRun(
                    num_steps=self.steps,
                    rename_map=dict(self.rename_map),
                    resume=self.resume,
                    streaming=self.dataset.streaming,
                    image_transforms=self.dataset.image_transforms.enable,
                )
            )

    validate_and_enter.enters_run = True  # type: ignore[attr-defined]
    TrainPipelineConfig.validate = validate_and_enter
