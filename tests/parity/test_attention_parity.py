"""Scaled-dot-product attention: LeRobot's loss, gradients and actions up to rounding.

In float32 on a CPU, of the largest value of each tensor: losses and actions within 1e-5, gradients
within 1e-4. In bfloat16: the loss within 1e-2.
"""

import inspect
import sys
from typing import Any
from unittest.mock import patch

import pytest
import torch
from closeness import assert_close, assert_gradients_close, joint_step
from tiny import (
    BASES,
    CAMERA,
    make_batch,
    make_motion_policy,
    make_stock_policy,
    wake_motion_head,
)
from torch import Tensor
from torch.nn import functional as F
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.gemma import modeling_gemma

from lerobot_motion.joint.attention import AUTO, EAGER, SDPA, forward_with_sdpa, rebound
from lerobot_motion.joint.backbone import TINY_LAYERS, replaced

WRIST = "observation.images.wrist"
ATTENTION = "torch.nn.functional.scaled_dot_product_attention"


def make_policy(base: str, attention: str, **settings: Any) -> Any:
    return wake_motion_head(
        make_motion_policy(base=base, train_attention=attention, **settings)
    ).train()


def calls_of_sdpa(run: Any) -> int:
    """How often VLM and expert, not the vision tower or the motion head, attend by sdpa."""
    attend, calls = F.scaled_dot_product_attention, []

    def counted(*args: Any, **kwargs: Any) -> Tensor:
        module = sys._getframe(1).f_locals.get("module")
        calls.append(isinstance(module, modeling_gemma.GemmaAttention))
        return attend(*args, **kwargs)

    with patch(ATTENTION, counted):
        run()
    return sum(calls)


# --- training ---


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_loss_and_gradients_are_those_of_eager_attention(
    base: str, gradient_checkpointing: bool
) -> None:
    """Of prompts of several lengths, with a camera that is missing."""
    settings = {"cameras": (CAMERA, WRIST), "gradient_checkpointing": gradient_checkpointing}
    batch = make_batch(make_policy(base, EAGER, **settings), batch_size=3)
    del batch[WRIST]
    eager_loss, eager = joint_step(make_policy(base, EAGER, **settings), batch)

    loss, found = joint_step(make_policy(base, SDPA, **settings), batch)

    assert loss == pytest.approx(eager_loss, rel=1e-5)
    assert_gradients_close(found, eager)


def test_in_bfloat16_the_loss_is_that_of_eager_attention(base: str) -> None:
    policies = [make_policy(base, each, dtype="bfloat16") for each in (EAGER, SDPA)]
    batch = make_batch(policies[0], batch_size=4)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        (eager_loss, eager), (loss, found) = (joint_step(policy, batch) for policy in policies)

    assert loss == pytest.approx(eager_loss, rel=1e-2)
    assert set(found) == set(eager)
    for name, expected in eager.items():
        cosine = F.cosine_similarity(
            found[name].float().flatten(), expected.float().flatten(), dim=0
        )
        assert cosine > 0.9 or expected.float().norm() < 1e-3, name


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_every_layer_attends_once_a_pass(base: str, gradient_checkpointing: bool) -> None:
    settings = {"gradient_checkpointing": gradient_checkpointing}
    policy, eager = (make_policy(base, each, **settings) for each in (SDPA, EAGER))
    batch = make_batch(policy)

    passes = 2 if gradient_checkpointing else 1
    assert calls_of_sdpa(lambda: joint_step(policy, batch)) == passes * TINY_LAYERS
    assert calls_of_sdpa(lambda: joint_step(eager, batch)) == 0


