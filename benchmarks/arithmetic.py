"""What a training step costs by arithmetic: operations, and the bytes that are alive in it.

    python benchmarks/arithmetic.py --size=full --policy=motion_pi0

LeRobot's code and ours runs on tensors without numbers, forward and backward pass, and is counted
as it runs. Nothing is allocated, no figure depends on the machine, and none is a time.
"""

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness import BenchmarkArguments, Findings, fill, main
from policy_steps import AS_STOCK, variant_of
from regime_steps import DTYPES, POLICIES, Variant, camera_names
from reporting import Table
from step_counts import CPU, CUDA, Counts, count_chunk, count_step, kept_by

SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"rounds": 1, "batch_size": 4, "dtype": "float32"},
    "full": {"rounds": 1, "batch_size": 32, "dtype": "bfloat16"},
}
OPTIONS_ON: dict[str, Any] = {"train_attention": "sdpa", "optimizer_fused": True}
JOINT = "joint"


@dataclass
class ArithmeticArguments(BenchmarkArguments):
    """What a training step costs by arithmetic."""

    # motion_pi0 or motion_pi05; the stock policy stands beside it.
    policy: str = "motion_pi0"
    # Samples of a batch.
    batch_size: int | None = None
    # Cameras that the policy sees.
    cameras: int = 2
    # bfloat16 or float32 (--policy.dtype of lerobot-train).
    dtype: str | None = None
    # Recompute activations in the backward pass. null: a table of each.
    gradient_checkpointing: bool | None = None


def rows_of(args: ArithmeticArguments) -> dict[str, dict[str, Any]]:
    """Settings of the policy in each row of a table, but for the stock policy's.

    Args:
        args: The command line, filled.
    """
    rows = {
        f"{JOINT}, as the stock policy computes": AS_STOCK,
        "warm-up, as the stock policy computes": AS_STOCK | {"motion_warmup_steps": 1_000_000},
        f"{JOINT}, sdpa, fused AdamW": OPTIONS_ON,
        f"{JOINT}, sdpa, fused AdamW, 4 draws": OPTIONS_ON | {"motion_samples_per_step": 4},
    }
    if args.cameras > 1:
        views = {"motion_camera": camera_names(2)}
        rows[f"{JOINT}, sdpa, fused AdamW, 2 views"] = OPTIONS_ON | views
    return rows


def benchmark(args: ArithmeticArguments, _: Path) -> Findings:
    """Count every row.

    Args:
        args: The command line.

    Raises:
        ValueError: If an argument is wrong.
    """
    fill(args, SIZES)
    _check(args)
    both = args.gradient_checkpointing
    tables, raw = [], []
    for checkpointing in (True, False) if both is None else (both,):
        stock = count_step(_stock(args, checkpointing), args.batch_size or 1)
        found = {_stock_name(args): stock}
        for name, settings in rows_of(args).items():
            found[name] = count_step(_ours(args, checkpointing, settings), args.batch_size or 1)
        tables.append(_table(args, found, checkpointing=checkpointing))
        raw += [
            {"row": name, "gradient_checkpointing": checkpointing, **asdict(counts)}
            for name, counts in found.items()
        ]
    chunks = {
        policy: count_chunk(variant_of(policy, args.size, str(args.dtype), args.cameras))
        for policy in (_stock_name(args), args.policy)
    }
    tables.append(
        Table(
            ["a chunk of actions, one robot", "TFLOP"],
            [[policy, _tera(number)] for policy, number in chunks.items()],
        )
    )
    return Findings(
        title=f"arithmetic of a step, {args.policy}, {args.size}",
        settings={
            "size": args.size,
            "batch_size": args.batch_size,
            "cameras": args.cameras,
            "dtype": args.dtype,
        },
        tables=tables,
        notes=[*_NOTES, _note_of_cuda(args)],
        raw={"steps": raw, "chunks": chunks},
    )


