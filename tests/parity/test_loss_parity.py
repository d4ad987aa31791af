"""The joint policy's action half is LeRobot's, bit for bit; its motion half is the VLM's."""

from typing import Any
from unittest.mock import patch

import pytest
import torch
from tiny import BASES, CAMERA, make_batch, make_motion_policy, make_stock_policy, wake_motion_head
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from lerobot_motion.joint.backbone import TINY_LAYERS

WRIST = "observation.images.wrist"
HEAD = "model.motion_head."
EXPERT = (
    "model.paligemma_with_expert.gemma_expert.",
    "model.action_in_proj.",
    "model.action_out_proj.",
    "model.action_time_mlp_",
    "model.time_mlp_",
    "model.state_proj.",
)


def make_pair(base: str, **settings: Any) -> tuple[Any, Any]:
    """LeRobot's policy and ours with the same weights, in training mode."""
    cameras = settings.pop("cameras", (CAMERA,))
    ours_only = {"motion_loss_weight": settings.pop("motion_loss_weight", 1.0)}
    stock = make_stock_policy(cameras=cameras, base=base, **settings).train()
    ours = make_motion_policy(cameras=cameras, base=base, **settings, **ours_only).train()
    return stock, wake_motion_head(ours)


def forward(policy: nn.Module, batch: dict[str, Tensor], **kwargs: Any) -> tuple[Tensor, dict]:
    torch.manual_seed(7)
    return policy.forward(batch, **kwargs)


def gradients(policy: nn.Module) -> dict[str, Tensor | None]:
    return {name: parameter.grad for name, parameter in policy.named_parameters()}


def motion_gradients(policy: Any) -> dict[str, Tensor | None]:
    """Gradients of the motion loss alone: the joint loss with the action loss cut off."""
    policy.zero_grad()
    stock_class = BASES[policy.base_policy_type].policy
    stock_forward = stock_class.forward

    def detached(self: Any, *args: Any, **kwargs: Any) -> tuple[Tensor, dict]:
        loss, log = stock_forward(self, *args, **kwargs)
        return loss.detach(), log

    with patch.object(stock_class, "forward", detached):
        forward(policy, make_batch(policy, batch_size=3))[0].backward()
    return gradients(policy)


def test_the_same_seed_gives_the_same_weights(base: str) -> None:
    stock, ours = make_pair(base)

    state = ours.state_dict()

    assert {key for key in state if not key.startswith(HEAD)} == set(stock.state_dict())
    assert all(torch.equal(state[key], value) for key, value in stock.state_dict().items())


# --- the action loss ---


@pytest.mark.parametrize("cameras", [(CAMERA,), (CAMERA, WRIST)])
@pytest.mark.parametrize("training", [True, False])
def test_the_action_loss_is_the_stock_policys(
    base: str, cameras: tuple[str, ...], training: bool
) -> None:
    stock, ours = make_pair(base, cameras=cameras)
    batch = make_batch(ours, batch_size=3)

    loss, log = forward(stock.train(training), batch)
    _, joint_log = forward(ours.train(training), batch)

    assert joint_log["action_loss"] == log["loss"] == loss.item()
    assert joint_log["loss_per_dim"] == log["loss_per_dim"]


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_without_the_motion_loss_the_loss_is_the_stock_policys(base: str, reduction: str) -> None:
    stock, ours = make_pair(base, motion_loss_weight=0.0)
    batch = make_batch(ours, batch_size=3)

    loss, _ = forward(stock, batch, reduction=reduction)
    joint_loss, _ = forward(ours, batch, reduction=reduction)

    assert torch.equal(joint_loss, loss)
    assert joint_loss.shape == (() if reduction == "mean" else (3,))


def test_a_missing_camera_is_masked_as_in_the_stock_policy(base: str) -> None:
    stock, ours = make_pair(base, cameras=(CAMERA, WRIST), motion_loss_weight=0.0)
    batch = make_batch(ours)
    del batch[WRIST]

    assert torch.equal(forward(ours, batch)[0], forward(stock, batch)[0])