def test_in_the_warm_up_the_vlm_attends_so_too(base: str) -> None:
    settings = {"motion_warmup_steps": 5}
    policies = [make_policy(base, each, **settings) for each in (EAGER, SDPA)]
    batch = make_batch(policies[0])

    (eager_loss, eager), (loss, found) = (joint_step(policy, batch) for policy in policies)

    assert loss == pytest.approx(eager_loss, rel=1e-5)
    assert_gradients_close(found, eager)
    assert calls_of_sdpa(lambda: joint_step(policies[1], batch)) == TINY_LAYERS


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_without_a_motion_head_too(base: str, gradient_checkpointing: bool) -> None:
    """LeRobot then recomputes all layers together, by way of our forward pass."""
    settings = {
        "base": base,
        "motion_target": "none",
        "gradient_checkpointing": gradient_checkpointing,
    }
    eager, policy = (
        make_motion_policy(train_attention=each, **settings).train() for each in (EAGER, SDPA)
    )
    batch = make_batch(policy)
    eager_loss, expected = joint_step(eager, batch)

    loss, found = joint_step(policy, batch)

    assert loss == pytest.approx(eager_loss, rel=1e-5)
    assert_gradients_close(found, expected)


def test_off_it_is_the_stock_policys_attention_to_the_bit(base: str) -> None:
    """Also after the process has used the other, and with the default, on a CPU."""
    stock = make_stock_policy(base=base).train()
    batch = make_batch(stock)
    torch.manual_seed(7)
    _, expected = stock.forward(batch)
    on = make_policy(base, SDPA)
    motion_batch = make_batch(on)
    joint_step(on, motion_batch)

    for chosen in (EAGER, AUTO):
        policy = make_policy(base, chosen)
        torch.manual_seed(7)
        _, log = policy.forward(motion_batch)
        assert log["action_loss"] == expected["loss"]


# --- acting and imagining ---


def test_actions_are_those_of_eager_attention(base: str) -> None:
    eager, policy = (
        make_motion_policy(base=base, inference_attention=each).eval() for each in (EAGER, SDPA)
    )
    batch = make_batch(policy, motion=False)
    noise = torch.randn(2, policy.config.chunk_size, policy.config.max_action_dim)
    expected = eager.predict_action_chunk(dict(batch), noise=noise)

    found = policy.predict_action_chunk(dict(batch), noise=noise)

    assert_close(found, expected, 1e-5)
    steps = policy.config.num_inference_steps
    run = lambda each: each.predict_action_chunk(dict(batch), noise=noise)  # noqa: E731
    assert calls_of_sdpa(lambda: run(policy)) == (1 + steps) * TINY_LAYERS
    assert calls_of_sdpa(lambda: run(eager)) == 0


def test_by_default_actions_are_the_stock_policys_whatever_training_uses(base: str) -> None:
    stock = make_stock_policy(base=base).eval()
    policy = make_policy(base, SDPA)
    batch = make_batch(policy)
    joint_step(policy, batch)
    noise = torch.randn(2, policy.config.chunk_size, policy.config.max_action_dim)

    policy.eval()

    expected = stock.predict_action_chunk(dict(batch), noise=noise)
    assert torch.equal(policy.predict_action_chunk(dict(batch), noise=noise), expected)


def test_imagined_motion_is_that_of_eager_attention(base: str) -> None:
    eager, policy = (
        wake_motion_head(make_motion_policy(base=base, inference_attention=each)).eval()
        for each in (EAGER, SDPA)
    )
    batch = make_batch(policy, motion=False)
    noise = torch.randn(2, *policy.model.motion_head.latent_shape)

    expected, found = (
        each.predict_motion_latent(batch, num_steps=3, noise=noise) for each in (eager, policy)
    )

    assert_close(found, expected, 1e-5)


# --- what it leans on in LeRobot 0.6.1 and transformers ---


