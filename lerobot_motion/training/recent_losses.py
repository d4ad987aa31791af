"""Losses of the last training batches, for the model card."""

import math
from collections import deque
from typing import Any

from lerobot_motion.checkpoints.card_tables import MeanLosses

_NUM_RECENT_BATCHES = 100


class RecentLosses:
    """Losses of the last training batches, either of the warm-up or of joint learning."""

    def __init__(self, num_batches: int = _NUM_RECENT_BATCHES) -> None:
        """Begin with none.

        Args:
            num_batches: How many batches to keep.
        """
        self._losses: deque[dict[str, float]] = deque(maxlen=num_batches)
        self._in_warmup = False

    def add(self, log: dict[str, Any], *, in_warmup: bool) -> None:
        """Note the losses of a batch. When the warm-up ends, those before it are dropped.

        Args:
            log: What the policy's `forward` logs.
            in_warmup: Whether the batch is one of the warm-up.
        """
        if in_warmup != self._in_warmup:
            self._losses.clear()
        self._in_warmup = in_warmup
        names = ("loss", "action_loss", "motion_loss")
        self._losses.append({name: float(log[name]) for name in names if name in log})

    def means(self) -> MeanLosses | None:
        """Means of what was noted; None if there is nothing."""
        if not self._losses:
            return None
        count = len(self._losses)
        values = {name: math.fsum(row[name] for row in self._losses) for name in self._losses[0]}
        means = {name: total / count for name, total in values.items()}
        return MeanLosses(count, means, self._in_warmup)
