"""Settings of speed: their values, the optimizer, and draws that share a pass of the VLM."""

from typing import Any

import draccus
import pytest
import torch
from lerobot.optim import AdamWConfig, OptimizerConfig
from lerobot.optim.optimizers import load_optimizer_state, save_optimizer_state
from tiny import make_batch, make_motion_config, make_motion_policy, wake_motion_head
from torch import Tensor, nn

from lerobot_motion.motion_pi05.configuration_motion_pi05 import MotionPi05Config
from lerobot_motion.training.optimizer import FusedAdamWConfig


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train_attention": "flash"}, r"train_attention must be one of \('auto', .*'flash'"),
        ({"inference_attention": "auto"}, r"inference_attention must be one of .*, got 'auto'"),
        (
            {"train_skip_padding": True, "compile_model": True},
            "train_skip_padding=true needs compile_model=false",
        ),
        (
            {"inference_skip_padding": True, "compile_model": True},
            "inference_skip_padding=true needs compile_model=false",
        ),
        ({"motion_samples_per_step": 0}, "motion_samples_per_step must be at least 1, got 0"),
    ],
)
def test_a_wrong_value_is_an_error(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_motion_config(**settings)


# --- the optimizer ---


@pytest.mark.parametrize(
    ("device", "fused", "expected"),
    [
        ("cpu", None, AdamWConfig),
        ("cpu", True, FusedAdamWConfig),
        ("cuda", None, FusedAdamWConfig),
        ("cuda:1", None, FusedAdamWConfig),
        ("cuda", False, AdamWConfig),
        ("meta", None, AdamWConfig),
    ],
)
def test_adamw_is_fused_where_it_is_known_to_be_there(
    device: str, fused: bool | None, expected: type
) -> None:
    config = MotionPi05Config(device="cpu", optimizer_fused=fused, optimizer_lr=0.125)
    config.device = device

    preset = config.get_optimizer_preset()

    assert type(preset) is expected
    assert preset.lr == 0.125
    for name in ("betas", "eps", "weight_decay", "grad_clip_norm"):
        assert getattr(preset, name) == getattr(
            super(type(config), config).get_optimizer_preset(), name
        )


def test_fused_steps_are_adamws() -> None:
    weights = []
    for preset in (AdamWConfig(lr=0.1), FusedAdamWConfig(lr=0.1)):
        torch.manual_seed(0)
        layer = nn.Linear(5, 3)
        optimizer = preset.build(layer.parameters())
        for _ in range(4):
            layer(torch.ones(2, 5)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        weights.append(layer.weight)
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-5, atol=1e-6)


def test_a_run_remembers_its_optimizer_and_its_state(tmp_path: Any) -> None:
    preset = FusedAdamWConfig(lr=0.1)
    text = draccus.encode(preset, OptimizerConfig)
    assert text["type"] == "fused_adamw"
    assert draccus.decode(OptimizerConfig, text) == preset
    layer = nn.Linear(2, 1)
    optimizer = preset.build(layer.parameters())
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()

    save_optimizer_state(optimizer, tmp_path)
    resumed = load_optimizer_state(preset.build(layer.parameters()), tmp_path)

    assert resumed.param_groups[0]["fused"] is True
    for state, expected in zip(resumed.state.values(), optimizer.state.values(), strict=True):
        assert all(torch.equal(state[key], expected[key]) for key in expected)
    resumed.step()


def test_where_there_is_no_fused_adamw_is_an_error_before_the_first_step() -> None:
    groups = [{"params": [nn.Parameter(torch.ones(2))]}]
    FusedAdamWConfig().build(groups)
    groups.append({"params": [nn.Parameter(torch.ones(2, device="meta"))]})
    with pytest.raises(ValueError, match=r"optimizer_fused=true cannot be used on meta: .*false\."):
        FusedAdamWConfig().build(groups)


# --- draws ---


def motion_loss(policy: Any, batch: dict[str, Tensor], reduction: str = "none") -> Tensor:
    torch.manual_seed(3)
    policy.zero_grad()
    loss, _ = policy.forward(batch, reduction=reduction)
    return loss


def test_the_mean_of_more_draws_varies_less_about_the_same() -> None:
    one, many = (
        wake_motion_head(
            make_motion_policy(motion_samples_per_step=draws, motion_warmup_steps=1)
        ).train()
        for draws in (1, 16)
    )
    batch = make_batch(one, batch_size=1)
    with torch.no_grad():
        single = torch.stack([one.forward(batch)[0] for _ in range(48)])
        mean = torch.stack([many.forward(batch)[0] for _ in range(8)])

    assert mean.mean().item() == pytest.approx(single.mean().item(), rel=0.15)
    assert mean.std() < 0.6 * single.std()


def test_draws_share_one_pass_of_the_vlm_and_the_keys_of_the_head() -> None:
    policy = wake_motion_head(make_motion_policy(motion_samples_per_step=3)).train()
    shapes: dict[str, list[tuple[int, ...]]] = {"to_k": [], "pos_embed": []}
    transformer = policy.model.motion_head.transformer
    attn2 = transformer.transformer_blocks[0].attn2
    attn2.to_k.register_forward_hook(lambda *a: shapes["to_k"].append(tuple(a[2].shape)))
    transformer.pos_embed.register_forward_hook(
        lambda *a: shapes["pos_embed"].append(tuple(a[2].shape))
    )
    passes = []
    embed_prefix = policy.model.embed_prefix
    policy.model.embed_prefix = lambda *args: passes.append(1) or embed_prefix(*args)

    motion_loss(policy, make_batch(policy)).sum().backward()

    ((keys, *_),), ((queries, *_),) = shapes["to_k"], shapes["pos_embed"]
    assert (keys, queries, len(passes)) == (2, 6, 1)


def test_a_sample_without_a_target_has_none_in_any_draw() -> None:
    policy = wake_motion_head(
        make_motion_policy(motion_samples_per_step=4, motion_warmup_steps=1)
    ).train()

    losses = motion_loss(policy, make_batch(policy, valid=[False, True]))

    assert losses.shape == (2,)
    assert losses[0] == 0
    assert losses[1] > 0
