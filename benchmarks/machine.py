"""The machine that a benchmark ran on, and whether it can hold what is asked of it."""

import importlib.metadata
import os
import platform
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

_LIBRARIES = ("torch", "torchvision", "torchcodec", "lerobot", "diffusers", "lerobot_policy_motion")
_GB = 1e9


@dataclass(frozen=True)
class Machine:
    """What a figure depends on besides the code.

    Attributes:
        cpu: Model of the processor.
        cores: Cores that this process may use.
        threads: Threads of PyTorch in this process.
        memory_bytes: Size of the main memory.
        gpu: Model of the GPU, or None.
        versions: Of Python and the libraries.
    """

    cpu: str
    cores: int
    threads: int
    memory_bytes: int
    gpu: str | None
    versions: dict[str, str]

    @property
    def name(self) -> str:
        """Processor, cores, memory and GPU; nothing that names one machine among its equals."""
        parts = [self.cpu, f"{self.cores} cores", f"{self.memory_bytes / _GB:.0f} GB"]
        return ", ".join([*parts, self.gpu or "no GPU"])


def this_machine() -> Machine:
    """Describe the machine that this process runs on."""
    return Machine(
        cpu=_cpu_model(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else _cores(),
        threads=torch.get_num_threads(),
        memory_bytes=psutil.virtual_memory().total,
        gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        versions={"python": platform.python_version(), **_versions()},
    )


def _cores() -> int:
    return os.cpu_count() or 1


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def _versions() -> dict[str, str]:
    versions = {}
    for name in _LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # torchcodec is missing on some platforms
            continue
    return versions


def choose_device(device: str | None) -> torch.device:
    """Settle the device of the networks.

    Args:
        device: A device's name, or None for CUDA if there is one, else the CPU.

    Raises:
        ValueError: If the device is not there.
    """
    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"device {chosen!r} cannot be used ({error}). Try --device=cpu."
        ) from error
    return torch.device(chosen)


def free_memory(device: torch.device) -> int:
    """Bytes that can be allocated on a device: the GPU's memory, or the main memory."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    return int(psutil.virtual_memory().available)


def require_memory(needed: int, available: int, size: str, what: str) -> None:
    """Refuse what a machine cannot hold, before anything is allocated.

    Args:
        needed: Bytes that the benchmark needs.
        available: Bytes that are free.
        size: The size that was asked for.
        what: Which memory.

    Raises:
        ValueError: If they do not suffice.
    """
    if needed > available:
        raise ValueError(
            f"--size={size} needs {needed} bytes ({needed / _GB:.1f} GB) of {what}, "
            f"{available} bytes ({available / _GB:.1f} GB) are free. Run it on a larger "
            "machine, lower --batch_size, or use --size=tiny."
        )
