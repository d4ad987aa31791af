"""Training and evaluation mode: LeRobot asks for them, and no flag is set twice."""

import inspect
from typing import Any

import pytest
from lerobot.scripts import lerobot_train
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


# --- what it is for, and what it leans on, in LeRobot 0.6.1 ---


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("method", ["select_action", "predict_action_chunk"])
def test_lerobot_asks_for_evaluation_before_every_action(base: str, method: str) -> None:
    source = inspect.getsource(inspect.unwrap(getattr(BASES[base].policy, method)))

    assert source.count("self.eval()") == 1


def test_lerobot_asks_for_training_before_every_step() -> None:
    assert inspect.getsource(lerobot_train.update_policy).count("policy.train()") == 1


@pytest.mark.parametrize("base", BASES)
def test_only_frozen_parts_are_kept_from_training_mode(base: str) -> None:
    modeling: Any = BASES[base].modeling
    own = [
        found
        for found in vars(modeling).values()
        if inspect.isclass(found) and found.__module__ == modeling.__name__
    ]
    overriding = [found.__name__ for found in own if "train" in vars(found)]
    assert overriding == ["PaliGemmaWithExpertModel"]
    source = inspect.getsource(modeling.PaliGemmaWithExpertModel.train)
    conditions = [line.strip() for line in source.splitlines() if line.strip().startswith("if ")]
    assert conditions == ["if self.freeze_vision_encoder:", "if self.train_expert_only:"]
