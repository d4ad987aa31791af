"""The order in which training sees frames, and random image transforms that follow it."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, islice, repeat
from typing import Any

import numpy as np
import torch
from lerobot.datasets import EpisodeAwareSampler


class FrameOrder:
    """LeRobot's sampler, in the place that accelerate has for another one.

    Attributes:
        sampler: LeRobot's sampler, whose order is a function of its seed and the epoch.
    """

    def __init__(
        self, sampler: EpisodeAwareSampler, *, head: int = 0, with_epoch: bool = False
    ) -> None:
        """Keep the sampler's order, but for two additions.

        Args:
            sampler: LeRobot's sampler.
            head: Frames of the epoch's beginning that come first where the sampler starts inside
                an epoch. accelerate fills the epoch's last batches with them.
            with_epoch: Give (frame, epoch) instead of the frame, for `SeededFrames`.
        """
        self.sampler = sampler
        self._head = head
        self._with_epoch = with_epoch

    def set_epoch(self, epoch: int) -> None:
        """Choose the coming epoch; accelerate calls this.

        Args:
            epoch: Its number, from 0.
        """
        self.sampler.set_epoch(epoch)

    def __len__(self) -> int:
        """Frames of an epoch."""
        return len(self.sampler)

    def __iter__(self) -> Iterator[Any]:
        """Indices of the coming epoch's frames."""
        position = self.sampler.state_dict()
        frames = iter(self.sampler)
        if self._head and position["start_index"]:
            beginning = copy.copy(self.sampler)
            beginning.load_state_dict({**position, "start_index": 0})
            frames = chain(islice(iter(beginning), self._head), frames)
        return zip(frames, repeat(position["epoch"])) if self._with_epoch else frames


class SeededFrames:
    """Fetches a dataset's frames; their random transforms depend on seed, epoch and frame alone.

    PyTorch's workers draw from a state that is in no checkpoint, and without workers a batch is
    drawn before the step that precedes it: neither can be taken up again.
    """

    def __init__(self, dataset: Any, seed: int) -> None:
        """Fetch from a dataset.

        Args:
            dataset: The training dataset.
            seed: The run's seed.
        """
        self._dataset = dataset
        self._seed = seed

    def __call__(self, frames: list[tuple[int, int]]) -> list[Any]:
        """Fetch the frames of a batch.

        Args:
            frames: Index and epoch of each.
        """
        return [self._fetch(index, epoch) for index, epoch in frames]

    def _fetch(self, index: int, epoch: int) -> Any:
        entropy = np.random.SeedSequence([self._seed, epoch, index])
        with _drawing_from(int(entropy.generate_state(1, dtype=np.uint64)[0])):
            return self._dataset[index]


@contextmanager
def _drawing_from(seed: int) -> Iterator[None]:
    """Draw from a seed within this context; the CPU's random state is as before afterwards."""
    # Not torch.manual_seed, which seeds the GPUs as well.
    generator = torch.default_generator
    state = generator.get_state()
    generator.manual_seed(seed)
    try:
        yield
    finally:
        generator.set_state(state)


def seed_transforms(loader: Any, sampler: EpisodeAwareSampler, order: FrameOrder) -> None:
    """Let random transforms depend on the frame and the epoch, not on who draws when.

    Args:
        loader: accelerate's data loader, not yet iterated.
        sampler: LeRobot's sampler of that loader.
        order: What takes the sampler's place, with epochs.
    """
    loader.set_sampler(order)
    # PyTorch's fetcher asks a dataset for a whole batch where it has this method. LeRobot's has
    # none; an attribute of the object will do, and travels to the workers with it.
    loader.dataset.__getitems__ = SeededFrames(loader.dataset, sampler.seed)
