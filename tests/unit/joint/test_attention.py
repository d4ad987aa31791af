"""Scaled-dot-product attention alone: its values, its mask, and devices that cannot have it."""

import logging
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from transformers.models.gemma import modeling_gemma

from lerobot_motion.joint.attention import (
    AUTO,
    SDPA,
    _runs_sdpa,
    _tried_sdpa,
    require_sdpa,
    sdpa_attention,
    sdpa_mask,
    sdpa_problem,
)
from lerobot_motion.motion_pi0.configuration_motion_pi0 import MotionPi0Config

CPU = torch.device("cpu")
CLOSED = -2.3819763e38
ATTENTION = "torch.nn.functional.scaled_dot_product_attention"


@pytest.fixture(autouse=True)
def _devices_untried() -> Iterator[None]:
    _tried_sdpa.cache_clear()
    yield
    _tried_sdpa.cache_clear()


def additive(allowed: Tensor) -> Tensor:
    """LeRobot's mask, of what each query may attend to, (B, N, S)."""
    return torch.where(allowed[:, None], 0.0, CLOSED)


def attend(function: Any, mask: Tensor, groups: int, used: Tensor) -> list[Tensor]:
    """Output of the queries that are used and its gradients, with heads that share keys."""
    generator = torch.Generator().manual_seed(0)
    batch, _, length, _ = mask.shape
    shapes = [(batch, n, length, 16) for n in (8, 8 // groups, 8 // groups)]
    inputs = [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]
    module = SimpleNamespace(num_key_value_groups=groups, training=False)
    output, _ = function(module, *inputs, mask, 0.25)
    output = output * used[:, :, None, None]
    return [output, *torch.autograd.grad(output.square().sum(), inputs)]


@pytest.mark.parametrize("groups", [8, 4, 1])
@pytest.mark.parametrize("length", [8, 13])
def test_values_and_gradients_are_those_of_eager_attention(groups: int, length: int) -> None:
    """With tokens of padding, which attend to nothing and which nothing attends to."""
    allowed = torch.ones(2, length, length, dtype=torch.bool).tril()
    allowed[1, :, -3:] = allowed[1, -3:, :] = False
    mask, used = additive(allowed), allowed.any(dim=-1)

    expected = attend(modeling_gemma.eager_attention_forward, mask, groups, used)

    found = attend(sdpa_attention, sdpa_mask(mask, torch.float32), groups, used)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_lerobots_constant_would_spoil_the_gradients_of_rows_of_padding() -> None:
    """Why such rows are opened: what a fused backward pass makes of them is not small."""
    mask = torch.full((1, 1, 64, 64), CLOSED)
    inputs = [torch.randn(1, n, 64, 16).requires_grad_() for n in (8, 1, 1)]
    module: Any = SimpleNamespace(num_key_value_groups=8, training=False)
    spoilt, fine = (
        torch.autograd.grad(sdpa_attention(module, *inputs, each, 0.25)[0].sum(), inputs)[2]
        for each in (mask, sdpa_mask(mask, torch.float32))
    )

    assert fine.sum() == pytest.approx(8 * 64 * 16, rel=1e-3)
    assert spoilt.sum() > 10 * fine.sum()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_mask_is_exact_and_aligned(dtype: torch.dtype) -> None:
    allowed = torch.tensor([[[True, False, True], [False, False, False], [True, True, True]]])

    mask = sdpa_mask(additive(allowed), dtype)

    assert mask.dtype == dtype
    assert mask.shape == (1, 1, 3, 3)
    assert mask.stride()[-2:] == (8, 1)
    assert mask.isfinite().all()
    opened = allowed.clone()
    opened[0, 1] = True
    assert torch.equal(mask[0, 0] == 0, opened[0])
    assert (mask[0, 0][~opened[0]] < -1e38).all()


def test_shared_keys_are_not_copied_for_the_backward_pass() -> None:
    mask = sdpa_mask(additive(torch.ones(1, 64, 64, dtype=torch.bool)), torch.float32)
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        query = torch.randn(1, 8, 64, 16).requires_grad_()
        key, value = (torch.randn(1, 1, 64, 16).requires_grad_() for _ in range(2))
        module: Any = SimpleNamespace(num_key_value_groups=8, training=False)
        sdpa_attention(module, query, key, value, mask, 0.25)

    # Query, output, key and value, the mask, and the logarithms of the sums.
    assert sum(kept.values()) == 4 * (2 * 8 * 64 * 16 + 2 * 64 * 16 + 64 * 64 + 8 * 64)


# --- devices ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_cpu_computes_it_rightly_and_auto_leaves_it_be(dtype: torch.dtype) -> None:
    assert sdpa_problem(CPU, dtype) is None
    assert _runs_sdpa(SDPA, CPU, dtype)
    assert not _runs_sdpa(AUTO, CPU, dtype)


def test_the_trial_leaves_the_random_state_alone_and_needs_no_gradients() -> None:
    before = torch.get_rng_state()
    with torch.inference_mode():
        assert sdpa_problem(CPU, torch.float32) is None
    assert torch.equal(torch.get_rng_state(), before)


def test_a_device_without_it_is_an_error(caplog: pytest.LogCaptureFixture) -> None:
    with (
        patch(ATTENTION, side_effect=RuntimeError("no kernel\nat 0x7f")),
        caplog.at_level(logging.WARNING),
        pytest.raises(
            ValueError,
            match=r"sdpa cannot be used on cpu in torch.float32: no kernel\. Set --policy",
        ),
    ):
        require_sdpa(CPU, torch.float32)
    assert "fails on cpu" in caplog.text


def test_a_device_that_computes_something_else_is_an_error() -> None:
    with (
        patch(ATTENTION, lambda query, key, value, **_: query * key * value),
        pytest.raises(ValueError, match=r"it is off by .* of the largest value"),
    ):
        require_sdpa(CPU, torch.float32)


def test_auto_falls_back_where_a_gpu_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda")
    module = "lerobot_motion.joint.attention.sdpa_problem"
    with patch(module, return_value="no kernel"):
        assert not _runs_sdpa(AUTO, cuda, torch.bfloat16)
    with patch(module, return_value=None):
        assert _runs_sdpa(AUTO, cuda, torch.bfloat16)


def test_a_run_is_refused_before_anything_is_built() -> None:
    config = MotionPi0Config(device="cpu", train_attention=SDPA)
    with (
        patch(ATTENTION, side_effect=RuntimeError("no kernel")),
        pytest.raises(ValueError, match="sdpa cannot be used on cpu"),
    ):
        config.require_attention()
    MotionPi0Config(device="cpu").require_attention()
