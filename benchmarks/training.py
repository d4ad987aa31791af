"""A training step of stock pi0 against motion_pi0 and its options, taken apart.

    python benchmarks/training.py --size=tiny

Every variant is run in pairs with stock pi0: a round of the one, a round of the other, in turn.
Steps are those of lerobot-train: a batch from the data set through the policy's preprocessor, the
forward pass (under autocast with bfloat16), the backward pass, and AdamW with clipped gradients.
"""

import statistics
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from dataloading import (
    DataloadingArguments,
    Loading,
    motion_preprocessor,
    prepare_data,
    stock_preprocessor,
)
from harness import Findings, fill, interleave, main, timed
from machine import choose_device
from policy_steps import (
    AS_STOCK,
    FUSED,
    OPTIONS_ON,
    PARTS,
    SDPA,
    UNPADDED,
    Trainee,
    require_bytes,
    variant_of,
)
from regime_steps import Variant
from reporting import Table, megabytes, number, paired_ratios, summarize
from step_counts import bytes_beside

STOCK = "pi0"
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {
        "rounds": 5,
        "frames": 64,
        "episode_frames": 32,
        "camera_size": (240, 320),
        "horizon": 8,
        "batch_size": 8,
        "num_workers": 0,
        "batches": 4,
        "dtype": "float32",
        "gradient_checkpointing": False,
    },
    "full": {
        "rounds": 5,
        "frames": 4_096,
        "episode_frames": 512,
        "camera_size": (480, 640),
        "horizon": 30,
        "batch_size": 32,
        "num_workers": 8,
        "batches": 20,
        "dtype": "bfloat16",
        "gradient_checkpointing": True,
    },
}
# Everything that needs no download; the resolution is that of the store.
_SETTINGS: dict[str, Any] = {"image_resolution": (224, 224)}
_MOTION_SETTINGS: dict[str, Any] = {
    "motion_vae": "pool",
    "motion_latent_shape": (3, 28, 28),
    "flow_estimator": "dis",
    "tokenizer_name": "bytes",
}
# motion_pi0's settings in each row of the table; the first is stock pi0's way of computing.
OPTIONS: dict[str, dict[str, Any]] = {
    "motion_pi0": AS_STOCK,
    "motion_pi0, on the fly (dis)": AS_STOCK | {"motion_latents": None},
    "motion_pi0, warm-up": AS_STOCK | {"motion_warmup_steps": 1_000_000},
    "motion_pi0, sdpa": AS_STOCK | SDPA,
    "motion_pi0, fused AdamW": AS_STOCK | FUSED,
    "motion_pi0, no padding": AS_STOCK | UNPADDED,
    "motion_pi0, all three": OPTIONS_ON,
    "motion_pi0, all three, 4 draws": OPTIONS_ON | {"motion_samples_per_step": 4},
}


@dataclass
class TrainingArguments(DataloadingArguments):
    """A training step of stock pi0 against motion_pi0 and its options."""

    # bfloat16 or float32 (--policy.dtype of lerobot-train).
    dtype: str | None = None
    # Recompute activations in the backward pass.
    gradient_checkpointing: bool | None = None


class Run:
    """Rounds of a variant."""

    def __init__(
        self, args: TrainingArguments, meta: Any, variant: Variant, device: torch.device
    ) -> None:
        """Build policy, optimizer and data loading.

        Args:
            args: The command line, filled.
            meta: Metadata of the data set.
            variant: What is trained.
            device: Where.
        """
        self.args, self.device = args, device
        self.trainee = Trainee(variant, device)
        stock = variant.policy == STOCK
        preprocessor = stock_preprocessor if stock else motion_preprocessor
        self.loading = Loading(args, meta, device, self.trainee.config, preprocessor)
        self.seconds: dict[str, list[float]] = defaultdict(list)

    def round(self, number: int) -> float:
        """Take some steps.

        Args:
            number: The round.

        Returns:
            Samples per second.
        """
        batches = self.loading.batches(number)
        # Starts the workers.
        next(batches)
        totals: dict[str, float] = defaultdict(float)
        num_batches = self.args.batches or 1
        for _ in range(num_batches):
            with timed(self.device) as data:
                batch = self.loading.preprocessor(next(batches))
            totals["data"] += data.seconds
            for part, seconds in self.trainee.step(batch).items():
                totals[part] += seconds
        batches.close()
        for part, total in totals.items():
            self.seconds[part].append(total / num_batches)
        return num_batches * (self.args.batch_size or 1) / sum(totals.values())

    def milliseconds(self, part: str, rounds: int) -> float:
        """Median of a part of a step over the last rounds."""
        return 1e3 * statistics.median(self.seconds[part][-rounds:])

    def kept_bytes(self) -> int | None:
        """Bytes kept for the backward pass, which cannot be told where they are recomputed."""
        if self.trainee.config.gradient_checkpointing:
            return None
        batches = self.loading.batches(0)
        batch = self.loading.preprocessor(next(batches))
        batches.close()
        return self.trainee.kept_bytes(batch)


