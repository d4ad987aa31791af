import math
from typing import Any

import pytest
import torch
from tiny import BASES, make_batch, make_motion_config, make_motion_policy, wake_motion_head
from torch import Tensor, nn

from lerobot_motion.joint import gradient_balance as module
from lerobot_motion.joint.gradient_balance import gradient_balance
from lerobot_motion.steps import MOTION_VALID
from lerobot_motion.training.train_run import TrainRun

NAMES = {"action_gradient_norm", "motion_gradient_norm", "gradient_cosine"}


def forward(policy: Any, batch: dict[str, Tensor], seed: int = 7) -> tuple[Tensor, dict[str, Any]]:
    torch.manual_seed(seed)
    loss, log = policy.train().forward(batch)
    return loss, log


def vlm_gradient(policy: Any, batch: dict[str, Tensor]) -> Tensor:
    """Gradient of the whole loss on the VLM, as one vector; zeros where nothing arrives."""
    policy.zero_grad(set_to_none=True)
    forward(policy, batch)[0].backward()
    vlm = policy.model.paligemma_with_expert.paligemma
    return torch.cat(
        [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in vlm.parameters()]
    )


# --- two losses with a known answer ---


def test_known_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHUNK", 2)
    shared, other = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(2))
    unreached = nn.Parameter(torch.zeros(2))
    action_loss = shared @ torch.tensor([3.0, 0.0, 4.0])
    motion_loss = shared @ torch.tensor([0.0, 0.0, 2.0]) + other.sum() * 0

    found = gradient_balance(action_loss, motion_loss, [shared, other, unreached])

    expected = {"action_gradient_norm": 5.0, "motion_gradient_norm": 2.0, "gradient_cosine": 0.8}
    assert found == pytest.approx(expected)


def test_the_cosine_of_no_gradient_is_undefined() -> None:
    shared = nn.Parameter(torch.ones(2))

    found = gradient_balance(shared.sum(), shared.sum() * 0, [shared])

    assert found["motion_gradient_norm"] == 0
    assert math.isnan(found["gradient_cosine"])


def test_nothing_shared_is_undefined() -> None:
    loss = nn.Parameter(torch.ones(1)).sum()

    assert all(math.isnan(value) for value in gradient_balance(loss, loss, []).values())


# --- in the policy ---


@pytest.mark.parametrize("base", sorted(BASES))
@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_the_gradients_are_those_of_each_loss(base: str, gradient_checkpointing: bool) -> None:
    def make(**settings: Any) -> Any:
        return wake_motion_head(make_motion_policy(base=base, **settings))

    measured = make(
        log_gradient_balance=True,
        motion_loss_weight=0.25,
        gradient_checkpointing=gradient_checkpointing,
    )
    batch = make_batch(measured)
    of_action = vlm_gradient(make(motion_loss_weight=0.0), batch)
    of_both = vlm_gradient(make(motion_loss_weight=1.0), batch)
    of_motion = of_both - of_action

    _, log = forward(measured, batch)

    assert log["action_gradient_norm"] == pytest.approx(of_action.norm().item(), rel=1e-3)
    assert log["motion_gradient_norm"] == pytest.approx(of_motion.norm().item(), rel=1e-3)
    cosine = torch.cosine_similarity(of_action, of_motion, dim=0).item()
    assert log["gradient_cosine"] == pytest.approx(cosine, abs=1e-3)


def test_measuring_changes_nothing_of_the_step() -> None:
    plain = wake_motion_head(make_motion_policy())
    measured = wake_motion_head(make_motion_policy(log_gradient_balance=True))
    batch = make_batch(plain)

    losses = [forward(policy, batch)[0] for policy in (plain, measured)]
    for loss in losses:
        loss.backward()

    assert torch.equal(*losses)
    for (name, expected), found in zip(
        plain.named_parameters(), measured.parameters(), strict=True
    ):
        if expected.grad is None:
            assert found.grad is None, name
        else:
            assert torch.equal(found.grad, expected.grad), name


@pytest.mark.parametrize(
    ("first_step", "expected"),
    [(0, [False, False, True, False, False, True]), (20, [True, False, False, True, False, False])],
)
def test_measures_in_the_last_step_of_each_log_interval(
    first_step: int, expected: list[bool]
) -> None:
    policy = wake_motion_head(make_motion_policy(log_gradient_balance=True))
    policy.config._train_run = TrainRun(num_steps=26, first_step=first_step, log_freq=3)
    batch = make_batch(policy)
    measured = []

    for _ in range(6):
        _, log = forward(policy, batch)
        measured.append(set(log) >= NAMES)
        policy.update()

    assert measured == expected


@pytest.mark.parametrize("settings", [{}, {"log_gradient_balance": True, "motion_warmup_steps": 1}])
def test_not_measured_unasked_or_in_the_warm_up(settings: dict[str, Any]) -> None:
    policy = make_motion_policy(**settings)

    _, log = forward(policy, make_batch(policy))

    assert not NAMES & set(log)


def test_nothing_is_measured_where_nothing_is_logged_or_in_validation() -> None:
    policy = make_motion_policy(log_gradient_balance=True)
    batch = make_batch(policy)

    _, in_validation = policy.eval().forward(batch)
    policy.config._train_run = TrainRun(num_steps=6, log_freq=0)
    _, unlogged = forward(policy, batch)

    assert not NAMES & {*in_validation, *unlogged}


def test_a_batch_without_targets_has_no_motion_gradient() -> None:
    policy = wake_motion_head(make_motion_policy(log_gradient_balance=True))
    batch = make_batch(policy)
    batch[MOTION_VALID] = torch.zeros_like(batch[MOTION_VALID])

    _, log = forward(policy, batch)

    assert log["motion_gradient_norm"] == 0
    assert log["action_gradient_norm"] > 0
    assert math.isnan(log["gradient_cosine"])


def test_refuses_sharded_parameters() -> None:
    policy = make_motion_policy(log_gradient_balance=True)
    next(policy.model.paligemma_with_expert.paligemma.parameters())._fsdp_flattened = True

    with pytest.raises(ValueError, match="log_gradient_balance=true cannot see .* FSDP shards"):
        forward(policy, make_batch(policy))


@pytest.mark.parametrize(
    ("settings", "cause"),
    [
        ({"train_expert_only": True}, "train_expert_only=true freezes"),
        ({"motion_target": "none"}, "motion_target=none leaves to the actions"),
    ],
)
def test_refuses_where_nothing_is_shared(settings: dict[str, Any], cause: str) -> None:
    with pytest.raises(ValueError, match=f"log_gradient_balance=true .* {cause}"):
        make_motion_config(log_gradient_balance=True, **settings)


def test_autocast_leaves_the_products_in_float32() -> None:
    weight = torch.ones(2, requires_grad=True)
    losses = ((weight * torch.tensor(row)).sum() for row in ([1.0, 2.0**-5], [1.0, 2.0**-6]))

    with torch.autocast("cpu", torch.bfloat16):
        found = gradient_balance(*losses, [weight])

    assert found["action_gradient_norm"] == pytest.approx(math.sqrt(1 + 2.0**-10), rel=1e-6)
    assert found["motion_gradient_norm"] == pytest.approx(math.sqrt(1 + 2.0**-12), rel=1e-6)
