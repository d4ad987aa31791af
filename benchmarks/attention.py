"""One layer's attention over prefix and suffix: LeRobot's eager one and sdpa.

    python benchmarks/attention.py --size=full --device=cpu

Shapes are pi0's own: eight heads of width 256 that share one head of keys and values, LeRobot's
additive mask with padding. Forward and backward pass, and what is kept in between.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from harness import BenchmarkArguments, Findings, fill, interleave, main, timed
from lerobot.policies.common.vla_utils import make_att_2d_masks, prepare_attention_masks_4d
from machine import choose_device
from reporting import Table, megabytes, times_beside
from torch import Tensor
from transformers.models.gemma import modeling_gemma

from lerobot_motion.joint.attention import sdpa_attention, sdpa_mask

EAGER, SDPA = "eager", "sdpa"
HEADS, WIDTH = 8, 256
# Two cameras of 256 tokens and 48 of language, the last of them padding; the state and 50 actions.
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"rounds": 9, "batch_size": 2, "prefix": 40, "suffix": 11},
    "full": {"rounds": 9, "batch_size": 2, "prefix": 560, "suffix": 51},
}


@dataclass
class AttentionArguments(BenchmarkArguments):
    """One layer's attention: LeRobot's eager one and sdpa."""

    # Samples.
    batch_size: int | None = None
    # Tokens of the prefix (images and language) and of the suffix (state and actions).
    prefix: int | None = None
    suffix: int | None = None
    # float32 or bfloat16.
    dtype: str = "float32"


class Layer:
    """Attention of a layer on random numbers."""

    def __init__(self, attend: Callable[..., Any], mask: Tensor, dtype: torch.dtype) -> None:
        """Draw queries, keys and values.

        Args:
            attend: With the arguments of transformers' attention functions.
            mask: What is added to the logits, (B, 1, N, N).
            dtype: Of the queries.
        """
        batch, _, length, _ = mask.shape
        generator = torch.Generator().manual_seed(0)
        shapes = [(batch, heads, length, WIDTH) for heads in (HEADS, 1, 1)]
        self.inputs = [
            torch.randn(shape, generator=generator).to(mask.device, dtype).requires_grad_()
            for shape in shapes
        ]
        self.attend, self.mask = attend, mask
        self.module = SimpleNamespace(num_key_value_groups=HEADS, training=True)

    def output(self) -> Tensor:
        """What is attended to, (B, N, H, D)."""
        found: Tensor = self.attend(self.module, *self.inputs, self.mask, scaling=WIDTH**-0.5)[0]
        return found

    def round(self, _: int) -> float:
        """Time a forward and a backward pass.

        Returns:
            Passes per second.
        """
        with timed(self.mask.device) as clock:
            output = self.output()
            torch.autograd.grad(output, self.inputs, torch.ones_like(output))
        return 1 / clock.seconds

    def kept_bytes(self) -> int:
        """Bytes kept for the backward pass, the mask among them."""
        kept: dict[int, Tensor] = {}

        def keep(tensor: Tensor) -> Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            self.output()
        return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def benchmark(args: AttentionArguments, _: Path) -> Findings:
    """Time each, in turn.

    Args:
        args: The command line.

    Raises:
        ValueError: If an argument is wrong.
    """
    fill(args, SIZES)
    device, dtype = choose_device(args.device), getattr(torch, args.dtype)
    mask = _mask(args).to(device)
    layers = {
        EAGER: Layer(modeling_gemma.eager_attention_forward, mask, dtype),
        SDPA: Layer(sdpa_attention, sdpa_mask(mask, dtype), dtype),
    }
    used = (mask.amax(dim=-1) == 0)[:, 0, :, None, None]
    exact = (layers[EAGER].output() * used).detach().float()
    found = interleave(
        {name: layer.round for name, layer in layers.items()}, args.rounds or 1, args.warmup, device
    )
    rows = [
        [
            name,
            *times_beside(outcome.rates, found[EAGER].rates),
            megabytes(layers[name].kept_bytes()),
            f"{(layers[name].output() * used - exact).abs().max().item():.1e}",
        ]
        for name, outcome in found.items()
    ]
    length = (args.prefix or 0) + (args.suffix or 0)
    return Findings(
        title=f"attention of a layer, {args.dtype}, {device.type}",
        settings={
            "size": args.size,
            "batch_size": args.batch_size,
            "tokens": length,
            "heads": f"{HEADS} of width {WIDTH}",
            "rounds": args.rounds,
        },
        tables=[Table(["", "ms", "ratio", "kept for backward", "differs by"], rows)],
        notes=["Forward and backward pass; the ratio is of times, of rounds side by side."],
        raw={"passes_per_s": {name: outcome.rates for name, outcome in found.items()}},
    )


def _mask(args: AttentionArguments) -> Tensor:
    """LeRobot's mask of a prefix whose last tenth is padding, and a suffix that sees it."""
    batch, prefix, suffix = args.batch_size or 1, args.prefix or 1, args.suffix or 1
    tokens = torch.ones(batch, prefix + suffix, dtype=torch.bool)
    tokens[:, prefix - prefix // 10 : prefix] = False
    blocks = torch.zeros(batch, prefix + suffix, dtype=torch.bool)
    blocks[:, prefix : prefix + 2] = True
    mask: Tensor = prepare_attention_masks_4d(make_att_2d_masks(tokens, blocks))
    return mask


if __name__ == "__main__":
    sys.exit(main(AttentionArguments, benchmark))
