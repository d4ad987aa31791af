"""What the processes of one training run do alike in LeRobot 0.6.1, and had better not."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, distributed, nn


@contextmanager
def drawing_apart(device: torch.device) -> Iterator[None]:
    """Within this context every rank draws random numbers of its own.

    LeRobot seeds all ranks alike: each would draw the same noise and times for its samples, and
    eight ranks would see no more of either than one. The numbers still follow from the random state
    that the ranks have in common, which is that of the checkpoints: a resumed run draws what an
    unbroken one draws. With a single process nothing changes.

    Args:
        device: Where the rank draws, beside the CPU.
    """
    if not _has_several_ranks():
        yield
        return
    seed = int(torch.randint(2**62, ()))
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed + distributed.get_rank())
        yield


def _has_several_ranks() -> bool:
    if not distributed.is_available() or not distributed.is_initialized():
        return False
    return distributed.get_world_size() > 1


def check_sharding(motion_head: nn.Module) -> None:
    """Refuse a sharding by FSDP under which the warm-up would change pi0.

    Parameters of one unit share one gradient: pi0's would be zero rather than absent, and AdamW
    decays weights whose gradient is zero.

    Args:
        motion_head: The motion head, outside of a forward pass.

    Raises:
        ValueError: If it is sharded together with other modules.
    """
    if not is_sharded(next(motion_head.parameters(), None)):
        return
    from torch.distributed.fsdp import FullyShardedDataParallel

    if isinstance(motion_head, FullyShardedDataParallel):
        return
    raise ValueError(
        "FSDP: expected the motion head to be a unit of its own, but it is sharded together with "
        "other modules; the warm-up would then decay the weights of pi0. Add MotionHead to "
        "fsdp_transformer_layer_cls_to_wrap (see configs/accelerate/fsdp.yaml), or set "
        "--policy.motion_warmup_steps=0."
    )


def is_sharded(parameter: Tensor | None) -> bool:
    """Whether FSDP shards a parameter.

    Args:
        parameter: A parameter, or None where a module has none left of its own.
    """
    # The mark that FSDP leaves on parameters (PyTorch 2.11, tests/unit/joint/test_ranks.py).
    return bool(getattr(parameter, "_fsdp_flattened", False))


def is_first_of_its_machine() -> bool:
    """Whether no other process of this run on this machine has a lower rank."""
    return _local_rank() == 0


def own_device(device: torch.device) -> torch.device:
    """The device of this process, which "cuda" is only once accelerate has chosen its GPU.

    Before that every process of the run would take, and keep, memory of the first GPU.

    Args:
        device: As the policy's configuration names it.
    """
    if device.type != "cuda" or device.index is not None or not _local_rank():
        return device
    # As accelerate chooses.
    return torch.device("cuda", _local_rank() % torch.cuda.device_count())


def _local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", "0"))


@contextmanager
def warning_once() -> Iterator[None]:
    """Within this context the first rank of a run alone warns; errors come from every rank.

    LeRobot 0.6.1 quietens the other ranks only after it has validated the run.
    """
    before = logging.root.manager.disable
    if os.environ.get("RANK", "0") != "0":
        logging.disable(max(before, logging.WARNING))
    try:
        yield
    finally:
        logging.disable(before)
