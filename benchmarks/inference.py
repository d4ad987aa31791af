"""Driving a robot: select_action of motion_pi0 against stock pi0, with the same weights.

    python benchmarks/inference.py --size=tiny

Each round asks every policy for the same actions, over chunk boundaries, from the same noise.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from harness import BenchmarkArguments, Findings, fill, interleave, main, timed
from machine import choose_device
from policy_steps import require_bytes, variant_of, weight_bytes
from regime_steps import (
    CAMERAS,
    PROMPT_TOKENS,
    Variant,
    absent_cameras_in_title,
    build,
    make_batch,
)
from reporting import Table, megabytes, times_beside
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

STOCK, OURS = "pi0", "motion_pi0"
WITHOUT_HEAD = "motion_pi0, load_motion_head=false"
# Further rows, of the same policy.
OPTIONS: dict[str, dict[str, Any]] = {
    "motion_pi0, inference_attention=sdpa": {"inference_attention": "sdpa"},
    "motion_pi0, inference_skip_padding=true": {"inference_skip_padding": True},
    "motion_pi0, both": {"inference_attention": "sdpa", "inference_skip_padding": True},
}
AS_STOCK = {"inference_attention": "eager", "inference_skip_padding": False}
CHUNKS = 2
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"rounds": 15, "batch_size": 1, "dtype": "float32"},
    "full": {"rounds": 15, "batch_size": 1, "dtype": "bfloat16"},
}


@dataclass
class InferenceArguments(BenchmarkArguments):
    """select_action of motion_pi0 against stock pi0."""

    # Robots that are driven at once.
    batch_size: int | None = None
    # bfloat16 or float32 (--policy.dtype).
    dtype: str | None = None
    # Cameras that the policies have, beside two, and the robot lacks.
    absent_cameras: int = 0


class Driver:
    """A policy that is asked for actions."""

    def __init__(self, policy: Any, batch: dict[str, Tensor], **options: Any) -> None:
        """Prepare to ask.

        Args:
            policy: Stock or ours.
            batch: What it sees, all the time.
            **options: Fields of our configuration; by default those that compute as stock pi0.
        """
        self.policy, self.batch, self.options = policy, batch, AS_STOCK | options
        self.device = next(iter(batch.values())).device

    def actions(self, seed: int) -> Tensor:
        """Actions of some chunks, one after the other, (N, B, A).

        Args:
            seed: Of the noise.
        """
        vars(self.policy.config).update(self.options)
        backbone = self.policy.model.paligemma_with_expert
        backbone.inference_attention = self.options["inference_attention"]
        self.policy.reset()
        torch.manual_seed(seed)
        num_actions = CHUNKS * self.policy.config.n_action_steps
        return torch.stack([self.policy.select_action(self.batch) for _ in range(num_actions)])

    def round(self, number: int) -> float:
        """Time the actions of a round.

        Args:
            number: The round.

        Returns:
            Chunks per second.
        """
        with timed(self.device) as clock:
            self.actions(number)
        return CHUNKS / clock.seconds

    def num_operators(self) -> int:
        """Operators of PyTorch that a chunk calls."""
        counting: Any = _Counting()  # type: ignore[no-untyped-call]
        with counting:
            self.actions(0)
        return int(counting.number) // CHUNKS

    def num_kernels(self) -> int | None:
        """CUDA kernels that a chunk starts, or None without a GPU."""
        if self.device.type != "cuda":
            return None
        with profile(activities=[ProfilerActivity.CUDA]) as found:
            self.actions(0)
            torch.cuda.synchronize(self.device)
        names = [event.name for event in found.events() if event.device_type.name == "CUDA"]
        return sum(not name.startswith("Mem") for name in names) // CHUNKS


class _Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    number = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        self.number += 1
        return func(*args, **(kwargs or {}))


def benchmark(args: InferenceArguments, _: Path) -> Findings:
    """Drive with each policy, in turn.

    Args:
        args: The command line.

    Raises:
        ValueError: If an argument is wrong, or the machine cannot hold the size.
    """
    fill(args, SIZES)
    device = choose_device(args.device)
    title = f"inference, {device.type}{absent_cameras_in_title(args.absent_cameras)}"
    common = (args.size, str(args.dtype), len(CAMERAS) + args.absent_cameras)
    variants = {
        STOCK: variant_of("pi0", *common),
        OURS: variant_of("motion_pi0", *common),
        WITHOUT_HEAD: variant_of("motion_pi0", *common, load_motion_head=False),
    }
    weights = {name: weight_bytes(variant) for name, variant in variants.items()}
    weights |= dict.fromkeys(OPTIONS, weights[OURS])
    require_bytes([weights[name] for name in variants], device, args.size)
    drivers = _drivers(variants, args, device)
    expected = drivers[STOCK].actions(0)
    off = {
        name: ((driver.actions(0) - expected).abs().max() / expected.abs().max()).item()
        for name, driver in drivers.items()
    }
    rounds: dict[str, Callable[[int], float]] = {n: each.round for n, each in drivers.items()}
    found = interleave(rounds, args.rounds or 1, args.warmup, device)
    counts = {name: (each.num_operators(), each.num_kernels()) for name, each in drivers.items()}
    rows = [
        [
            name,
            *times_beside(outcome.rates, found[STOCK].rates),
            str(counts[name][0]),
            "–" if counts[name][1] is None else str(counts[name][1]),
            megabytes(weights[name]),
            "0" if off[name] == 0 else f"{off[name]:.1e}",
        ]
        for name, outcome in found.items()
    ]
    return Findings(
        title=title,
        settings={
            "size": args.size,
            "dtype": args.dtype,
            "batch_size": args.batch_size,
            "cameras": len(CAMERAS),
            "absent_cameras": args.absent_cameras,
            "prompt_tokens": PROMPT_TOKENS[STOCK],
            "actions of a chunk": drivers[STOCK].policy.config.n_action_steps,
            "chunks of a round": CHUNKS,
            "rounds": args.rounds,
        },
        tables=[Table(_TITLES, rows)],
        notes=[
            "Time of select_action from one chunk's first action to the next chunk's; the ratio is "
            "of times, of rounds side by side. The difference of actions is relative to the "
            "largest action."
        ],
        raw={
            "chunks_per_s": {name: outcome.rates for name, outcome in found.items()},
            "peak_gpu_memory": {name: outcome.peak_gpu_memory for name, outcome in found.items()},
            "difference": off,
        },
    )


_TITLES = ["", "ms a chunk", "ratio", "operators", "CUDA kernels", "weights", "actions differ by"]


def _drivers(
    variants: dict[str, Variant], args: InferenceArguments, device: torch.device
) -> dict[str, Driver]:
    """Policies of the same weights, and what they see."""
    policies = {}
    for name, variant in variants.items():
        torch.manual_seed(0)
        policies[name] = build(variant, device).eval()
    stock = policies[STOCK].state_dict()
    for policy in policies.values():
        policy.load_state_dict(stock, strict=False)
    batch = make_batch(
        policies[STOCK], args.batch_size or 1, device, PROMPT_TOKENS[STOCK], args.absent_cameras
    )
    drivers = {name: Driver(policy, batch) for name, policy in policies.items()}
    return drivers | {
        name: Driver(policies[OURS], batch, **options) for name, options in OPTIONS.items()
    }


if __name__ == "__main__":
    sys.exit(main(InferenceArguments, benchmark))