def test_without_its_head_the_policy_is_the_stock_policy(base: str) -> None:
    stock = make_stock_policy(base=base).train()
    ours = make_motion_policy(base=base, load_motion_head=False).train()
    batch = make_batch(stock)

    loss, log = forward(stock, batch)
    our_loss, our_log = forward(ours, batch)

    assert torch.equal(our_loss, loss)
    assert our_log == log


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_without_a_target_the_training_is_the_stock_policys(
    base: str, gradient_checkpointing: bool
) -> None:
    """Weights, losses and random state: bit for bit, over optimizer steps that change them."""
    settings = {"base": base, "gradient_checkpointing": gradient_checkpointing}
    stock = make_stock_policy(**settings).train()
    ours = make_motion_policy(motion_target="none", motion_head_lr=1e-2, **settings).train()
    histories = []
    for policy in (stock, ours):
        optimizer = torch.optim.AdamW(policy.get_optim_params(), lr=1e-3)
        torch.manual_seed(5)
        history = []
        for seed in range(3):
            loss, log = policy.forward(make_batch(stock, seed=seed))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if policy is ours:
                policy.update()
                assert log.pop("action_loss") == log["loss"]
            history.append((loss.item(), log, torch.get_rng_state().tolist()))
        histories.append(history)

    assert histories[1] == histories[0]
    assert len({loss for loss, _, _ in histories[0]}) == 3
    weights = stock.state_dict()
    assert list(ours.state_dict()) == list(weights)
    for name, value in ours.state_dict().items():
        assert torch.equal(value, weights[name]), name


def test_in_bfloat16_the_action_loss_is_the_stock_policys(base: str) -> None:
    stock, ours = make_pair(base, dtype="bfloat16")
    batch = make_batch(ours)

    _, log = forward(stock, batch)
    loss, joint_log = forward(ours, batch)
    loss.backward()

    assert joint_log["action_loss"] == log["loss"]
    assert ours.model.paligemma_with_expert.prefix_out is None
    assert all(p.grad is not None for p in ours.model.motion_head.parameters())


# --- gradients of the action loss ---


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_without_the_motion_loss_the_gradients_are_the_stock_policys(
    base: str, gradient_checkpointing: bool, reduction: str
) -> None:
    """The weight 0 scales the motion loss's gradients to exact zeros, which change no bit.

    Where the stock policy has no gradient (the last VLM layer's output), ours is such a zero.
    """
    settings = {"gradient_checkpointing": gradient_checkpointing, "motion_loss_weight": 0.0}
    stock, ours = make_pair(base, **settings)
    batch = make_batch(ours, batch_size=3)

    forward(stock, batch, reduction=reduction)[0].sum().backward()
    forward(ours, batch, reduction=reduction)[0].sum().backward()

    ours_by_name = gradients(ours)
    compared = 0
    for name, expected in gradients(stock).items():
        found = ours_by_name[name]
        if expected is None:
            assert found is None or not found.any(), name
        else:
            assert torch.equal(found, expected), name
            compared += 1
    assert compared > 25 * TINY_LAYERS


def test_the_vision_tower_is_computed_again_layer_by_layer(base: str) -> None:
    """LeRobot computes all of it again at once: forward and again. Ours: then each layer alone."""
    passes = []
    for policy in make_pair(base, gradient_checkpointing=True):
        tower = policy.model.paligemma_with_expert.paligemma.model.vision_tower
        layers = [part for part in tower.modules() if isinstance(part, GradientCheckpointingLayer)]
        calls: list[nn.Module] = []
        for layer in layers:
            # Before it runs: the last time it is stopped as soon as nothing further is needed.
            layer.register_forward_pre_hook(lambda module, *_, calls=calls: calls.append(module))
        forward(policy, make_batch(policy))[0].backward()
        passes.append(len(calls) / len(layers))
    assert passes == [2, 3]


def test_masked_targets_leave_the_gradients_the_stock_policys(base: str) -> None:
    stock, ours = make_pair(base)
    batch = make_batch(ours, valid=[False, False])

    forward(stock, batch)[0].backward()
    forward(ours, batch)[0].backward()

    ours_by_name = gradients(ours)
    for name, expected in gradients(stock).items():
        if expected is not None:
            assert torch.equal(ours_by_name[name], expected), name