def test_the_shared_layers_attend_by_the_name_that_is_replaced(base: str) -> None:
    modeling = BASES[base].modeling
    layer = modeling.compute_layer_complete
    backbone = modeling.PaliGemmaWithExpertModel

    assert modeling.modeling_gemma is modeling_gemma
    assert "compute_layer_complete" in backbone.forward.__code__.co_names
    source = inspect.getsource(layer)
    assert source.count("modeling_gemma.") == 2
    assert source.count("modeling_gemma.apply_rotary_pos_emb(") == 1
    call = "".join(source.split("modeling_gemma.eager_attention_forward(")[1].split(")")[0].split())
    assert call == (
        "paligemma_layer.self_attn,query_states,key_states,value_states,attention_mask,scaling,"
    )
    # Both are plain functions: what they look up can be rebound, and super() is not in them.
    for function in (layer, backbone.forward):
        assert not hasattr(function, "__wrapped__")
        assert function.__closure__ is None
        assert "__name__" not in function.__code__.co_names


def test_eager_attention_is_what_ours_replaces() -> None:
    names = ["module", "query", "key", "value", "attention_mask", "scaling", "dropout", "kwargs"]
    assert list(inspect.signature(modeling_gemma.eager_attention_forward).parameters) == names
    source = inspect.getsource(modeling_gemma.eager_attention_forward)
    for line in (
        "key_states = repeat_kv(key, module.num_key_value_groups)",
        "torch.matmul(query, key_states.transpose(2, 3)) * scaling",
        "attn_weights = attn_weights + attention_mask",
        "attn_output = attn_output.transpose(1, 2).contiguous()",
    ):
        assert line in source


def test_a_part_alone_asks_the_registry_and_lerobot_asks_for_eager_each_time(base: str) -> None:
    source = inspect.getsource(modeling_gemma.GemmaAttention.forward)
    assert "ALL_ATTENTION_FUNCTIONS.get_interface(" in source
    network = getattr(BASES[base].modeling, f"{base.upper()}Pytorch")
    for method in (network.sample_actions, network.denoise_step):
        assert '_attn_implementation = "eager"' in inspect.getsource(inspect.unwrap(method))


def test_sdpa_is_the_one_of_transformers() -> None:
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is sdpa_attention_forward
    names = list(inspect.signature(sdpa_attention_forward).parameters)
    assert names[:7] == [
        *("module", "query", "key", "value", "attention_mask", "dropout", "scaling")
    ]


def test_lerobot_passes_by_keyword_what_ours_reads(base: str) -> None:
    policy = make_stock_policy(base=base).eval()
    backbone = policy.model.paligemma_with_expert
    forward, calls = backbone.forward, []
    backbone.forward = lambda *args, **kwargs: (
        calls.append((args, set(kwargs))) or forward(*args, **kwargs)
    )

    policy.forward(make_batch(policy))
    policy.predict_action_chunk(make_batch(policy), num_steps=1)

    assert len(calls) == 3
    for args, keywords in calls:
        assert args == ()
        assert {"attention_mask", "inputs_embeds"} <= keywords


def test_lerobots_functions_stay_as_they_are(base: str) -> None:
    modeling = BASES[base].modeling
    before = dict(vars(modeling))
    eager = modeling_gemma.eager_attention_forward

    joint_step(policy := make_policy(base, SDPA), make_batch(policy))

    assert dict(vars(modeling)) == before
    assert modeling_gemma.eager_attention_forward is eager
    assert (
        forward_with_sdpa(modeling.PaliGemmaWithExpertModel)
        is not modeling.PaliGemmaWithExpertModel.forward
    )


def test_a_changed_layer_of_lerobots_is_the_one_that_runs(base: str) -> None:
    """Nothing of it is copied: rebound, it is still LeRobot's own code."""
    modeling = BASES[base].modeling
    layer = modeling.compute_layer_complete

    copy = rebound(layer, modeling_gemma=None)

    assert copy.__code__ is layer.__code__
    assert copy.__globals__["torch"] is torch
    assert layer.__globals__["modeling_gemma"] is modeling_gemma
    with replaced(modeling, compute_layer_complete=None):
        assert (
            modeling.PaliGemmaWithExpertModel.forward.__globals__["compute_layer_complete"] is None
        )
