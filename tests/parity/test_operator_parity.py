"""Acting at full size: operator for operator what the stock policy does, on equal tensors.

Equal operators on equal shapes and dtypes are equal kernels, whatever the device. Policies of full
size are built on the meta device, where tensors have shapes and no numbers.
"""

from typing import Any

import torch
from policy_steps import META, variant_of
from regime_steps import arithmetic, build, make_batch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map


class _Operators(TorchDispatchMode):
    """Notes every operator with the shapes, dtypes and values that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        self.calls.append(f"{func}{tree_map(_described, (args, kwargs))}")
        return func(*args, **(kwargs or {}))


def _described(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return tuple(value.shape), value.stride(), value.dtype, value.device
    return value


def operators(policy_type: str, size: str, **settings: Any) -> list[str]:
    """What a policy calls for the first action of a chunk."""
    policy = build(variant_of(policy_type, size, "bfloat16", **settings), META).eval()
    batch = make_batch(policy, 1, META)
    with arithmetic(META, "bfloat16"), _Operators() as noted:
        policy.select_action(batch)
    return noted.calls


def test_acting_calls_the_operators_of_the_stock_policy(base: str) -> None:
    two_steps = {"num_inference_steps": 2}
    expected = operators(base, "full", **two_steps)

    assert operators(f"motion_{base}", "full", **two_steps) == expected
    assert len(expected) > 4_000


def test_what_differs_is_seen(base: str) -> None:
    assert operators(f"motion_{base}", "tiny", inference_attention="sdpa") != operators(
        base, "tiny"
    )
