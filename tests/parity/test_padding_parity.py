"""Without the padding of prefixes: LeRobot's loss, gradients and actions up to rounding.

In float32 on a CPU, of the largest value of each tensor: losses, actions and imagined latents
within 1e-5, gradients within 1e-4. In bfloat16: the loss within 1e-2.
"""

from typing import Any

import pytest
import torch
from closeness import assert_close, assert_gradients_close, joint_step
from lerobot.policies.rtc.configuration_rtc import RTCConfig
from tiny import CAMERA, make_batch, make_motion_policy, make_stock_policy, wake_motion_head
from torch import Tensor

from lerobot_motion.joint import padding

WRIST = "observation.images.wrist"
CAMERAS = (CAMERA, WRIST)
IMAGE_TOKENS = 16


def make_policy(base: str, **settings: Any) -> Any:
    """A policy for prompts of up to 96 tokens."""
    settings = {"cameras": CAMERAS, "tokenizer_max_length": 96, **settings}
    return wake_motion_head(make_motion_policy(base=base, **settings))


def make_batch_of(
    policy: Any, lengths: list[int], *cameras: str, **settings: Any
) -> dict[str, Any]:
    """A batch of prompts of these lengths, with these cameras alone."""
    batch = make_batch(policy, batch_size=len(lengths), **settings)
    ends = torch.tensor(lengths)[:, None]
    batch["observation.language.attention_mask"] = torch.arange(96)[None] < ends
    for camera in set(CAMERAS) - set(cameras):
        del batch[camera]
    return batch


def second_step(policy: Any, batch: dict[str, Tensor]) -> tuple[float, dict[str, Tensor]]:
    """Joint loss and gradients, where the first step is over."""
    policy.train().model._has_seen_whole_prompts = True
    return joint_step(policy, batch)


def num_tokens(policy: Any) -> int:
    """Tokens of the prefix that the policy's VLM saw last."""
    return int(policy.model._prefix_mask.shape[1])


# --- training ---


@pytest.mark.parametrize(
    "settings",
    [{}, {"gradient_checkpointing": True, "train_attention": "sdpa"}],
    ids=["eager", "sdpa"],
)
def test_loss_and_gradients_are_those_of_the_padded_prefix(
    base: str, settings: dict[str, Any]
) -> None:
    whole, policy = (
        make_policy(base, train_skip_padding=skip, **settings) for skip in (False, True)
    )
    batch = make_batch_of(policy, [5, 17, 11], CAMERA)
    expected_loss, expected = second_step(whole, batch)

    loss, found = second_step(policy, batch)

    assert num_tokens(whole) == 2 * IMAGE_TOKENS + 96
    assert num_tokens(policy) == IMAGE_TOKENS + 24
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert_gradients_close(found, expected)


def test_in_bfloat16_the_loss_is_that_of_the_padded_prefix(base: str) -> None:
    policies = [
        make_policy(base, train_skip_padding=skip, dtype="bfloat16") for skip in (False, True)
    ]
    batch = make_batch_of(policies[0], [5, 17, 11], CAMERA)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected, loss = (second_step(policy, batch)[0] for policy in policies)

    assert loss == pytest.approx(expected, rel=1e-2)


def test_in_the_warm_up_the_vlm_sees_no_padding_either(base: str) -> None:
    whole, policy = (
        make_policy(base, train_skip_padding=skip, motion_warmup_steps=5).train()
        for skip in (False, True)
    )
    batch = make_batch_of(policy, [5, 17, 11], CAMERA)
    expected_loss, expected = joint_step(whole, batch)

    loss, found = joint_step(policy, batch)

    assert num_tokens(policy) == IMAGE_TOKENS + 24
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert_gradients_close(found, expected)


def test_without_a_motion_head_too(base: str) -> None:
    whole, policy = (
        make_motion_policy(
            base=base,
            cameras=CAMERAS,
            tokenizer_max_length=96,
            motion_target="none",
            train_skip_padding=skip,
        )
        for skip in (False, True)
    )
    batch = make_batch_of(policy, [5, 17, 11], CAMERA)

    assert second_step(policy, batch)[0] == pytest.approx(second_step(whole, batch)[0], rel=1e-5)
    assert num_tokens(policy) == IMAGE_TOKENS + 24


def test_the_first_step_that_learns_all_has_prompts_of_full_length(base: str) -> None:
    """It takes the memory of the longest prompt; a camera that is not there never comes."""
    policy = make_policy(base, train_skip_padding=True, motion_warmup_steps=1).train()
    batch = make_batch_of(policy, [5, 17, 11], CAMERA)
    found = []
    for _ in range(3):
        policy.forward(dict(batch))
        found.append(num_tokens(policy))
        policy.update()

    assert found == [IMAGE_TOKENS + length for length in (24, 96, 24)]


