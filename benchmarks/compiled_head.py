"""The motion head with torch.compile and without, apart from the rest of the policy.

    python benchmarks/compiled_head.py --size=tiny

Forward and backward pass on random features of a prefix, as a joint step has them.
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from harness import BenchmarkArguments, Findings, fill, interleave, main, timed
from machine import choose_device
from policy_steps import META, require_bytes
from regime_steps import arithmetic
from reporting import Table, times_beside
from torch import Tensor

from lerobot_motion.models.motion_head import MotionHead

# Two cameras of 256 tokens and a prompt of 48, and the latents of SDXL's VAE at 224 px.
PREFIX, PREFIX_DIM, LATENT = 560, 2048, (4, 28, 28)
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"rounds": 25, "batch_size": 4, "layers": 2, "heads": 8, "dim": 512},
    "full": {"rounds": 25, "batch_size": 32, "layers": 6, "heads": 32, "dim": 2048},
}
EAGER, COMPILED = "eager", "compiled"


@dataclass
class CompiledHeadArguments(BenchmarkArguments):
    """The motion head with torch.compile and without."""

    # Samples of a batch.
    batch_size: int | None = None
    # Blocks of the head, attention heads of each, and its width.
    layers: int | None = None
    heads: int | None = None
    dim: int | None = None


def build(args: CompiledHeadArguments) -> MotionHead:
    """A motion head with random weights.

    Args:
        args: The command line, filled.
    """
    return MotionHead(
        prefix_dim=PREFIX_DIM,
        latent_shape=LATENT,
        num_layers=args.layers or 1,
        num_heads=args.heads or 1,
        dim=args.dim or 1,
    )


class Head:
    """A motion head that is trained on nothing in particular."""

    def __init__(self, args: CompiledHeadArguments, device: torch.device) -> None:
        """Build it, and draw what it is given.

        Args:
            args: The command line, filled.
            device: Where; on CUDA under autocast to bfloat16.
        """
        torch.manual_seed(0)
        batch_size = args.batch_size or 1
        self.device, self.dtype = device, "bfloat16" if device.type == "cuda" else "float32"
        self.head = build(args).to(device)
        self.inputs: list[Tensor] = [
            torch.randn(batch_size, *LATENT, device=device),
            torch.rand(batch_size, device=device),
            torch.randn(batch_size, PREFIX, PREFIX_DIM, device=device, requires_grad=True),
            torch.ones(batch_size, PREFIX, dtype=torch.bool, device=device),
        ]

    def round(self, _: int) -> float:
        """Time a forward and a backward pass.

        Returns:
            Passes per second.
        """
        with timed(self.device) as clock:
            with arithmetic(self.device, self.dtype):
                loss = self.head(*self.inputs).float().square().mean()
            loss.backward()
            self.head.zero_grad()
        return 1 / clock.seconds


def benchmark(args: CompiledHeadArguments, _: Path) -> Findings:
    """Time both, in turn.

    Args:
        args: The command line.

    Raises:
        ValueError: If an argument is wrong, or the machine cannot hold the size.
    """
    fill(args, SIZES)
    device = choose_device(args.device)
    with META:
        weights = sum(parameter.nbytes for parameter in build(args).parameters())
    # Weights and gradients of both; activations come on top.
    require_bytes([2 * weights] * 2, device, args.size)
    heads = {name: Head(args, device) for name in (EAGER, COMPILED)}
    heads[COMPILED].head.compile()
    start = time.perf_counter()
    heads[COMPILED].round(0)
    compiling = time.perf_counter() - start
    rounds = {name: head.round for name, head in heads.items()}
    found = interleave(rounds, args.rounds or 1, args.warmup, device)
    rows = [
        [
            name,
            *times_beside(outcome.rates, found[EAGER].rates),
        ]
        for name, outcome in found.items()
    ]
    return Findings(
        title=f"the motion head compiled, {device.type}",
        settings={
            name: getattr(args, name)
            for name in ("size", "batch_size", "layers", "heads", "dim", "rounds")
        },
        tables=[Table(["", "ms", "ratio"], rows)],
        notes=[
            f"Forward and backward pass; the ratio is of times, of rounds side by side. Compiling "
            f"and the first pass took {compiling:.0f} s."
        ],
        raw={"passes_per_s": {n: o.rates for n, o in found.items()}, "compiling_s": compiling},
    )


if __name__ == "__main__":
    sys.exit(main(CompiledHeadArguments, benchmark))
