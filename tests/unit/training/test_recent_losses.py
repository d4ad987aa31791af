import math
from typing import Any

from lerobot_motion.checkpoints.card_tables import MeanLosses
from lerobot_motion.training.recent_losses import RecentLosses


def log_of(value: float) -> dict[str, Any]:
    return {
        "loss": value,
        "action_loss": 2 * value,
        "motion_loss": 3 * value,
        "loss_per_dim": [1.0],
    }


def test_the_last_batches_are_averaged() -> None:
    losses = RecentLosses(num_batches=2)
    assert losses.means() is None

    for value in (9.0, 1.0, 2.0):
        losses.add(log_of(value), in_warmup=False)

    means = {"loss": 1.5, "action_loss": 3.0, "motion_loss": 4.5}
    assert losses.means() == MeanLosses(2, means, in_warmup=False)


def test_the_warmups_losses_are_dropped_when_it_ends() -> None:
    losses = RecentLosses()
    losses.add({"loss": 5.0, "action_loss": math.nan, "motion_loss": 5.0}, in_warmup=True)
    in_warmup = losses.means()
    losses.add(log_of(1.0), in_warmup=False)

    assert in_warmup is not None
    assert (in_warmup.num_batches, in_warmup.in_warmup) == (1, True)
    assert losses.means() == MeanLosses(
        1, {"loss": 1.0, "action_loss": 2.0, "motion_loss": 3.0}, in_warmup=False
    )
