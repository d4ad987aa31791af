"""Motion targets for a data set: lerobot-motion-precompute's engine against the plain loop.

    python benchmarks/extraction.py --size=tiny --flow_estimator=dis --vae=pool

Both make the same targets of the same frames in one run, in turn. The plain loop is what one would
write: an item of LeRobotDataset with both frames, one pair at a time, all in one process. With
--memory=true the peak memory of the command is measured instead, on a short and a long data set.
"""

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from extraction_memory import MemoryOptions, measure_memory
from extraction_runs import Engine, PlainLoop
from harness import BenchmarkArguments, Findings, Outcome, fill, interleave, main
from machine import choose_device, free_memory, require_memory
from reporting import Table, megabytes, number, paired_ratios, summarize
from synthetic import REPO_ID, write_dataset, write_random_raft, write_random_sdxl_vae

from lerobot_motion.cli.precompute_arguments import (
    DatasetArguments,
    PrecomputeArguments,
    extractions,
)
from lerobot_motion.extraction.extract import Extraction

RANDOM_SDXL = "sdxl"
PLAIN, ENGINE = "plain loop", "lerobot-motion-precompute"

SIZES: dict[str, dict[str, Any]] = {
    "tiny": {
        "rounds": 5,
        "frames": 256,
        "episode_frames": 64,
        "camera_size": (240, 320),
        "horizon": 15,
        "flow_estimator": "dis",
        "vae": "pool",
        "batch_size": 8,
        "plain_pairs": 48,
        "precision": "float32",
        "channels_last": False,
        "memory_frames": (1_000, 10_000),
    },
    "full": {
        "rounds": 5,
        "frames": 16_384,
        "episode_frames": 512,
        "camera_size": (240, 320),
        "horizon": 30,
        "flow_estimator": "raft_large",
        "vae": RANDOM_SDXL,
        "batch_size": 128,
        "plain_pairs": 256,
        "precision": "bfloat16",
        "channels_last": True,
        "memory_frames": (1_000, 10_000),
    },
}

# Upper bounds of what is alive at once, in bytes: a pair's activations at 224 x 224, and the rest.
_PIXELS = 224 * 224
_PAIR_BYTES = {"dis": 4e6, "raft_small": 60e6, "raft_large": 120e6}
_IMAGE_BYTES = {"pool": 4e6, "flow": 20e6, RANDOM_SDXL: 250e6}
_BASE_BYTES = 2e9


@dataclass
class ExtractionArguments(BenchmarkArguments):
    """Motion targets for a data set: the engine against the plain loop."""

    # Recordings. Without a repo_id: a synthetic data set.
    dataset: DatasetArguments = field(default_factory=DatasetArguments)
    # Camera, where the data set has several.
    camera: str | None = None
    # Frames of the synthetic data set, and of an episode of it.
    frames: int | None = None
    episode_frames: int | None = None
    # Height and width of its camera, in pixels.
    camera_size: tuple[int, int] | None = None
    # Frames from an observation to its future frame.
    horizon: int | None = None
    # Height and width to which frames are letterboxed, in pixels.
    image_resolution: tuple[int, int] = (224, 224)
    # Optical flow: raft_large, raft_small or dis.
    flow_estimator: str | None = None
    # Weights of RAFT. null: random ones.
    flow_weights: str | None = None
    # VAE: pool, flow, sdxl (SDXL's configuration with random weights), or a name as in training.
    vae: str | None = None
    # Pairs of frames at once, in the engine.
    batch_size: int | None = None
    # Processes that decode for the engine. null: as the command chooses.
    num_workers: int | None = None
    # Precision of RAFT in the engine: float32 or bfloat16; the plain loop's is float32.
    precision: str | None = None
    # Let the engine's networks work on channels-last tensors.
    channels_last: bool | None = None
    # Compile the engine's networks; the warm-up rounds pay for it.
    compile: bool = False
    # Pairs of a round of the plain loop; the engine's rounds take the whole data set.
    plain_pairs: int | None = None
    # Measure the peak memory of the command instead, on data sets of two lengths.
    memory: bool = False
    # These lengths, in frames.
    memory_frames: tuple[int, int] | None = None


def benchmark(args: ExtractionArguments, folder: Path) -> Findings:
    """Measure what was asked for.

    Args:
        args: The command line.
        folder: Where to work.

    Raises:
        ValueError: If an argument is wrong, or the machine cannot hold the size.
        OSError: If something cannot be read or written.
    """
    fill(args, SIZES)
    args.device = str(choose_device(args.device))
    if args.memory:
        short, long = args.memory_frames or (0, 0)
        return measure_memory(MemoryOptions(short, long, args.device), folder)
    require_memory(
        needed_bytes(args),
        free_memory(torch.device(args.device)),
        args.size,
        f"{args.device}'s memory",
    )
    return compare(args, prepare(args, folder), folder)


