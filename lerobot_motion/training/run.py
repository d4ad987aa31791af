"""The hook that lets a policy see the `lerobot-train` run that builds it.

LeRobot 0.6.1 shows a policy its own configuration and the dataset's metadata, but not the run's:
whether the dataset is streamed, how observations are renamed, how many steps there are, whether it
resumes. `TrainPipelineConfig.validate`, which every run calls before it builds anything, is
therefore wrapped, here and nowhere else. tests/parity/test_lerobot_contract.py fails when LeRobot
changes what this leans on.
"""

import functools
from pathlib import Path
from typing import Any

from lerobot.configs.train import TrainPipelineConfig

from lerobot_motion.training.ranks import warning_once
from lerobot_motion.training.resume_checks import check_resumed
from lerobot_motion.training.train_run import TrainRun

# Transforms of torchvision and LeRobot that change colours and move nothing.
COLOUR_TRANSFORMS = {
    "ColorJitter",
    "GaussianBlur",
    "GaussianNoise",
    "GaussianPatchBrightness",
    "Grayscale",
    "Identity",
    "JPEGCompression",
    "MotionBlur",
    "RandomAdjustSharpness",
    "RandomAutocontrast",
    "RandomChannelPermutation",
    "RandomEqualize",
    "RandomGrayscale",
    "RandomInvert",
    "RandomPhotometricDistort",
    "RandomPosterize",
    "RandomShadow",
    "RandomSolarize",
    "SharpnessJitter",
}


def install_run_hook() -> None:
    """Let policies that have a method `enter_run(run)` see the run; done once."""
    validate = TrainPipelineConfig.validate
    if getattr(validate, "enters_run", False):
        return

    @functools.wraps(validate)
    def validate_and_enter(self: Any) -> None:
        # Only here, where LeRobot has imported all that this imports: other commands start sooner.
        from lerobot_motion.checkpoints.uploading import check_upload
        from lerobot_motion.training.exact_resume import enter_exact_run, first_step

        validate(self)
        enter_run = getattr(self.policy, "enter_run", None)
        if enter_run is not None:
            with warning_once():
                if self.resume and self.checkpoint_path is not None:
                    # Not the link `last`, which leads elsewhere with the next checkpoint.
                    self.policy.pretrained_path = Path(self.policy.pretrained_path).resolve()
                    check_resumed(self.policy, self.checkpoint_path)
                check_upload(self)
                enter_run(_describe(self, first_step(self)))
        enter_exact_run(None if enter_run is None else self)

    validate_and_enter.enters_run = True  # type: ignore[attr-defined]
    TrainPipelineConfig.validate = validate_and_enter


def _describe(config: TrainPipelineConfig, first_step: int) -> TrainRun:
    dataset, transforms = config.dataset, config.dataset.image_transforms
    return TrainRun(
        num_steps=config.steps,
        first_step=first_step,
        log_freq=config.log_freq,
        rename_map=dict(config.rename_map),
        resume=config.resume,
        adapters=config.peft is not None,
        streaming=dataset.streaming,
        image_transforms=transforms.enable,
        geometric_transforms=_geometric(transforms.tfs) if transforms.enable else (),
        episodes=None if dataset.episodes is None else tuple(dataset.episodes),
        eval_split=dataset.eval_split,
        pipeline=config,
    )


def _geometric(transforms: dict[str, Any]) -> tuple[str, ...]:
    """Names of the transforms in use that are not known to leave every pixel in its place."""
    return tuple(
        f"{name} ({transform.type})"
        for name, transform in transforms.items()
        if transform.weight > 0 and transform.type not in COLOUR_TRANSFORMS
    )
