"""Training and evaluation mode: LeRobot asks for them, and no flag is set twice."""

import pytest
from tiny import BASES, make_batch, make_motion_policy
from torch import nn


@pytest.fixture
def set_flags(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """Modules whose flags were set."""
    found, train = [], nn.Module.train

    def noted(module: nn.Module, mode: bool = True) -> nn.Module:
        found.append(module)
        return train(module, mode)

    monkeypatch.setattr(nn.Module, "train", noted)
    return found


@pytest.mark.parametrize("base", BASES)
def test_an_action_sets_no_flag(base: str, set_flags: list[nn.Module]) -> None:
    policy = make_motion_policy(base=base).eval()
    batch = make_batch(policy, motion=False)
    policy.select_action(batch)
    set_flags.clear()

    policy.select_action(batch)
    policy.predict_action_chunk(batch)
    policy.predict_motion_latent(batch, num_steps=1)

    assert set_flags == []


def test_nor_does_a_further_step(set_flags: list[nn.Module]) -> None:
    policy = make_motion_policy().train()
    set_flags.clear()

    # As in a wrapper, such as DDP.
    nn.Sequential(policy).train()

    assert [type(module) for module in set_flags] == [nn.Sequential]


@pytest.mark.parametrize("mode", [False, True])
@pytest.mark.parametrize("base", BASES)
def test_a_single_part_in_another_mode_is_brought_back(base: str, mode: bool) -> None:
    policy = make_motion_policy(base=base).train(mode)
    for part in (policy, [*policy.modules()][-1], policy.model.motion_head):
        part.training = not mode

        assert policy.train(mode) is policy
        assert {each.training for each in policy.modules()} == {mode}


@pytest.mark.parametrize("frozen", ["freeze_vision_encoder", "train_expert_only"])
@pytest.mark.parametrize("base", BASES)
def test_what_is_frozen_stays_in_evaluation_mode(base: str, frozen: str) -> None:
    policy = make_motion_policy(base=base, **{frozen: True})
    vision = policy.model.paligemma_with_expert.paligemma.model.vision_tower
    for part in policy.modules():
        part.training = True

    policy.train()

    assert not any(part.training for part in vision.modules())
    assert policy.model.motion_head.training


def test_absent_parts_are_no_hindrance() -> None:
    policy = make_motion_policy(load_motion_head=False).eval()
    policy.register_module("absent", None)

    assert policy.eval() is policy