def test_the_two_losses_gradients_add_up(base: str) -> None:
    stock, ours = make_pair(base, motion_loss_weight=0.5)
    batch = make_batch(ours, batch_size=3)
    forward(stock, batch)[0].backward()
    forward(ours, batch)[0].backward()
    joint = {name: g.clone() for name, g in gradients(ours).items() if g is not None}

    motion = motion_gradients(ours)

    for name, action in gradients(stock).items():
        parts = [part for part in (action, motion[name]) if part is not None]
        if parts:
            torch.testing.assert_close(joint[name], sum(parts), rtol=1e-4, atol=1e-6, msg=name)


# --- gradients of the motion loss ---


def test_the_motion_loss_reaches_all_of_the_vlm(base: str) -> None:
    policy = make_pair(base)[1]

    found = motion_gradients(policy)

    vlm = "model.paligemma_with_expert.paligemma.model"
    reached = {name for name, gradient in found.items() if gradient is not None and gradient.any()}
    layers = f"{vlm}.language_model.layers"
    for layer in range(TINY_LAYERS):
        for part in ("self_attn.o_proj", "mlp.down_proj", "mlp.gate_proj", "self_attn.q_proj"):
            assert f"{layers}.{layer}.{part}.weight" in reached
    assert f"{vlm}.language_model.norm.weight" in reached
    assert f"{vlm}.language_model.embed_tokens.weight" in reached
    assert f"{vlm}.multi_modal_projector.linear.weight" in reached
    assert any("vision_tower" in name and "layers.0." in name for name in reached)
    assert any("vision_tower" in name and "patch_embedding" in name for name in reached)
    assert any(name.startswith(HEAD) for name in reached)


def test_the_stock_policy_does_not_teach_the_last_layers_output(base: str) -> None:
    """What motion learning adds: in plain pi0 and pi0.5 nothing reads the VLM's last output."""
    stock = make_stock_policy(base=base).train()

    forward(stock, make_batch(stock))[0].backward()

    layers = "model.paligemma_with_expert.paligemma.model.language_model.layers"
    last = f"{layers}.{TINY_LAYERS - 1}"
    found = gradients(stock)
    assert found[f"{last}.self_attn.o_proj.weight"] is None
    assert found[f"{last}.mlp.down_proj.weight"] is None


def test_the_motion_loss_never_reaches_the_action_expert(base: str) -> None:
    policy = make_pair(base)[1]

    found = motion_gradients(policy)

    expert = {name: gradient for name, gradient in found.items() if name.startswith(EXPERT)}
    assert len(expert) >= 8 * TINY_LAYERS
    assert [n for n, gradient in expert.items() if gradient is not None and gradient.any()] == []


def test_gradient_checkpointing_keeps_the_motion_gradients(base: str) -> None:
    plain = motion_gradients(make_pair(base)[1])
    policy = make_pair(base, gradient_checkpointing=True)[1]

    checkpointed = motion_gradients(policy)

    assert policy.model.motion_head.transformer.gradient_checkpointing
    for name, expected in plain.items():
        found = checkpointed[name]
        if expected is None:
            assert found is None or not found.any(), name
        else:
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-8, msg=name)


def test_gradient_checkpointing_does_not_keep_the_prefix(base: str) -> None:
    """The backward pass runs the forward pass again, which must not leave activations behind."""
    policy = make_pair(base, gradient_checkpointing=True)[1]

    forward(policy, make_batch(policy))[0].backward()

    assert policy.model.paligemma_with_expert.prefix_out is None
    assert not policy.model.paligemma_with_expert.keep_prefix


# --- settings that freeze parts ---


@pytest.mark.parametrize("setting", ["freeze_vision_encoder", "train_expert_only"])
def test_what_the_stock_policy_freezes_stays_frozen(base: str, setting: str) -> None:
    policy = make_pair(base, **{setting: True})[1]

    forward(policy, make_batch(policy))[0].backward()

    frozen = "vision_tower" if setting == "freeze_vision_encoder" else "paligemma."
    found = gradients(policy)
    assert all(g is None for name, g in found.items() if f".{frozen}" in name)
    assert all(g is not None for name, g in found.items() if name.startswith(HEAD))
