"""What the host does while the device has nothing to do.

    python benchmarks/host.py --size=full

That is select_action where the action is already there, and going into training mode before every
step. Policies are on PyTorch's meta device, where full-size ones take no memory.
"""

import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from harness import BenchmarkArguments, Findings, fill, interleave, main
from policy_steps import META, variant_of
from regime_steps import ACTION_DIM, POLICIES, build
from reporting import Table, times_beside
from torch import nn

from lerobot_motion.joint.modes import QuickModes

OURS = "motion_"
# Of a row: as it would be if the flags were not read first.
SETTING = ", setting all flags"
CPU = torch.device("cpu")
SIZES: dict[str, dict[str, Any]] = {"tiny": {"rounds": 15}, "full": {"rounds": 15}}


@dataclass
class HostArguments(BenchmarkArguments):
    """What the host does while the device has nothing to do."""

    # Actions and steps of a round.
    times: int = 50


def benchmark(args: HostArguments, _: Path) -> Findings:
    """Ask each policy for actions that it has, and to train, in turn.

    Args:
        args: The command line.

    Raises:
        ValueError: If an argument is wrong.
    """
    fill(args, SIZES)
    if args.device not in {None, CPU.type} or args.times < 1:
        raise ValueError(
            "there must be at least 1 time, and no device but cpu, for no other has anything to "
            f"do; got {args.times} and {args.device}."
        )
    policies = {
        name: build(variant_of(name, args.size, "bfloat16"), META).eval() for name in POLICIES
    }
    num_rounds, tables, raw = args.rounds or 1, [], {}
    for what, rate in (("queued action", _queued), ("training mode", _training)):
        rounds: dict[str, Callable[[int], float]] = {}
        for name, policy in policies.items():
            rounds[name] = partial(rate, policy, args.times)
            if name.startswith(OURS):
                rounds[f"{name}{SETTING}"] = partial(_setting_flags, rounds[name])
        found = interleave(rounds, num_rounds, args.warmup, CPU)
        rows = [
            [
                name,
                str(sum(1 for _ in policies[name.removesuffix(SETTING)].modules())),
                *times_beside(outcome.rates, found[_stock(name)].rates),
            ]
            for name, outcome in found.items()
        ]
        tables.append(Table(["", "modules", f"{what}, ms", "ratio"], rows))
        raw[what] = {name: outcome.rates for name, outcome in found.items()}
    return Findings(
        title=f"the host's work, {args.size}",
        settings={"size": args.size, "times of a round": args.times, "rounds": num_rounds},
        tables=tables,
        notes=["The ratio is of times, to the stock policy's, of rounds side by side."],
        raw=raw,
    )


def _stock(name: str) -> str:
    return name.removesuffix(SETTING).removeprefix(OURS)


def _setting_flags(measure: Callable[[int], float], number: int) -> float:
    """Measure a round while every flag is set, whatever it is, as PyTorch does."""
    with patch.object(QuickModes, "train", nn.Module.train):
        return measure(number)


def _queued(policy: Any, times: int, _: int) -> float:
    """Actions per second, of those that wait in the queue."""
    policy.eval()
    # No public name in LeRobot 0.6.1.
    policy._action_queue = deque(torch.zeros(times, 1, ACTION_DIM))  # noqa: SLF001
    start = time.perf_counter()
    for _ in range(times):
        policy.select_action({})
    return times / (time.perf_counter() - start)


def _training(policy: Any, times: int, _: int) -> float:
    """How often a second a policy goes into the training mode that it is in."""
    policy.train()
    start = time.perf_counter()
    for _ in range(times):
        policy.train()
    return times / (time.perf_counter() - start)


if __name__ == "__main__":
    sys.exit(main(HostArguments, benchmark))
