"""Comparing policies that compute the same in another order."""

from typing import Any

import torch
from torch import Tensor


def joint_step(policy: Any, batch: dict[str, Tensor]) -> tuple[float, dict[str, Tensor]]:
    """Joint loss and gradients, of the same noise and times in every call."""
    torch.manual_seed(7)
    loss, _ = policy.forward(batch)
    loss.backward()
    found = {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}
    return loss.item(), found


def assert_gradients_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """The same parameters have gradients, within 1e-4 of the largest value of each."""
    assert set(found) == set(expected)
    for name, gradient in expected.items():
        assert_close(found[name], gradient, 1e-4, name)


def assert_close(found: Tensor, expected: Tensor, relative: float, name: str = "") -> None:
    """Every number differs by no more than a part of the largest one."""
    largest = expected.abs().max().item()
    off = (found - expected).abs().max().item()
    # What is zero but for rounding, as the gradients of keys' biases, need not agree.
    assert off <= relative * largest + 1e-7, f"{name} is off by {off} of {largest}"
