"""Resumed runs that go on exactly as an unbroken run would have.

LeRobot 0.6.1 saves the random state with a checkpoint, restores it on a resume, and lets its
sampler start inside the epoch. That is not enough:

1. accelerate counts a data loader's epochs from 0 and tells the sampler so before each: a run
   resumed in its third epoch would see the frames in the order of its first.
2. The loader's first iterator draws a seed for its workers from the random state that was just
   restored; the unbroken run had drawn it before the checkpoint. From there on all noise differs.
   So does the loader of held-out episodes, whose workers persist, at its first evaluation.
3. Random image transforms draw in workers, whose state is in no checkpoint.
4. An evaluation in an environment draws from the same random state. It comes after the checkpoint
   of the same step, and a resumed run does not repeat it.
5. On several ranks, accelerate fills the last batches of an epoch with the first frames that it
   got, which in a resumed epoch are others.

The training script has no interface for any of this. What it calls can be reached as names of its
module: three of them are replaced while it trains one of our policies, here and nowhere else, and
are LeRobot's own again for any other policy. Other runs of ours draw what they always drew, but
for image transforms (3) and environments (4). tests/parity/test_resume_contract.py fails when
LeRobot, accelerate or PyTorch change what this leans on.
"""

import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from lerobot.common.train_utils import load_training_step
from lerobot.configs.train import TrainPipelineConfig
from lerobot.datasets import EpisodeAwareSampler
from lerobot.utils.constants import TRAINING_STATE_DIR
from lerobot.utils.random_utils import get_rng_state, load_rng_state, set_rng_state

from lerobot_motion.training.frame_order import FrameOrder, seed_transforms

logger = logging.getLogger(__name__)

TRAINING_SCRIPT = "lerobot.scripts.lerobot_train"
REPLACED = ("cycle", "_dataloader_worker_kwargs", "eval_policy_all")

# LeRobot's own functions, by the name of the script's module.
_originals: dict[str, dict[str, Any]] = {}


def first_step(config: TrainPipelineConfig) -> int:
    """Optimizer steps that a run has behind it: those of the checkpoint that it resumes.

    Args:
        config: The run's configuration, validated.
    """
    if not config.resume or config.checkpoint_path is None:
        return 0
    return int(load_training_step(Path(config.checkpoint_path) / TRAINING_STATE_DIR))


def enter_exact_run(config: TrainPipelineConfig | None) -> None:
    """Prepare the training script for a run.

    Args:
        config: The run's configuration, validated; None for another policy's run, in which the
            script is LeRobot's own.
    """
    for script in _training_scripts():
        if script.__name__ in _originals:
            vars(script).update(_originals[script.__name__])
        if config is None:
            continue
        missing = [name for name in REPLACED if not hasattr(script, name)]
        if missing:
            logger.warning(
                "this version of LeRobot has another training script than 0.6.1 (no %s): a resumed "
                "run will not repeat exactly what an unbroken one does.",
                ", ".join(missing),
            )
            continue
        originals = {name: getattr(script, name) for name in REPLACED}
        _originals[script.__name__] = originals
        run = ExactRun(config, originals)
        script.cycle = run.cycle  # type: ignore[attr-defined]
        script._dataloader_worker_kwargs = run.worker_options  # type: ignore[attr-defined]
        script.eval_policy_all = run.evaluate_in_environments  # type: ignore[attr-defined]


def _training_scripts() -> list[ModuleType]:
    """LeRobot's training script: a module, and __main__ where it was started by `python -m`."""
    modules = [sys.modules.get(name) for name in (TRAINING_SCRIPT, "__main__")]
    return [
        module
        for module in modules
        if module is not None
        and module.__spec__ is not None
        and module.__spec__.name == TRAINING_SCRIPT
    ]


