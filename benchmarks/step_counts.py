"""A training step counted as it runs: operations of matrices, and bytes that are alive.

Tensors are PyTorch's fake ones, which have shapes, dtypes and storages, and no numbers: LeRobot's
own code runs on them, at full size too, and nothing is allocated. Counts are exact and depend on no
machine.
"""

import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from policy_steps import META
from regime_steps import NumbersOffFakes, Variant, arithmetic, build, make_batch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import (
    FlopCounterMode,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

from lerobot_motion.joint import padding
from lerobot_motion.joint.backbone import replaced

# PyTorch's autograd engine runs on no CUDA device, not even a fake one, where there is no GPU. The
# CPU's autocast and fused attention stand in for CUDA's; `kept_by` compares what can be compared.
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
aten = torch.ops.aten


def _sdpa_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]


def _sdpa_backward_flops(grad: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_backward_flop_count(grad, query, key, value))  # type: ignore[no-untyped-call]


# PyTorch's counter knows the fused attention of CUDA, whose formulas these are.
_CPU_ATTENTION = {
    aten._scaled_dot_product_flash_attention_for_cpu: _sdpa_flops,  # noqa: SLF001
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _sdpa_backward_flops,  # noqa: SLF001
}


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within this context storages are followed from their allocation until nothing holds them."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        """Start at zero.

        Args:
            known: Tensors that are there before, whose storages do not count.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self._storages: dict[int, object] = {t.untyped_storage()._cdata: None for t in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator and follow the storages of what it returns."""
        del types
        result = func(*args, **(kwargs or {}))
        for found in tree_leaves(result):
            if isinstance(found, Tensor):
                self._follow(found.untyped_storage())
        return result

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._storages:
            return
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        # Called when nothing holds the storage any longer, tensors of C++ among them.
        self._storages[key] = weakref.finalize(storage, self._let_go, key, storage.nbytes())

    def _let_go(self, key: int, nbytes: int) -> None:
        del self._storages[key]
        self.live -= nbytes


@dataclass(frozen=True)
class Counts:
    """What a training step costs.

    Attributes:
        forward: Operations of matrix products and convolutions in the forward pass, multiplications
            and additions.
        backward: Those of the backward pass, with what gradient checkpointing computes again.
        kept: Bytes that are alive after the first forward pass, but for weights and the batch.
        peak: The most bytes that are alive within the first step, whose prompts are of full length,
            gradients among them, but for weights, the batch and AdamW's state.
        gradients: Bytes of gradients after it.
        constant: Bytes of weights, buffers and AdamW's state.
        fused: Whether AdamW is fused; otherwise it allocates as much again as the gradients.
    """

    forward: int
    backward: int
    kept: int
    peak: int
    gradients: int
    constant: int
    fused: bool

    @property
    def operations(self) -> int:
        """Of the whole step."""
        return self.forward + self.backward

    @property
    def memory(self) -> int:
        """The most bytes that are alive within a step, in all."""
        return self.constant + max(self.peak, self.gradients * (1 if self.fused else 2))


def count_step(variant: Variant, batch_size: int, **batch_settings: Any) -> Counts:
    """Take a training step without numbers and count.

    Args:
        variant: What is trained.
        batch_size: Samples.
        **batch_settings: Further arguments of `make_batch`.
    """
    with _without_numbers(variant, batch_size, CPU, **batch_settings) as (policy, batch):
        return count_step_of(policy, batch)


def bytes_beside(stock: Variant, others: Iterable[Variant], batch_size: int) -> int:
    """Bytes of a policy in training beside one of others at a time; the two step in turn.

    Args:
        stock: The policy that is there all the time.
        others: Those beside it, one after the other.
        batch_size: Samples.
    """
    mine = count_step(stock, batch_size)
    theirs = (count_step(each, batch_size) for each in others)
    return max(max(mine.constant + each.memory, mine.memory + each.constant) for each in theirs)


def count_step_of(policy: Any, batch: Mapping[str, Tensor]) -> Counts:
    """Take training steps and count; of real tensors, too.

    Args:
        policy: In training.
        batch: Its batch.
    """
    device, dtype = next(iter(batch.values())).device, policy.config.dtype
    _settle(policy, batch)
    live = LiveBytes([*policy.parameters(), *policy.buffers(), *batch.values()])
    # The first step: where padding is skipped, no other takes more.
    with live:
        with arithmetic(device, dtype):
            loss = policy.forward(dict(batch))[0]
        kept = live.live
        loss.backward()
    gradients = sum(p.grad.nbytes for p in policy.parameters() if p.grad is not None)
    weights = sum(tensor.nbytes for tensor in [*policy.parameters(), *policy.buffers()])
    # A step of its own, for the counter of operations holds tensors that would be let go.
    counter = FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION)
    with counter:
        with arithmetic(device, dtype):
            loss = policy.forward(dict(batch))[0]
        forward = counter.get_total_flops()
        loss.backward()
    return Counts(
        forward=forward,
        backward=counter.get_total_flops() - forward,
        kept=kept,
        peak=live.peak,
        gradients=gradients,
        # AdamW has two moments for each gradient, of its shape and dtype.
        constant=weights + 2 * gradients,
        fused=bool(getattr(policy.config, "optimizer_fused", False)),
    )


def kept_by(variant: Variant, batch_size: int, device: torch.device) -> int:
    """Bytes alive after a forward pass, but for weights and the batch, by a device's autocast.

    Without fused attention, which PyTorch does not choose on a CUDA device that is not there.

    Args:
        variant: What is trained.
        batch_size: Samples.
        device: CPU, or CUDA, which need not be there.
    """
    with _without_numbers(variant, batch_size, device) as (policy, batch):
        live = LiveBytes([*policy.parameters(), *policy.buffers(), *batch.values()])
        with (
            live,
            sdpa_kernel(SDPBackend.MATH),
            _autocast(device, enabled=variant.dtype == "bfloat16"),
        ):
            loss = policy.forward(dict(batch))[0]
        kept = live.live
        del loss
    return kept


@contextmanager
def _autocast(device: torch.device, *, enabled: bool) -> Iterator[None]:
    """Autocast to bfloat16; torch.autocast leaves it off on CUDA where there is no GPU."""
    with warnings.catch_warnings(action="ignore"), torch.autocast(device.type, torch.bfloat16):
        torch.set_autocast_enabled(device.type, enabled)
        yield


def count_chunk(variant: Variant, **batch_settings: Any) -> int:
    """Operations of matrix products and convolutions for a chunk of actions of one robot.

    Args:
        variant: The policy.
        **batch_settings: Further arguments of `make_batch`.
    """
    with _without_numbers(variant, 1, CPU, **batch_settings) as (policy, batch):
        counter = FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION)
        with counter, torch.no_grad():
            policy.eval().predict_action_chunk(dict(batch))
        return int(counter.get_total_flops())


def _settle(policy: Any, batch: Mapping[str, Tensor]) -> None:
    """Let happen what happens once in a process, such as trying the attention on a device."""
    with torch.no_grad(), arithmetic(next(iter(batch.values())).device, policy.config.dtype):
        policy.forward(dict(batch))


@contextmanager
def _without_numbers(
    variant: Variant,
    batch_size: int,
    device: torch.device,
    prompt_tokens: int | None = None,
    absent_cameras: int = 0,
) -> Iterator[tuple[Any, dict[str, Tensor]]]:
    """Within this context all tensors are fake: a policy in training, and a batch."""
    policy = build(variant, META)
    length = prompt_tokens or policy.config.tokenizer_max_length
    present = [1] * (variant.num_cameras - absent_cameras)

    def extent(image_masks: list[Tensor], _: Tensor) -> list[int]:
        # The masks say it, but for their want of numbers. LeRobot has absent cameras last.
        return [*present, *[0] * (len(image_masks) - len(present)), length]

    with FakeTensorMode(), NumbersOffFakes(), replaced(padding, extent=extent):
        replace_tensors(policy, lambda old: torch.empty(old.shape, dtype=old.dtype, device=device))
        policy.config.device = str(device)
        yield policy, make_batch(policy, batch_size, device, prompt_tokens, absent_cameras)


def replace_tensors(module: nn.Module, new: Callable[[Tensor], Tensor]) -> None:
    """Put others in the place of a module's parameters and buffers.

    Args:
        module: The module, with all that is in it.
        new: Makes the tensor that takes the place of one.
    """
    for part in module.modules():
        for name, old in [*part.named_parameters(recurse=False)]:
            setattr(part, name, nn.Parameter(new(old), requires_grad=old.requires_grad))
        for name, buffer in [*part.named_buffers(recurse=False)]:
            setattr(part, name, new(buffer))