@pytest.mark.parametrize(
    ("lengths", "cameras", "expected"),
    [
        ([1, 1], CAMERAS, 2 * IMAGE_TOKENS + 8),
        ([8, 3], CAMERAS, 2 * IMAGE_TOKENS + 8),
        ([9, 3], (WRIST,), IMAGE_TOKENS + 16),
        ([3, 96], CAMERAS, 2 * IMAGE_TOKENS + 96),
    ],
)
def test_what_is_there_stays(lengths: list[int], cameras: tuple[str, ...], expected: int) -> None:
    policy = make_policy("pi0", train_skip_padding=True).train()
    policy.model._has_seen_whole_prompts = True

    policy.forward(make_batch_of(policy, lengths, *cameras))

    assert num_tokens(policy) == expected


def test_a_length_that_is_no_multiple_of_eight_stays() -> None:
    mask = torch.ones(2, 12, dtype=torch.bool)
    camera = torch.ones(2, dtype=torch.bool)

    *_, tokens, token_mask = padding.without_padding([mask], [camera], mask.long(), mask)

    assert tokens.shape == token_mask.shape == (2, 12)


def test_a_camera_that_one_sample_has_stays() -> None:
    mask = torch.ones(2, 8, dtype=torch.bool)
    masks = [torch.tensor([False, False]), torch.tensor([False, True])]

    images, image_masks, *_ = padding.without_padding(
        [torch.zeros(1), torch.ones(1)], masks, mask.long(), mask
    )

    assert [image.item() for image in images] == [1.0]
    assert image_masks == masks[1:]


def test_whoever_compiles_gets_one_shape() -> None:
    policy = make_policy("pi0", train_skip_padding=True).train()
    batch = make_batch_of(policy, [5, 17], CAMERA)
    images, masks = policy._preprocess_images(batch)
    prompt = [batch[f"observation.language.{name}"] for name in ("tokens", "attention_mask")]
    compiled = torch.compile(policy.model.embed_prefix, backend="eager", fullgraph=True)

    _, pad_mask, _ = compiled(images, masks, *prompt)

    assert pad_mask.shape == (2, 2 * IMAGE_TOKENS + 96)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("compiled", [False, True])
def test_by_default_padding_is_left_out_on_cuda_in_training(device: str, compiled: bool) -> None:
    config = make_policy("pi0").config
    config.compile_model = compiled
    where = torch.device(device)

    assert config.skips_padding(where, training=True) == (device == "cuda" and not compiled)
    assert not config.skips_padding(where, training=False)


# --- acting and imagining ---


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_actions_are_those_of_the_padded_prefix(base: str, attention: str) -> None:
    stock = make_stock_policy(base=base, cameras=CAMERAS, tokenizer_max_length=96).eval()
    policy = make_policy(base, inference_skip_padding=True, inference_attention=attention).eval()
    batch = make_batch_of(policy, [5, 17], CAMERA, motion=False)
    noise = torch.randn(2, policy.config.chunk_size, policy.config.max_action_dim)
    expected = stock.predict_action_chunk(dict(batch), noise=noise)

    found = policy.predict_action_chunk(dict(batch), noise=noise)

    assert num_tokens(policy) == IMAGE_TOKENS + 24
    assert_close(found, expected, 1e-5)


def test_real_time_chunks_are_those_of_the_padded_prefix(base: str) -> None:
    rtc = RTCConfig(enabled=True, execution_horizon=3, max_guidance_weight=5.0)
    settings = {"cameras": CAMERAS, "tokenizer_max_length": 96, "rtc_config": rtc}
    stock = make_stock_policy(base=base, **settings).eval()
    policy = make_policy(base, inference_skip_padding=True, rtc_config=rtc).eval()
    batch = make_batch_of(policy, [5], CAMERA, motion=False)
    request = {
        "noise": torch.randn(1, policy.config.chunk_size, policy.config.max_action_dim),
        "inference_delay": 1,
        "prev_chunk_left_over": torch.randn(1, 3, 8),
        "execution_horizon": 3,
    }
    expected = stock.predict_action_chunk(dict(batch), **request)

    assert_close(policy.predict_action_chunk(dict(batch), **request), expected, 1e-5)


def test_imagined_motion_is_that_of_the_padded_prefix(base: str) -> None:
    views = {"motion_camera": list(CAMERAS)}
    whole, policy = (
        make_policy(base, inference_skip_padding=skip, **views).eval() for skip in (False, True)
    )
    batch = make_batch_of(policy, [5, 17], *CAMERAS, motion=False)
    noise = torch.randn(2, *policy.config.motion_sample_shape)

    expected, found = (
        each.predict_motion_latent(batch, num_steps=3, noise=noise) for each in (whole, policy)
    )

    assert_close(found, expected, 1e-5)


def test_training_without_padding_leaves_actions_to_the_bit(base: str) -> None:
    stock = make_stock_policy(base=base, cameras=CAMERAS, tokenizer_max_length=96).eval()
    policy = make_policy(base, train_skip_padding=True).eval()
    batch = make_batch_of(policy, [5, 17], CAMERA, motion=False)
    noise = torch.randn(2, policy.config.chunk_size, policy.config.max_action_dim)

    expected = stock.predict_action_chunk(dict(batch), noise=noise)

    assert torch.equal(policy.predict_action_chunk(dict(batch), noise=noise), expected)
