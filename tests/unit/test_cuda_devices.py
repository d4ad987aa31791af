"""Everything that runs on a GPU stays there: shown without one, by tensors that compute nothing."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from fake_gpu import GPU, Waits, fake_gpu, moved, needs_fake_gpu, on_gpu
from numpy.typing import NDArray
from tiny import (
    CAMERA,
    make_batch,
    make_motion_policy,
)
from torch import Tensor, nn
from torchvision.models.optical_flow import raft_small

from lerobot_motion import steps
from lerobot_motion.extraction import targets
from lerobot_motion.extraction.targets import Compute, TargetMaker
from lerobot_motion.flow.estimator import DisEstimator, FlowEstimator, RaftEstimator
from lerobot_motion.models.latent_codec import AutoencoderCodec, LatentCodec, load_latent_codec
from lerobot_motion.steps import MotionTargetStep
from lerobot_motion.training.optimizer import FusedAdamWConfig

pytestmark = needs_fake_gpu

CAMERAS = (CAMERA, "observation.images.wrist")
VIEWS = {"cameras": CAMERAS, "motion_camera": list(CAMERAS)}


@contextmanager
def policy_on_gpu(**settings: Any) -> Iterator[tuple[Any, dict[str, Tensor], Waits]]:
    """A tiny policy on the GPU, as lerobot-train has it, a batch, and what was waited for."""
    policy = make_motion_policy(**settings)
    batch = make_batch(policy)
    policy.config.device = "cuda"
    with (
        fake_gpu() as waits,
        patch("lerobot_motion.joint.attention.sdpa_problem", return_value=None),
    ):
        yield moved(policy), {name: on_gpu(value) for name, value in batch.items()}, waits


def bfloat16() -> Any:
    """As accelerate has it with dtype=bfloat16."""
    return torch.autocast("cuda", torch.bfloat16)


# --- training ---


@pytest.mark.parametrize("base", ["pi0", "pi05"])
@pytest.mark.parametrize(
    "settings",
    [
        {"train_attention": "eager"},
        {"train_attention": "auto", "gradient_checkpointing": True, "motion_samples_per_step": 4},
        {"dtype": "bfloat16", **VIEWS},
    ],
    ids=["eager", "sdpa", "views"],
)
def test_a_joint_step_stays_on_the_gpu(base: str, settings: dict[str, Any]) -> None:
    with policy_on_gpu(base=base, **settings) as (policy, batch, waits), bfloat16():
        loss, log = policy.train().forward(batch)

        assert (loss.device, loss.dtype) == (GPU, torch.float32)
        assert {"loss", "action_loss", "motion_loss"} <= set(log)
        # What is padding, and both losses, together. LeRobot's own code waits some more.
        assert waits.ours() == {"joint/padding.py": 1, "joint/policy.py": 1}


def test_a_warm_up_reads_its_counter_and_its_losses() -> None:
    with policy_on_gpu(motion_warmup_steps=5) as (policy, batch, waits), bfloat16():
        loss, _ = policy.train().forward(batch)

        assert loss.device == GPU
        assert waits.ours() == {"joint/padding.py": 1, "joint/policy.py": 2}


def test_the_optimizer_waits_for_nothing() -> None:
    with policy_on_gpu(dtype="bfloat16", motion_head_lr=1e-4) as (policy, _, waits):
        preset = policy.config.get_optimizer_preset()
        optimizer = preset.build(policy.get_optim_params())
        for parameter in policy.parameters():
            parameter.grad = torch.zeros_like(parameter)
        waits.ours()
        nn.utils.clip_grad_norm_(policy.parameters(), preset.grad_clip_norm)
        optimizer.step()
        policy.update()

        assert isinstance(preset, FusedAdamWConfig)
        moments = [state["exp_avg"].device for state in optimizer.state.values()]
        assert moments == [GPU] * len(list(policy.parameters()))
        assert waits.ours() == {}


def test_the_balance_of_the_losses_is_read_at_once() -> None:
    def gradients(_: Tensor, parameters: list[Tensor]) -> list[Tensor]:
        return [torch.zeros_like(parameter) for parameter in parameters]

    with (
        patch("lerobot_motion.joint.gradient_balance._gradients", gradients),
        policy_on_gpu(log_gradient_balance=True) as (policy, batch, waits),
        bfloat16(),
    ):
        _, log = policy.train().forward(batch)

        assert "gradient_cosine" in log
        assert waits.ours() == {
            "joint/padding.py": 1,
            "joint/policy.py": 1,
            "joint/gradient_balance.py": 3,
        }


def test_ranks_draw_apart_on_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lerobot_motion.training.ranks._has_several_ranks", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    with policy_on_gpu() as (policy, batch, _):
        assert policy.train().forward(batch)[0].device == GPU


# --- acting and imagining ---


@pytest.mark.parametrize("base", ["pi0", "pi05"])
@pytest.mark.parametrize(
    "settings", [{}, {"inference_attention": "sdpa", "inference_skip_padding": True, **VIEWS}]
)
def test_a_policy_acts_and_imagines_on_the_gpu(base: str, settings: dict[str, Any]) -> None:
    codec = load_latent_codec("pool")
    with (
        policy_on_gpu(base=base, save_predicted_video=True, **settings) as (policy, batch, waits),
        patch("lerobot_motion.joint.imagining.load_latent_codec", return_value=codec),
    ):
        policy.eval().reset()
        waits.ours()
        action = policy.select_action(batch)
        imagined = policy.predict_motion(batch, num_steps=2)

        assert (action.device, imagined.device) == (GPU, GPU)
        assert policy.last_predicted_latents.device == torch.device("cpu")


def test_a_policy_without_its_head_acts_on_the_gpu() -> None:
    with policy_on_gpu(load_motion_head=False) as (policy, batch, waits):
        assert policy.eval().select_action(batch).device == GPU
        assert waits.ours() == {}


# --- targets ---


def make_raft(precision: str = "float32") -> RaftEstimator:
    """RAFT-small, channels-last."""
    model = raft_small(weights=None).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return RaftEstimator(model, num_updates=2, precision=precision)


def make_codec(name: str) -> LatentCodec:
    """A codec in bfloat16, as on every GPU, and channels-last."""
    codec = copy.copy(load_latent_codec(name))
    if isinstance(codec, AutoencoderCodec):
        own = copy.deepcopy(codec.autoencoder).to(torch.bfloat16)
        codec.autoencoder = own.to(memory_format=torch.channels_last)
    return codec


def network_on_gpu(network: FlowEstimator | LatentCodec) -> Any:
    """An estimator or a codec whose weights, if it has any, are on the GPU."""
    for part in vars(network).values():
        if isinstance(part, nn.Module):
            moved(part)
    return network


def still_pair(_: DisEstimator, first: Tensor, second: Tensor) -> NDArray[np.float32]:
    """What DIS finds between two images on the CPU."""
    assert first.device == second.device == torch.device("cpu")
    return np.zeros((*first.shape[1:], 2), dtype=np.float32)


@pytest.mark.parametrize(("estimator", "codec"), [("raft_small", "flow"), ("dis", "pool")])
def test_targets_are_made_on_the_gpu(
    estimator: str, codec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    networks = [DisEstimator() if estimator == "dis" else make_raft(), make_codec(codec)]
    shape = networks[1].spec.latent_shape((128, 128))
    step = MotionTargetStep(CAMERA, estimator, None, 8.0, codec, list(shape), [128, 128])
    monkeypatch.setattr(DisEstimator, "_pair", still_pair)
    found = []
    with fake_gpu() as waits:
        for name, network in zip(("flow_estimator", "latent_codec"), networks, strict=True):
            on_device = network_on_gpu(network)
            monkeypatch.setattr(steps, f"load_{name}", lambda *_, network=on_device, **__: network)
        for num_samples in (2, 2, 4):
            step.keep_targets()
            frames = torch.zeros(num_samples, 2, 3, 96, 128, device=GPU)
            valid = torch.ones(num_samples, dtype=torch.bool, device=GPU)
            index = torch.zeros(num_samples, dtype=torch.long, device=GPU)
            waits.ours()
            for _ in ("made", "kept"):
                latent, is_valid = step._make_targets({CAMERA: frames}, CAMERA, valid, index)
                found.append(waits.ours())

        assert (latent.device, latent.dtype, is_valid.device) == (GPU, torch.float32, GPU)
        assert all(kept.device == torch.device("cpu") for kept in (step._kept or {}).values())
        # Made (the masks come to the GPU once), kept, and the same again for more samples.
        assert found[4:] == found[2:4]
        assert sum(found[2].values()) <= 12
        assert sum(found[3].values()) <= 6


@pytest.mark.parametrize(("precision", "codec"), [("bfloat16", "flow"), ("float32", "pool")])
def test_extraction_waits_for_raft_alone(
    precision: str, codec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = SimpleNamespace(
        motion_target="flow_image", image_resolution=(128, 128), flow_max_magnitude=8.0
    )
    compute = Compute(flow_weights=None, device="cuda:0", batch_size=2, num_workers=0)
    raft, encoder = make_raft(precision), make_codec(codec)
    monkeypatch.setattr(
        targets, "_content", lambda *_: torch.zeros(9, dtype=torch.long, device=GPU)
    )
    with fake_gpu() as waits:
        maker = TargetMaker(settings, compute)  # type: ignore[arg-type]
        vars(maker).update(estimator=network_on_gpu(raft), codec=network_on_gpu(encoder))
        frames = maker.prepare(torch.zeros(4, 3, 96, 128, dtype=torch.uint8))
        maker.make(frames[:2], frames[2:], (96, 128))  # the masks come to the GPU once
        waits.ours()
        found = maker.make(frames[:2], frames[2:], (96, 128))

        assert (found.latent.device, found.latent.dtype) == (GPU, torch.float16)
        assert found.finite.device == found.motion.histogram.device == GPU
        assert waits.ours() == {}
