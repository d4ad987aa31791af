"""How a training step grows: with batch, cameras, horizon, and layers and views of the motion head.

    python benchmarks/scaling.py --size=tiny

One thing changes at a time. Each value is run in pairs, stock pi0 and motion_pi0 in turn, on
batches of random numbers that lie on the device: the forward pass, the backward pass, AdamW.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from harness import BenchmarkArguments, Findings, fill, interleave, main
from machine import choose_device
from policy_steps import AS_STOCK, OPTIONS_ON, Trainee, require_bytes, training_bytes, variant_of
from regime_steps import PROMPT_TOKENS, Variant, camera_names, make_batch
from reporting import Table, paired_ratios, summarize

STOCK, OURS = "pi0", "motion_pi0"
# What grows. A further one is a name here, values of it in SIZES, and its place in `point`.
BATCH, CAMERAS, HORIZON, LAYERS = "batch", "cameras", "horizon", "head layers"
VIEWS = "views"
# Of these cameras the motion of so many views is learned.
VIEWED_CAMERAS = 3
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {
        "rounds": 3,
        "steps": 2,
        "dtype": "float32",
        "batch_size": 4,
        "gradient_checkpointing": False,
        "values": {
            BATCH: [2, 4, 8],
            CAMERAS: [1, 2, 3],
            HORIZON: [4, 16, 50],
            LAYERS: [1, 3, 6],
            VIEWS: [1, 2, 3],
        },
    },
    "full": {
        "rounds": 3,
        "steps": 3,
        "dtype": "bfloat16",
        "batch_size": 16,
        "gradient_checkpointing": True,
        "values": {
            BATCH: [8, 16, 32],
            CAMERAS: [1, 2, 3],
            HORIZON: [10, 30, 50],
            LAYERS: [3, 6, 12],
            VIEWS: [1, 2, 3],
        },
    },
}


@dataclass
class ScalingArguments(BenchmarkArguments):
    """How a training step grows."""

    # What grows, and its values. null: what the size says.
    values: dict[str, list[int]] | None = None
    # Samples of a batch, where it is not the batch that grows.
    batch_size: int | None = None
    # Steps of a round.
    steps: int | None = None
    # bfloat16 or float32 (--policy.dtype of lerobot-train).
    dtype: str | None = None
    # Recompute activations in the backward pass.
    gradient_checkpointing: bool | None = None
    # Attention, AdamW and padding of motion_pi0: as stock pi0's, or its own options.
    options: bool = field(default=False)


@dataclass(frozen=True)
class Point:
    """A value of what grows.

    Attributes:
        stock: Stock pi0 at this value.
        ours: motion_pi0.
        batch_size: Samples of a batch.
    """

    stock: Variant
    ours: Variant
    batch_size: int


def point(args: ScalingArguments, what: str, value: int) -> Point:
    """What is run for a value.

    Args:
        args: The command line, filled.
        what: What grows.
        value: Its value.

    Raises:
        ValueError: If nothing of that name can grow.
    """
    shared: dict[str, Any] = {"gradient_checkpointing": args.gradient_checkpointing}
    ours: dict[str, Any] = dict(OPTIONS_ON if args.options else AS_STOCK)
    batch_size, cameras = args.batch_size or 1, 2
    if what == BATCH:
        batch_size = value
    elif what == CAMERAS:
        cameras = value
    elif what == HORIZON:
        shared |= {"chunk_size": value, "n_action_steps": value}
    elif what == LAYERS:
        ours["motion_head_layers"] = value
    elif what == VIEWS:
        cameras = max(VIEWED_CAMERAS, value)
        ours["motion_camera"] = camera_names(cameras)[:value]
    else:
        known = [BATCH, CAMERAS, HORIZON, LAYERS, VIEWS]
        raise ValueError(f"values must be of {known}, got {what!r}.")
    stock, motion = (
        variant_of(policy, args.size, str(args.dtype), cameras, **settings)
        for policy, settings in ((STOCK, shared), (OURS, shared | ours))
    )
    return Point(stock, motion, batch_size)


def benchmark(args: ScalingArguments, _: Path) -> Findings:
    """Run every value.

    Args:
        args: The command line.

    Raises:
        ValueError: If an argument is wrong, or the machine cannot hold the size.
    """
    fill(args, SIZES)
    device = choose_device(args.device)
    points = {
        (what, value): point(args, what, value)
        for what, values in (args.values or {}).items()
        for value in values
    }
    # The largest: only the head's layers add weights worth counting.
    largest = max(points.values(), key=lambda each: dict(each.ours.settings).get(LAYERS_FIELD, 0))
    require_bytes([training_bytes(largest.stock), training_bytes(largest.ours)], device, args.size)
    rows, raw = [], []
    for (what, value), each in points.items():
        rates = _rates(args, each, device)
        seconds = {name: [each.batch_size / rate for rate in rates[name]] for name in rates}
        milliseconds = [str(summarize([1e3 * s for s in seconds[n]])) for n in (STOCK, OURS)]
        ratio = paired_ratios(seconds[OURS], seconds[STOCK])
        rows.append([what, str(value), *milliseconds, str(ratio)])
        raw.append({"what": what, "value": value, "seconds": seconds})
    return Findings(
        title=f"scaling, {device.type}{', sdpa, fused AdamW, no padding' * args.options}",
        settings={
            "size": args.size,
            "dtype": args.dtype,
            "batch_size": args.batch_size,
            "cameras": 2,
            "gradient_checkpointing": args.gradient_checkpointing,
            "steps of a round": args.steps,
            "rounds": args.rounds,
        },
        tables=[Table(["", "value", "pi0, ms a step", "motion_pi0, ms a step", "ratio"], rows)],
        notes=[
            "The ratio is of times, of rounds side by side.",
            f"Views are the motion of so many of {VIEWED_CAMERAS} cameras.",
        ],
        raw={"points": raw},
    )


LAYERS_FIELD = "motion_head_layers"


def _rates(args: ScalingArguments, each: Point, device: torch.device) -> dict[str, list[float]]:
    """Samples per second of both policies, round by round."""
    trainees = {STOCK: Trainee(each.stock, device), OURS: Trainee(each.ours, device)}
    batches = {
        name: make_batch(trainee.policy, each.batch_size, device, PROMPT_TOKENS[STOCK])
        for name, trainee in trainees.items()
    }

    def rate(name: str) -> float:
        steps = [trainees[name].step(batches[name]) for _ in range(args.steps or 1)]
        return each.batch_size * len(steps) / sum(sum(step.values()) for step in steps)

    variants = {name: (lambda _, name=name: rate(name)) for name in trainees}
    found = interleave(variants, args.rounds or 1, args.warmup, device)
    for trainee in trainees.values():
        trainee.release()
    return {name: outcome.rates for name, outcome in found.items()}


if __name__ == "__main__":
    sys.exit(main(ScalingArguments, benchmark))
