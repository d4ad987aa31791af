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
from policy_steps import AS_STOCK, FUSED, OPTIONS_ON, SDPA, variant_of
from regime_steps import (
    DTYPES,
    POLICIES,
    PROMPT_TOKENS,
    Variant,
    absent_cameras_in_title,
    camera_names,
)
from reporting import Table
from step_counts import CPU, CUDA, Counts, count_chunk, count_step, kept_by

SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"rounds": 1, "batch_size": 4, "dtype": "float32"},
    "full": {"rounds": 1, "batch_size": 32, "dtype": "bfloat16"},
}
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
    # Further cameras that the policy has and the batch lacks, as with a checkpoint of more cameras.
    absent_cameras: int = 0
    # Tokens of the longest prompt of a batch. null: 21 of 48 for motion_pi0, 86 of 200 for
    # motion_pi05, those of a long sentence and, with motion_pi05, of 14 joints.
    prompt_tokens: int | None = None
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
        f"{JOINT}, sdpa, fused AdamW": SDPA | FUSED,
        f"{JOINT}, and no padding": OPTIONS_ON,
        f"{JOINT}, and no padding, 4 draws": OPTIONS_ON | {"motion_samples_per_step": 4},
    }
    if args.cameras > 1:
        views = {"motion_camera": camera_names(2)}
        rows[f"{JOINT}, and no padding, 2 views"] = OPTIONS_ON | views
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
    if args.prompt_tokens is None:
        args.prompt_tokens = PROMPT_TOKENS[_stock_name(args)]
    batch = {"prompt_tokens": args.prompt_tokens, "absent_cameras": args.absent_cameras}
    samples = args.batch_size or 1
    both = args.gradient_checkpointing
    tables, raw = [], []
    for checkpointing in (True, False) if both is None else (both,):
        stock = count_step(_stock(args, checkpointing), samples, **batch)
        found = {_stock_name(args): stock}
        for name, settings in rows_of(args).items():
            found[name] = count_step(_ours(args, checkpointing, settings), samples, **batch)
        tables.append(_table(args, found, checkpointing=checkpointing))
        raw += [
            {"row": name, "gradient_checkpointing": checkpointing, **asdict(counts)}
            for name, counts in found.items()
        ]
    unpadded = {"inference_skip_padding": True}
    chunks = {
        name: count_chunk(_variant(args, policy, **settings), **batch)
        for name, policy, settings in (
            (_stock_name(args), _stock_name(args), {}),
            (args.policy, args.policy, {}),
            (f"{args.policy}, no padding", args.policy, unpadded),
        )
    }
    tables.append(
        Table(
            ["a chunk of actions, one robot", "TFLOP"],
            [[policy, _tera(number)] for policy, number in chunks.items()],
        )
    )
    return Findings(
        title=f"arithmetic of a step, {args.policy}, {args.size}"
        + absent_cameras_in_title(args.absent_cameras),
        settings={
            "size": args.size,
            "batch_size": args.batch_size,
            "cameras": args.cameras,
            "absent_cameras": args.absent_cameras,
            "prompt_tokens": args.prompt_tokens,
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
    if args.absent_cameras < 0 or (args.prompt_tokens is not None and args.prompt_tokens < 1):
        raise ValueError(
            "there must be at least 1 token and no less than 0 absent cameras, got "
            f"{args.prompt_tokens} and {args.absent_cameras}."
        )


def _stock_name(args: ArithmeticArguments) -> str:
    return args.policy.removeprefix("motion_")


def _stock(args: ArithmeticArguments, checkpointing: bool) -> Variant:
    return _variant(args, _stock_name(args), gradient_checkpointing=checkpointing)


def _ours(args: ArithmeticArguments, checkpointing: bool, settings: dict[str, Any]) -> Variant:
    return _variant(args, args.policy, **settings, gradient_checkpointing=checkpointing)


def _variant(args: ArithmeticArguments, policy: str, **settings: Any) -> Variant:
    num_cameras = args.cameras + args.absent_cameras
    return variant_of(policy, args.size, str(args.dtype), num_cameras, **settings)


# --- the report ---

_NOTES = [
    "Operations are the multiplications and additions of matrix products, attention and "
    "convolutions, a sample, with what is computed again in the backward pass. Kept: bytes alive "
    "after the forward pass. Peak: the most that are alive at a time within forward and backward "
    "pass, gradients among them. Both are of a run's first step, whose prompts are of full length. "
    "Neither has weights, AdamW's state and the batch, which follow; in all is the peak with "
    "these, or AdamW's step where that takes more (fused it needs the gradients, otherwise as much "
    "again). GB are 10⁹ bytes.",
    "No padding: without tokens after the longest prompt, rounded up to a multiple of eight, and "
    "without cameras that are absent. The stock policy computes them.",
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
