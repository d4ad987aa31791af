"""torch.compile: the prefix that the motion head reads keeps its gradient."""

from typing import Any

import pytest
import torch
from tiny import make_batch, make_motion_policy, wake_motion_head
from torch import Tensor


def gradients(base: str, **settings: Any) -> dict[str, Tensor]:
    policy = wake_motion_head(make_motion_policy(base=base, **settings)).train()
    torch.manual_seed(7)
    loss, _ = policy.forward(make_batch(policy))
    loss.backward()
    return {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}


def test_compiled_gradients_are_those_of_eager_mode(
    base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a backend that traces as inductor does and leaves out minutes of code generation."""
    eager = gradients(base)
    compiled_functions = []
    compile_with = torch.compile

    def compile_quickly(function: Any, mode: str) -> Any:
        compiled_functions.append(function.__name__)
        return compile_with(function, backend="aot_eager")

    monkeypatch.setattr(torch, "compile", compile_quickly)

    compiled = gradients(base, compile_model=True)

    assert compiled_functions == ["sample_actions", "forward"]
    assert set(compiled) == set(eager)
    for name, expected in eager.items():
        torch.testing.assert_close(compiled[name], expected, rtol=1e-3, atol=1e-5, msg=name)