def benchmark(args: TrainingArguments, folder: Path) -> Findings:
    """Train each variant in pairs with stock pi0.

    Args:
        args: The command line.
        folder: Where to work.

    Raises:
        ValueError: If an argument is wrong, or the machine cannot hold the size.
        OSError: If something cannot be read or written.
    """
    fill(args, SIZES)
    device, rounds = choose_device(args.device), args.rounds or 1
    common = _SETTINGS | {"gradient_checkpointing": args.gradient_checkpointing}
    stock_variant = variant_of(STOCK, args.size, str(args.dtype), **common)
    ours = {
        name: {"motion_latents": str(folder / "store"), "motion_horizon": args.horizon}
        | (common | _MOTION_SETTINGS | options)
        for name, options in OPTIONS.items()
    }
    variants = {
        name: variant_of("motion_pi0", args.size, str(args.dtype), **settings)
        for name, settings in ours.items()
    }
    needed = bytes_beside(stock_variant, _largest(variants), args.batch_size or 1)
    require_bytes([needed], device, args.size)
    meta, _ = prepare_data(args, folder)
    stock = Run(args, meta, stock_variant, device)
    rows, raw, stock_rates = [], {}, []
    stock_kept = stock.kept_bytes()
    for name, variant in variants.items():
        run = Run(args, meta, variant, device)
        found = interleave({STOCK: stock.round, name: run.round}, rounds, args.warmup, device)
        stock_rates += found[STOCK].rates
        ratio = paired_ratios(found[name].rates, found[STOCK].rates)
        peak = found[name].peak_gpu_memory
        rows.append(_row(name, run, found[name].rates, str(ratio), run.kept_bytes(), peak, rounds))
        raw[name] = {"samples_per_s": found[name].rates, "pi0": found[STOCK].rates}
        run.trainee.release()
    every = len(stock_rates)
    rows.insert(0, _row(STOCK, stock, stock_rates, "1.00", stock_kept, None, every))
    return Findings(
        title=f"training, {device.type}",
        settings=_settings(args),
        tables=[Table(_TITLES, rows)],
        notes=_NOTES,
        raw=raw,
    )


def _largest(variants: dict[str, Variant]) -> list[Variant]:
    """Those that may take the most memory: the others compute less, or keep less."""
    return [variants["motion_pi0"], list(variants.values())[-1]]


_TITLES = ["", "samples/s", "ratio", *(f"{part}, ms" for part in ("data", *PARTS))]
_TITLES += ["kept for backward", "peak GPU memory, with pi0's"]
_NOTES = [
    "The ratio is of samples per second, of rounds side by side. Kept for backward: activations at "
    "the end of the forward pass, but for parameters. motion_pi0's rows that name no other are "
    "joint learning from a latent store; all have the pool codec, and DIS where targets are made "
    "on the fly. With several workers, data is what is left to wait for."
]


def _row(
    name: str,
    run: Run,
    rates: list[float],
    ratio: str,
    kept: int | None,
    peak: int | None,
    rounds: int,
) -> list[str]:
    parts = [number(run.milliseconds(part, rounds)) for part in ("data", *PARTS)]
    return [name, str(summarize(rates)), ratio, *parts, megabytes(kept), megabytes(peak)]


def _settings(args: TrainingArguments) -> dict[str, Any]:
    names = ("size", "dtype", "gradient_checkpointing", "camera_size", "horizon", "batch_size")
    return {name: getattr(args, name) for name in (*names, "num_workers", "batches", "rounds")}


if __name__ == "__main__":
    sys.exit(main(TrainingArguments, benchmark))
