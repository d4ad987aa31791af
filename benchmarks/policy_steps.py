"""Steps of training of whole policies, taken apart, and the bytes that they need."""

import gc
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from harness import timed
from machine import free_memory, require_memory
from regime_steps import (
    REGIMES,
    Variant,
    arithmetic,
    build,
    footprint_after,
    make_batch,
    train_step,
)
from torch import Tensor, nn

FULL_REGIME = REGIMES[0]
META = torch.device("meta")
PARTS = ("forward", "backward", "optimizer")
# What LeRobot's own policy does, whatever the device.
AS_STOCK: dict[str, Any] = {
    "train_attention": "eager",
    "optimizer_fused": False,
    "train_skip_padding": False,
}
# What ours does on CUDA, unless told otherwise.
SDPA: dict[str, Any] = {"train_attention": "sdpa"}
FUSED: dict[str, Any] = {"optimizer_fused": True}
UNPADDED: dict[str, Any] = {"train_skip_padding": True}
OPTIONS_ON = SDPA | FUSED | UNPADDED
# Neither changes what is in memory, and neither runs where there are no numbers.
_NEED_NUMBERS = ("optimizer_fused", "train_skip_padding")


def variant_of(
    policy: str, size: str, dtype: str, num_cameras: int = 2, **settings: Any
) -> Variant:
    """A policy all of which is trained.

    Args:
        policy: LeRobot's name of the policy's type.
        size: tiny or full.
        dtype: `dtype` of the policy's configuration.
        num_cameras: Cameras that it sees.
        **settings: Further fields of its configuration.
    """
    return Variant(policy, FULL_REGIME, dtype, size, tuple(settings.items()), num_cameras)


def training_bytes(variant: Variant) -> int:
    """Bytes of weights, gradients and optimizer state after a step, found on the meta device.

    Args:
        variant: What is trained.
    """
    settings = tuple((name, value) for name, value in variant.settings if name not in _NEED_NUMBERS)
    policy = build(replace(variant, settings=settings), META)
    optimizer = train_step(policy, make_batch(policy, batch_size=1, device=META))
    return footprint_after(policy, optimizer, warmup=False).total


def weight_bytes(variant: Variant) -> int:
    """Bytes of weights and buffers, found on the meta device.

    Args:
        variant: The policy.
    """
    policy = build(variant, META)
    return sum(tensor.nbytes for tensor in [*policy.parameters(), *policy.buffers()])


def require_bytes(needed: Iterable[int], device: torch.device, size: str) -> None:
    """Refuse policies that together do not fit, before any of them is allocated.

    Args:
        needed: Bytes of each policy that is there at the same time; activations come on top.
        device: Where.
        size: The size that was asked for.

    Raises:
        ValueError: If they do not fit.
    """
    what = "the GPU's memory" if device.type == "cuda" else "main memory"
    require_memory(sum(needed), free_memory(device), size, what)


class Trainee:
    """A policy in training, a step of which is timed in parts."""

    def __init__(self, variant: Variant, device: torch.device) -> None:
        """Build the policy with random weights, and LeRobot's optimizer.

        Args:
            variant: What is trained.
            device: Where.
        """
        torch.manual_seed(0)
        self.device = device
        self.policy = build(variant, device)
        self.config: Any = self.policy.config
        preset = self.config.get_optimizer_preset()
        self.clip = preset.grad_clip_norm
        self.optimizer = preset.build(self.policy.get_optim_params())

    def step(self, batch: Mapping[str, Tensor]) -> dict[str, float]:
        """Take a step as lerobot-train does.

        Args:
            batch: A batch.

        Returns:
            Seconds of the forward pass, of the backward pass, and of the optimizer with the
            clipping of gradients.
        """
        with timed(self.device) as forward, arithmetic(self.device, self.config.dtype):
            loss, _ = self.policy.forward(dict(batch))
        with timed(self.device) as backward:
            loss.backward()
        with timed(self.device) as optimizer:
            nn.utils.clip_grad_norm_(self.policy.parameters(), self.clip)
            self.optimizer.step()
            self.optimizer.zero_grad()
            getattr(self.policy, "update", lambda: None)()
        clocks = (forward, backward, optimizer)
        return {part: clock.seconds for part, clock in zip(PARTS, clocks, strict=True)}

    def kept_bytes(self, batch: Mapping[str, Tensor]) -> int:
        """Bytes that a forward pass keeps for the backward pass, but for parameters.

        Args:
            batch: A batch.
        """
        known = {p.untyped_storage().data_ptr() for p in self.policy.parameters()}
        kept: dict[int, Tensor] = {}

        def keep(tensor: Tensor) -> Tensor:
            if tensor.untyped_storage().data_ptr() not in known:
                kept[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        # What happens in a process once, such as trying the attention on a device, is not in it.
        with torch.no_grad(), arithmetic(self.device, self.config.dtype):
            self.policy.forward(dict(batch))
        hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        with hooks, arithmetic(self.device, self.config.dtype):
            self.policy.forward(dict(batch))
        return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())

    def release(self) -> None:
        """Let go of the policy and of the memory that it took."""
        del self.policy, self.optimizer
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
