from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import BASES, CAMERA, make_batch, make_motion_policy, wake_motion_head, write_autoencoder
from torch import Tensor

on_both_bases = pytest.mark.parametrize("base", sorted(BASES))

NUM_STEPS = 10  # Chunks of 4: the third is cut short.


def roll_out(policy: Any, batch_size: int = 1) -> tuple[list[Tensor], list[Tensor]]:
    """Actions and collected latents of a rollout, as lerobot-eval's hook collects them."""
    policy.reset()
    torch.manual_seed(0)
    actions, latents = [], []
    for step in range(NUM_STEPS):
        batch = make_batch(policy, batch_size, seed=step, motion=False)
        with torch.inference_mode():
            actions.append(policy.select_action(batch))
        if policy.last_predicted_latents is not None:
            latents.append(policy.last_predicted_latents.detach().cpu())
            policy.last_predicted_latents = None
    return actions, latents


def make_imagining_policy(**settings: Any) -> Any:
    return wake_motion_head(make_motion_policy(save_predicted_video=True, **settings))


@on_both_bases
def test_actions_are_the_same_to_the_bit(base: str, tmp_path: Path) -> None:
    # A VAE is made with random weights before its own are loaded.
    settings = {"base": base, "motion_vae": str(write_autoencoder(tmp_path / "vae"))}
    expected, no_latents = roll_out(wake_motion_head(make_motion_policy(**settings)))

    actions, latents = roll_out(make_imagining_policy(**settings))

    assert no_latents == []
    assert len(latents) == NUM_STEPS
    assert all(torch.equal(a, b) for a, b in zip(actions, expected, strict=True))


def test_a_frame_for_every_step() -> None:
    policy = make_imagining_policy()

    _, latents = roll_out(policy)
    collected = torch.cat(latents, dim=2)  # As lerobot-eval does.
    video = policy.decode_predicted_latents(collected)

    assert collected.shape == (1, *policy.config.motion_latent_shape[:1], NUM_STEPS, 14, 14)
    # A chunk's imagination is that of its first step.
    assert torch.equal(collected[:, :, 0], collected[:, :, 3])
    assert not torch.equal(collected[:, :, 3], collected[:, :, 4])
    assert video.dtype == torch.uint8
    assert video.shape[0] == NUM_STEPS
    assert video.shape[3] == 3
    assert video.shape[1] % 2 == 0
    assert video.shape[2] % 2 == 0
    imagined = policy.predict_motion_latent(
        make_batch(policy, 1, seed=0, motion=False),
        noise=torch.randn(1, *policy.config.motion_latent_shape, generator=seeded()),
    )
    assert torch.allclose(imagined, collected[:, :, 0], atol=1e-5)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_the_first_environments_are_drawn() -> None:
    policy = make_imagining_policy()
    roll_out(policy, batch_size=1)
    alone = policy.decode_predicted_latents(torch.empty(0))
    roll_out(policy, batch_size=6)
    six = policy.decode_predicted_latents(torch.empty(0))

    added = six.shape[1] - alone.shape[1]
    assert added > 3 * 224
    assert added < 4 * 224
    assert six.shape[2] == alone.shape[2]


def test_shows_the_camera_as_it_is_now() -> None:
    policy = make_imagining_policy(image_resolution=(112, 112))
    roll_out(policy)
    batch = make_batch(policy, 1, seed=0, motion=False)
    policy.reset()
    for gray in (0.2, 0.6):
        batch[CAMERA] = torch.full_like(batch[CAMERA], gray)
        policy.select_action(batch)

    video = policy.decode_predicted_latents(torch.empty(0))

    # Middle of the first picture, enlarged: 8 px of margin, two lines of 24 px above.
    assert [int(frame[48 + 112, 8 + 112, 0]) for frame in video] == [51, 153]


def test_a_reset_forgets() -> None:
    policy = make_imagining_policy()
    roll_out(policy)
    policy.reset()

    with pytest.raises(ValueError, match="nothing was imagined since the last reset"):
        policy.decode_predicted_latents(torch.empty(0))


def test_draws_future_images_without_arrows_and_legend() -> None:
    flow, future = (
        make_imagining_policy(motion_target=target) for target in ("flow_image", "future_image")
    )
    heights = []
    for policy in (flow, future):
        roll_out(policy)
        heights.append(policy.decode_predicted_latents(torch.empty(0)).shape[1])

    assert heights[0] - heights[1] == 96  # The legend's wheel.


def test_a_missing_vae_is_said_before_the_rollout(tmp_path: Path) -> None:
    policy = make_imagining_policy(motion_vae=str(tmp_path), motion_latent_shape=(4, 14, 14))
    policy.reset()

    with pytest.raises(OSError, match="motion_vae: no VAE could be read from the local directory"):
        policy.select_action(make_batch(policy, 1, motion=False))


@pytest.mark.parametrize(
    ("settings", "cause"),
    [
        ({"load_motion_head": False}, "load_motion_head=false"),
        ({"motion_target": "none"}, "motion_target=none"),
    ],
)
def test_needs_a_motion_head(settings: dict[str, Any], cause: str) -> None:
    with pytest.raises(ValueError, match=f"needs the motion head, which {cause} leaves out"):
        make_motion_policy(save_predicted_video=True, **settings)