class ExactRun:
    """What takes the place of three functions of the training script during a run."""

    def __init__(self, config: TrainPipelineConfig, originals: dict[str, Any]) -> None:
        """Prepare for a run.

        Args:
            config: The run's configuration, validated.
            originals: LeRobot's own functions by their names.
        """
        self._originals = originals
        self._has_random_transforms = config.dataset.image_transforms.enable
        self._training_state: Path | None = None
        self._has_evaluated = False
        if config.resume and config.checkpoint_path is not None:
            self._training_state = Path(config.checkpoint_path) / TRAINING_STATE_DIR
            self._has_evaluated = 0 < config.eval_steps <= first_step(config)

    def cycle(self, loader: Any) -> Iterator[Any]:
        """Stands for `cycle`: the batches of one epoch after the other.

        Args:
            loader: accelerate's loader of the training data, not yet iterated.

        Yields:
            Batches.
        """
        sampler = _sampler_of(loader)
        if sampler is None:
            if self._training_state is not None:
                logger.warning(
                    "dataset.streaming: a resumed run reads the stream from its beginning, it does "
                    "not go on where the checkpoint was saved."
                )
            yield from self._originals["cycle"](loader)
            return
        num_skipped = self._arrange(loader, sampler)
        if self._training_state is None:
            yield from self._originals["cycle"](loader)
        else:
            yield from self._resumed(loader, sampler.state_dict(), num_skipped)

    def _arrange(self, loader: Any, sampler: EpisodeAwareSampler) -> int:
        """Replace the loader's order where need be; returns how many batches are to be dropped."""
        batch_size, start = loader.total_batch_size, sampler.state_dict()["start_index"]
        several_ranks = hasattr(loader.batch_sampler, "num_processes")
        # One batch for each rank; not if the run goes on with other numbers of ranks or frames.
        head = batch_size if several_ranks and start and start % batch_size == 0 else 0
        order = FrameOrder(sampler, head=head, with_epoch=self._has_random_transforms)
        if self._has_random_transforms:
            seed_transforms(loader, sampler, order)
        elif head:
            loader.set_sampler(order)
        return 1 if head else 0

    def _resumed(self, loader: Any, position: dict[str, int], num_skipped: int) -> Iterator[Any]:
        state = self._training_state
        loader.set_epoch(position["epoch"])
        # Only an epoch's beginning makes an iterator, and persistent workers none but the first.
        makes_iterator = position["start_index"] == 0 and not loader.persistent_workers
        load_rng_state(state)
        batches = self._originals["cycle"](loader)
        for _ in range(num_skipped):
            next(batches)
        first = next(batches)
        if not makes_iterator:
            load_rng_state(state)
        yield first
        yield from batches

    def worker_options(self, config: TrainPipelineConfig) -> dict[str, Any]:
        """Stands for `_dataloader_worker_kwargs`: options of both data loaders.

        Args:
            config: The run's configuration.

        Returns:
            LeRobot's options. Where a resumed run makes the persistent workers of the evaluation
            anew, their seed is drawn apart; that of the training's is put right by `cycle`.
        """
        options: dict[str, Any] = self._originals["_dataloader_worker_kwargs"](config)
        if self._has_evaluated and options["persistent_workers"]:
            options["generator"] = torch.Generator()
        return options

    def evaluate_in_environments(self, *args: Any, **kwargs: Any) -> Any:
        """Stands for `eval_policy_all`: leaves the random state of the training as it was.

        Args:
            *args: Passed on to LeRobot.
            **kwargs: Passed on to LeRobot.
        """
        state = get_rng_state()
        try:
            return self._originals["eval_policy_all"](*args, **kwargs)
        finally:
            set_rng_state(state)


def _sampler_of(loader: Any) -> EpisodeAwareSampler | None:
    """LeRobot's sampler of a loader, on one rank or several; a streamed dataset has none."""
    batches = loader.batch_sampler
    sampler = getattr(getattr(batches, "batch_sampler", batches), "sampler", None)
    return sampler if isinstance(sampler, EpisodeAwareSampler) else None
