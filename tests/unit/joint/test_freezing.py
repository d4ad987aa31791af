"""LeRobot's freeze_vision_encoder and train_expert_only, which keep their meaning here."""

import logging
from typing import Any
from unittest.mock import patch

import pytest
import torch
from lerobot.optim import AdamWConfig
from tiny import BASES, make_batch, make_motion_config, make_motion_policy, make_stock_policy
from tiny import wake_motion_head as awake
from torch import Tensor, nn

from lerobot_motion.training.train_run import TrainRun

HEAD = "model.motion_head."
VLM = "model.paligemma_with_expert.paligemma."
VISION = f"{VLM}model.vision_tower."
PROJECTOR = f"{VLM}model.multi_modal_projector."
LANGUAGE = f"{VLM}model.language_model."

REGIMES: dict[str, dict[str, Any]] = {
    "all": {},
    "freeze_vision_encoder": {"freeze_vision_encoder": True},
    "train_expert_only": {"train_expert_only": True},
    "both": {"freeze_vision_encoder": True, "train_expert_only": True},
}

on_both_bases = pytest.mark.parametrize("base", sorted(BASES))
in_each_regime = pytest.mark.parametrize("regime", REGIMES)


def trainable(policy: nn.Module) -> set[str]:
    return {name for name, parameter in policy.named_parameters() if parameter.requires_grad}


def in_training_mode(policy: nn.Module) -> set[str]:
    return {name for name, module in policy.named_modules() if module.training}


def learning(policy: nn.Module) -> set[str]:
    """Names of the parameters with a gradient that is not all zeros."""
    return {n for n, p in policy.named_parameters() if p.grad is not None and p.grad.any()}


def changed_by(policy: nn.Module, optimizer: torch.optim.Optimizer) -> set[str]:
    """Names of the parameters that the optimizer's step changes."""
    before = {name: value.clone() for name, value in policy.named_parameters()}
    optimizer.step()
    optimizer.zero_grad()
    return {n for n, value in policy.named_parameters() if not torch.equal(value, before[n])}


# --- what learns ---


@on_both_bases
@in_each_regime
def test_what_learns_is_what_learns_in_the_stock_policy_and_the_head(
    base: str, regime: str
) -> None:
    stock = make_stock_policy(base=base, **REGIMES[regime])
    ours = make_motion_policy(base=base, **REGIMES[regime])
    head = {f"{HEAD}{name}" for name, _ in ours.model.motion_head.named_parameters()}

    assert trainable(ours) == trainable(stock) | head
    assert trainable(stock) < {name for name, _ in ours.named_parameters()}


@on_both_bases
@in_each_regime
def test_frozen_parts_stay_in_evaluation_mode(base: str, regime: str) -> None:
    stock = make_stock_policy(base=base, **REGIMES[regime]).train()
    ours = make_motion_policy(base=base, **REGIMES[regime]).train()

    found = {name for name in in_training_mode(ours) if not f"{name}.".startswith(HEAD)}

    assert found == in_training_mode(stock)
    assert ours.model.motion_head.training


# --- what the motion loss teaches ---


def taught_by_motion(policy: Any) -> set[str]:
    """Names of the parameters that the motion loss alone teaches."""
    base = BASES[policy.base_policy_type].policy
    forward = base.forward

    def detached(self: Any, *args: Any, **kwargs: Any) -> tuple[Tensor, dict[str, Any]]:
        loss, log = forward(self, *args, **kwargs)
        return loss.detach(), log

    with patch.object(base, "forward", detached):
        policy.train().forward(make_batch(policy))[0].backward()
    return learning(policy)


@on_both_bases
@pytest.mark.parametrize(
    ("regime", "parts"),
    [
        ("all", {VISION, PROJECTOR, LANGUAGE, HEAD}),
        ("freeze_vision_encoder", {PROJECTOR, LANGUAGE, HEAD}),
        ("train_expert_only", {HEAD}),
    ],
)
def test_the_motion_loss_teaches_what_is_not_frozen(
    base: str, regime: str, parts: set[str]
) -> None:
    policy = awake(make_motion_policy(base=base, **REGIMES[regime]))

    taught = taught_by_motion(policy)

    assert {part for part in (VISION, PROJECTOR, LANGUAGE, HEAD) if any_of(taught, part)} == parts
    assert all(name.startswith(tuple(parts)) for name in taught)