def needed_bytes(args: ExtractionArguments) -> int:
    """Memory of the device that the engine needs at most, in bytes.

    Args:
        args: The command line, filled.
    """
    height, width = args.image_resolution
    pixels = height * width / _PIXELS
    pair = _PAIR_BYTES.get(str(args.flow_estimator), _PAIR_BYTES["raft_large"])
    image = _IMAGE_BYTES.get(str(args.vae), _IMAGE_BYTES[RANDOM_SDXL])
    return int(_BASE_BYTES + (args.batch_size or 1) * pixels * (pair + image))


def prepare(args: ExtractionArguments, folder: Path) -> Extraction:
    """Write what is synthetic, and settle what is to be made, as the command does.

    Args:
        args: The command line, filled.
        folder: Where to write.
    """
    dataset = args.dataset
    if not dataset.repo_id:
        size = args.camera_size or (0, 0)
        root = folder / f"frames_{args.frames}_{args.episode_frames}_{size[0]}x{size[1]}"
        if not root.exists():
            write_dataset(
                root,
                num_frames=args.frames or 0,
                episode_frames=args.episode_frames or 0,
                size=size,
            )
        dataset = replace(dataset, repo_id=REPO_ID, root=str(root))
    vae, weights = str(args.vae), args.flow_weights
    if vae == RANDOM_SDXL:
        vae = str(write_random_sdxl_vae(folder / "sdxl"))
    if weights is None and args.flow_estimator != "dis":
        name = str(args.flow_estimator)
        weights = str(write_random_raft(name, folder / f"{name}.safetensors"))
    names = ("camera", "horizon", "image_resolution", "flow_estimator", "batch_size", "num_workers")
    tuning = ("device", "precision", "channels_last", "compile")
    same = {name: getattr(args, name) for name in (*names, *tuning)}
    (extraction, *others) = extractions(
        PrecomputeArguments(
            dataset=dataset, vae=vae, flow_weights=weights, output=folder / "store", **same
        )
    )
    if others:
        raise ValueError(f"camera must be one, got {args.camera}.")
    return extraction


def compare(args: ExtractionArguments, extraction: Extraction, folder: Path) -> Findings:
    """Run the plain loop and the engine in turn, then see where the engine's time goes.

    Args:
        args: The command line, filled.
        extraction: What is to be made.
        folder: Where to write.
    """
    device = torch.device(extraction.compute.device)
    engine = Engine(extraction, folder / "made")
    plain = PlainLoop(extraction, engine.valid, args.plain_pairs or 1, folder / "plain.safetensors")
    outcomes = interleave(
        {PLAIN: plain.run, ENGINE: engine.run}, args.rounds or 1, args.warmup, device
    )
    stages = engine.stages()
    ratio = paired_ratios(outcomes[ENGINE].rates, outcomes[PLAIN].rates)
    compute = extraction.compute
    title = f"extraction, {args.flow_estimator} and {args.vae}, {device.type}"
    tuned = {"precision": args.precision, "channels_last": args.channels_last}
    settings = {
        "size": args.size,
        "frames": extraction.recordings.meta.total_frames,
        "pairs": len(engine.valid),
        "camera": "{}x{}".format(*_camera_size(extraction)),
        "resolution": "{}x{}".format(*extraction.settings.image_resolution),
        "horizon": extraction.settings.horizon,
        "batch": compute.batch_size,
        "workers": compute.num_workers,
        **{key: value for key, value in tuned.items() if args.flow_estimator != "dis"},
        "compile": compute.compile,
        "rounds": args.rounds,
    }
    slowest = max(stages, key=lambda name: stages[name])
    return Findings(
        title=title,
        settings=settings,
        tables=[_speed_table(outcomes), _stage_table(stages, len(engine.valid))],
        notes=[
            f"{ENGINE} is {ratio} times as fast as the plain loop. Time of one pair by stage, from "
            f"a run that does one thing after the other in one process; {slowest} takes the most."
        ],
        raw={
            "pairs_per_s": {name: outcome.rates for name, outcome in outcomes.items()},
            "ratio": ratio,
            "stage_seconds": stages,
        },
    )


def _camera_size(extraction: Extraction) -> tuple[int, int]:
    height, width = extraction.recordings.meta.features[extraction.recordings.camera]["shape"][:2]
    return height, width


def _speed_table(outcomes: dict[str, Outcome]) -> Table:
    baseline = outcomes[PLAIN].rates
    rows = [
        [
            name,
            str(summarize(outcome.rates)),
            str(paired_ratios(outcome.rates, baseline)),
            megabytes(outcome.peak_memory),
            megabytes(outcome.peak_gpu_memory),
        ]
        for name, outcome in outcomes.items()
    ]
    return Table(["", "pairs/s", "ratio", "peak memory", "peak GPU memory"], rows)


def _stage_table(stages: dict[str, float], num_pairs: int) -> Table:
    total = sum(stages.values())
    rows = [
        [name, number(1e3 * seconds / num_pairs), f"{seconds / total:.0%}"]
        for name, seconds in stages.items()
    ]
    return Table(["stage", "ms/pair", "share"], rows)


if __name__ == "__main__":
    sys.exit(main(ExtractionArguments, benchmark))