def _check(args: ArithmeticArguments) -> None:
    ours = sorted(name for name in POLICIES if name.startswith("motion_"))
    if args.policy not in ours:
        raise ValueError(f"policy must be one of {ours}, got {args.policy!r}.")
    if args.dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {sorted(DTYPES)}, got {args.dtype!r}.")
    if args.cameras < 1 or (args.batch_size or 0) < 1:
        raise ValueError(
            f"there must be at least 1 camera and 1 sample, got {args.cameras} and "
            f"{args.batch_size}."
        )


def _stock_name(args: ArithmeticArguments) -> str:
    return args.policy.removeprefix("motion_")


def _stock(args: ArithmeticArguments, checkpointing: bool) -> Variant:
    settings = {"gradient_checkpointing": checkpointing}
    return variant_of(_stock_name(args), args.size, str(args.dtype), args.cameras, **settings)


def _ours(args: ArithmeticArguments, checkpointing: bool, settings: dict[str, Any]) -> Variant:
    every = settings | {"gradient_checkpointing": checkpointing}
    return variant_of(args.policy, args.size, str(args.dtype), args.cameras, **every)


# --- the report ---

_NOTES = [
    "Operations are the multiplications and additions of matrix products, attention and "
    "convolutions, a sample, with what is computed again in the backward pass. Kept: bytes alive "
    "after the forward pass. Peak: the most that are alive at a time within forward and backward "
    "pass, gradients among them. Neither has weights, AdamW's state and the batch, which follow; "
    "in all is the peak with these, or AdamW's step where that takes more (fused it needs the "
    "gradients, otherwise as much again). GB are 10⁹ bytes.",
    "Not in it: what a kernel allocates for itself, and how an allocator cuts memory up. No figure "
    "is a time: matrix products on a GPU take as long as there are operations, the rest as long as "
    "there are bytes to move.",
]


def _note_of_cuda(args: ArithmeticArguments) -> str:
    joint = next(iter(rows_of(args).values()))
    variants = {
        _stock_name(args): _stock(args, checkpointing=False),
        args.policy: _ours(args, checkpointing=False, settings=joint),
    }
    found = [
        f"{name} {_giga(kept_by(variant, args.batch_size or 1, CUDA))}, by the CPU's "
        f"{_giga(kept_by(variant, args.batch_size or 1, CPU))}"
        for name, variant in variants.items()
    ]
    return (
        "Counted with the CPU's autocast and fused attention, since PyTorch's backward pass wants "
        "a GPU for CUDA's even where nothing is computed. The forward pass alone, without "
        "checkpointing and without any fused attention, keeps by CUDA's autocast: "
        f"{'; '.join(found)}."
    )


def _table(args: ArithmeticArguments, found: dict[str, Counts], *, checkpointing: bool) -> Table:
    title = f"gradient_checkpointing={str(checkpointing).lower()}"
    columns = [title, "forward, TFLOP", "backward, TFLOP", "ratio", "kept", "peak"]
    columns += ["weights, AdamW", "in all", "ratio"]
    samples = args.batch_size or 1
    stock = next(iter(found.values()))
    rows = [
        [
            name,
            _tera(counts.forward / samples),
            _tera(counts.backward / samples),
            f"{counts.operations / stock.operations:.3f}",
            _giga(counts.kept),
            _giga(counts.peak),
            _giga(counts.constant),
            _giga(counts.memory),
            f"{counts.memory / stock.memory:.3f}",
        ]
        for name, counts in found.items()
    ]
    return Table(columns, rows)


def _tera(number: float) -> str:
    return f"{number / 1e12:.2f}" if number >= 1e11 else f"{number / 1e12:.6f}"


def _giga(number: int) -> str:
    return f"{number / 1e9:.2f} GB" if number >= 1e8 else f"{number / 1e6:.2f} MB"


if __name__ == "__main__":
    sys.exit(main(ArithmeticArguments, benchmark))