def any_of(names: set[str], part: str) -> bool:
    return any(name.startswith(part) for name in names)


@on_both_bases
def test_behind_a_frozen_vlm_nothing_is_computed_for_the_motion_loss(base: str) -> None:
    """Else the attention that VLM and expert share would carry zeros back to the expert."""
    policies = [make_motion_policy(base=base, train_expert_only=only) for only in (True, False)]
    prefixes = []
    for policy in policies:
        with patch.object(
            policy.model.motion_head, "forward", wraps=policy.model.motion_head.forward
        ) as forward:
            policy.train().forward(make_batch(policy))
        prefixes.append(forward.call_args.args[2:])

    (frozen, frozen_mask), (free, mask) = prefixes
    assert not frozen.requires_grad
    assert free.requires_grad
    assert torch.equal(frozen_mask, mask)
    torch.testing.assert_close(frozen[mask], free[mask].detach(), rtol=0, atol=1e-4)


@on_both_bases
@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_with_a_frozen_vlm_the_expert_learns_as_in_the_stock_policy(
    base: str, gradient_checkpointing: bool
) -> None:
    settings = {"train_expert_only": True, "gradient_checkpointing": gradient_checkpointing}
    stock = make_stock_policy(base=base, **settings)
    ours = awake(make_motion_policy(base=base, **settings))
    batch = make_batch(ours)
    for policy in (stock, ours):
        torch.manual_seed(3)
        policy.train().forward(batch)[0].backward()

    found = dict(ours.named_parameters())
    compared = 0
    for name, parameter in stock.named_parameters():
        if parameter.grad is None:
            assert found[name].grad is None, name
        else:
            assert torch.equal(found[name].grad, parameter.grad), name
            compared += 1
    assert compared > 10


@on_both_bases
@pytest.mark.parametrize("regime", ["freeze_vision_encoder", "train_expert_only"])
def test_the_warmup_goes_before_the_regime(base: str, regime: str) -> None:
    settings = {"motion_warmup_steps": 2, **REGIMES[regime]}
    policy = awake(make_motion_policy(base=base, **settings))
    frozen = VISION if regime == "freeze_vision_encoder" else VLM
    optimizer = AdamWConfig(lr=1e-3, weight_decay=0.1).build(policy.get_optim_params())
    changed = []
    for step in range(3):
        policy.train().forward(make_batch(policy, seed=step))[0].backward()
        changed.append(changed_by(policy, optimizer))
        policy.update()

    assert all(name.startswith(HEAD) for name in changed[0] | changed[1])
    assert any_of(changed[0], HEAD)
    assert any_of(changed[2], HEAD)
    assert any_of(changed[2], "model.paligemma_with_expert.gemma_expert.")
    assert not any_of(changed[2], frozen)
    assert any_of(changed[2], LANGUAGE) == (regime == "freeze_vision_encoder")


# --- what is said about it ---


def warnings_of(caplog: pytest.LogCaptureFixture, config: Any) -> list[str]:
    with caplog.at_level(logging.WARNING):
        config.enter_run(TrainRun(num_steps=10))
    return [record.getMessage() for record in caplog.records if "motion" in record.name]


@on_both_bases
def test_a_run_with_a_frozen_vlm_is_told_so_once(
    base: str, caplog: pytest.LogCaptureFixture
) -> None:
    (message,) = warnings_of(caplog, make_motion_config(base=base, train_expert_only=True))

    assert message == (
        "train_expert_only=true freezes the VLM: the motion loss can train the motion head alone, "
        "and the actions learn nothing from it. freeze_vision_encoder=true would freeze the vision "
        "tower only."
    )


@pytest.mark.parametrize(
    "settings",
    [{}, {"freeze_vision_encoder": True}, {"motion_target": "none", "train_expert_only": True}],
)
def test_other_runs_are_told_nothing(
    settings: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    assert warnings_of(caplog, make_motion_config(**settings)) == []
