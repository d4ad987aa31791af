"""A GPU that is not there: PyTorch's fake tensors know where they are, and compute nothing.

Tensors of two devices in one operation are an error, as on a GPU. What makes the host wait for the
GPU is noted. There is no backward pass: PyTorch 2.11's needs a real device.
"""

import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from step_counts import replace_tensors
from torch import Tensor, nn
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import lerobot_motion
from lerobot_motion.extraction import targets
from lerobot_motion.flow.letterbox import content_mask

GPU = torch.device("cuda:0")
needs_fake_gpu = pytest.mark.skipif(
    torch.__version__ < "2.11",
    reason="fake tensors on a GPU want a GPU's driver in PyTorch 2.7; they are tried with 2.11",
)
OURS = Path(lerobot_motion.__file__).parent
# Frames of these do not say who waits.
_NOT_ASKED = (f"{Path(torch.__file__).parent}{os.sep}", __file__)
_NUMBERS = {Tensor.__bool__: bool, Tensor.__int__: int, Tensor.__float__: float}
_READING = {Tensor.item, Tensor.tolist, Tensor.numpy, *_NUMBERS}
_MOVING = {
    torch.ops.aten._to_copy.default,
    torch.ops.aten.copy_.default,
    torch.ops.aten.index.Tensor,
    torch.ops.aten.index_put_.default,
}
# They keep tensors, which are not to be fake ones.
_CACHES = (content_mask, targets._content)


class Waits:
    """Where the host waited for the GPU: how often, by file of this package or "elsewhere"."""

    def __init__(self) -> None:
        """Start at zero."""
        self.seen: Counter[str] = Counter()

    def note(self) -> None:
        """Note a wait of whoever called PyTorch."""
        frame: Any = sys._getframe(1)
        while frame.f_code.co_filename.startswith(_NOT_ASKED):
            frame = frame.f_back
        path = Path(frame.f_code.co_filename)
        self.seen[str(path.relative_to(OURS)) if OURS in path.parents else "elsewhere"] += 1

    def ours(self) -> dict[str, int]:
        """The waits of this package since the last call, by file."""
        seen = {name: number for name, number in self.seen.items() if name != "elsewhere"}
        self.seen.clear()
        return seen


class _Readings(TorchFunctionMode):
    """Numbers that are read off tensors are ones: there are none."""

    def __init__(self, waits: Waits) -> None:
        super().__init__()
        self.waits = waits

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func not in _READING:
            return func(*args, **(kwargs or {}))
        tensor = args[0]
        if tensor.device == GPU:
            self.waits.note()
        ones = np.ones(tuple(tensor.shape), dtype=str(tensor.dtype).removeprefix("torch."))
        if func is Tensor.numpy:
            return ones
        return ones.tolist() if func is Tensor.tolist else _NUMBERS.get(func, np.ndarray.item)(ones)


class _Copies(TorchDispatchMode):
    """Copies between host and GPU are noted, but for those that nobody waits for."""

    def __init__(self, waits: Waits) -> None:
        super().__init__()
        self.waits = waits

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _MOVING and not (kwargs or {}).get("non_blocking", False):
            leaves = tree_leaves((args, kwargs, result))
            if len({leaf.device.type for leaf in leaves if isinstance(leaf, Tensor)}) > 1:
                self.waits.note()
        return result


@contextmanager
def fake_gpu() -> Iterator[Waits]:
    """Within this context tensors may lie on a GPU, and tensors are made without values."""
    waits = Waits()
    for cache in _CACHES:
        cache.cache_clear()
    with ExitStack() as stack:
        for name, value in {
            "is_available": True,
            "is_bf16_supported": True,
            "is_current_stream_capturing": False,
            "get_rng_state": None,
            "set_rng_state": None,
        }.items():
            stack.enter_context(patch(f"torch.cuda.{name}", return_value=value))
        stack.enter_context(patch.object(fake_tensor, "init_gpu_context"))
        # Its own one reads number by number.
        stack.enter_context(patch.object(FakeTensor, "tolist", Tensor.tolist))
        stack.enter_context(patch.object(FakeTensorMode, "avoid_device_init", new=True))
        # Which convolution suits a GPU, cuDNN would ask the GPU.
        stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(_Readings(waits))
        stack.enter_context(_Copies(waits))
        yield waits
    for cache in _CACHES:
        cache.cache_clear()


def moved[Module: nn.Module](module: Module) -> Module:
    """A module whose parameters and buffers are moved to the GPU, within `fake_gpu`."""
    replace_tensors(module, on_gpu)
    return module


def on_gpu(tensor: Tensor) -> Tensor:
    """A tensor of this shape, type and memory format on the GPU, within `fake_gpu`."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=GPU)
