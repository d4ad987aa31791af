import logging
import math
from pathlib import Path
from typing import Any

import pytest
from lerobot.configs import PreTrainedConfig
from safetensors.torch import save_file
from tiny import CAMERA, make_motion_config
from torchvision.models.optical_flow import raft_large, raft_small

from lerobot_motion.motion_pi0.configuration_motion_pi0 import MotionPi0Config
from lerobot_motion.motion_pi0.modeling_motion_pi0 import MotionPi0Policy
from lerobot_motion.training.train_run import TrainRun

# Too small for RAFT.
SMALL: dict[str, Any] = {"image_resolution": (112, 112)}


def test_defaults_of_the_full_size_policy() -> None:
    config = MotionPi0Config(device="cpu")

    assert config.type == "motion_pi0"
    assert config.backbone == "paligemma"
    assert config.motion_vae == "stabilityai/sdxl-vae"
    assert config.flow_estimator == "raft_large"
    assert config.flow_max_magnitude == 64.0
    assert config.tokenizer_name == "google/paligemma-3b-pt-224"
    assert config.motion_loss_weight == 1.0
    assert config.motion_warmup_steps == 0
    assert config.motion_horizon == config.chunk_size == 50
    head = (config.motion_head_layers, config.motion_head_heads, config.motion_head_dim)
    assert head == (6, 32, 2048)
    assert config.load_motion_head
    assert not config.train_from_scratch


def test_defaults_of_the_tiny_policy_need_no_files() -> None:
    config = MotionPi0Config(backbone="tiny", device="cpu")

    assert config.motion_vae == "pool"
    assert config.flow_estimator == "dis"
    assert config.tokenizer_name == "bytes"
    head = (config.motion_head_layers, config.motion_head_heads, config.motion_head_dim)
    assert head == (3, 4, 128)


@pytest.mark.parametrize("backbone", ["paligemma", "tiny"])
def test_what_is_given_overrides_the_defaults(backbone: str) -> None:
    given = {
        "motion_vae": "my/vae",
        "flow_estimator": "raft_small",
        "tokenizer_name": "my/tokenizer",
        "motion_head_layers": 5,
        "motion_head_heads": 3,
        "motion_head_dim": 96,
        "motion_horizon": 9,
    }

    config = MotionPi0Config(backbone=backbone, device="cpu", **given)

    assert {name: getattr(config, name) for name in given} == given


def test_the_horizon_follows_the_chunk() -> None:
    config = MotionPi0Config(device="cpu", chunk_size=20, n_action_steps=10)

    assert config.motion_horizon == 20


def test_a_configuration_survives_a_file(tmp_path: Any) -> None:
    config = make_motion_config(motion_horizon=3, motion_warmup_steps=5, motion_head_lr=1e-3)

    config.save_pretrained(tmp_path)
    loaded = PreTrainedConfig.from_pretrained(tmp_path)

    assert type(loaded) is MotionPi0Config
    assert tuple(loaded.motion_latent_shape) == (3, 14, 14)
    assert loaded.motion_head_lr == 1e-3
    assert (loaded.motion_horizon, loaded.motion_warmup_steps) == (3, 5)


# --- validation ---


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("backbone", "gemma", r"backbone must be one of \['paligemma', 'tiny'\], got 'gemma'\."),
        (
            "motion_target",
            "tracks",
            r"motion_target must be one of \('flow_image', 'future_image', 'none'\), got 'tracks'",
        ),
        ("motion_horizon", 0, r"motion_horizon must be at least 1, got 0\."),
        ("motion_horizon", -3, r"motion_horizon must be at least 1, got -3\."),
        ("motion_head_layers", 0, r"motion_head_layers must be at least 1, got 0\."),
        ("motion_head_heads", 0, r"motion_head_heads must be at least 1, got 0\."),
        ("motion_loss_weight", -0.5, r"motion_loss_weight must not be negative, got -0\.5\."),
        ("motion_warmup_steps", -1, r"motion_warmup_steps must not be negative, got -1\."),
        ("flow_max_magnitude", 0.0, r"flow_max_magnitude must be positive \(pixels\), got 0\.0\."),
        ("flow_max_magnitude", math.nan, r"flow_max_magnitude must be positive .* got nan\."),
        ("flow_max_magnitude", math.inf, r"flow_max_magnitude must be positive .* got inf\."),
        ("motion_head_lr", 0.0, r"motion_head_lr must be positive, got 0\.0\."),
        ("motion_head_dim", 0, r"must be a multiple of motion_head_heads, got 0 and 4\."),
        ("motion_head_dim", 130, r"must be a multiple of motion_head_heads, got 130 and 4\."),
        ("flow_estimator", "gmflow", r"flow_estimator must be one of \('raft_large', .*'gmflow'"),
    ],
)
def test_a_bad_value_is_refused(field: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MotionPi0Config(**{"backbone": "tiny", "device": "cpu", field: value})


def test_a_loss_weight_that_is_not_a_number_is_refused() -> None:
    with pytest.raises(ValueError, match="motion_loss_weight must not be negative"):
        MotionPi0Config(backbone="tiny", device="cpu", motion_loss_weight=math.nan)


@pytest.mark.parametrize("estimator", ["raft_large", "raft_small"])
@pytest.mark.parametrize("side", [120, 132])
def test_images_that_do_not_suit_raft_are_refused(estimator: str, side: int) -> None:
    message = (
        rf"{estimator} needs an image_resolution of at least 128 px a side, in multiples of 8, "
        rf"got {side}x{side}\."
    )
    with pytest.raises(ValueError, match=message):
        make_motion_config(flow_estimator=estimator, image_resolution=(side, side))


def test_dis_takes_small_images() -> None:
    config = make_motion_config(flow_estimator="dis", image_resolution=(112, 112))

    assert config.motion_latent_shape == (3, 14, 14)


def test_pi0s_own_validation_still_runs(caplog: pytest.LogCaptureFixture) -> None:
    message = r"n_action_steps \(8\) cannot be greater than chunk_size"
    with pytest.raises(ValueError, match=message) as caught:
        MotionPi0Config(device="cpu", chunk_size=4, n_action_steps=8)
    # LeRobot's parser keeps the reason to itself.
    assert caplog.messages == [str(caught.value)]


# --- what training asks of the dataset ---


def test_training_asks_for_now_and_the_horizon() -> None:
    assert make_motion_config(motion_horizon=7).observation_delta_indices == [0, 7]
    assert make_motion_config().action_delta_indices == [0, 1, 2, 3]


def test_without_a_head_no_future_frame_is_asked_for() -> None:
    assert make_motion_config(load_motion_head=False).observation_delta_indices is None


# --- other targets ---


def test_a_future_image_needs_both_frames_and_no_flow() -> None:
    """Neither a size that suits RAFT, nor its weights."""
    config = make_motion_config(
        motion_target="future_image", flow_estimator="raft_large", flow_weights="nowhere", **SMALL
    )

    config.enter_run(TrainRun(num_steps=10))

    assert config.has_motion_head
    assert not config.estimates_flow
    assert config.observation_delta_indices == [0, 4]
    assert config.motion_target_settings["motion_target"] == "future_image"


def test_without_a_target_there_is_no_head_and_no_future() -> None:
    config = make_motion_config(
        motion_target="none", flow_estimator="raft_large", flow_weights="nowhere", **SMALL
    )

    config.enter_run(TrainRun(num_steps=10))

    assert config.load_motion_head
    assert not config.has_motion_head
    assert not config.estimates_flow
    assert config.observation_delta_indices is None


@pytest.mark.parametrize("target", ["flow_image", "future_image", "none"])
def test_a_scale_of_flow_is_positive_whatever_is_learned(target: str) -> None:
    with pytest.raises(ValueError, match=r"flow_max_magnitude must be positive .* got -1\.0\."):
        make_motion_config(motion_target=target, flow_max_magnitude=-1.0)


def test_without_a_target_there_is_nothing_to_warm_up() -> None:
    message = (
        r"motion_warmup_steps must be 0 with motion_target=none, got 5: there is no motion head to "
        r"warm up\. Pass --policy\.motion_warmup_steps=0\."
    )
    with pytest.raises(ValueError, match=message):
        make_motion_config(motion_target="none", motion_warmup_steps=5)


def test_without_a_target_a_store_is_not_read(caplog: pytest.LogCaptureFixture) -> None:
    config = make_motion_config(motion_target="none", motion_latents="auto")

    with caplog.at_level(logging.WARNING):
        config.enter_run(TrainRun(num_steps=10))

    assert "motion_latents=auto is not read: motion_target=none." in caplog.text


@pytest.mark.parametrize("vae", ["pool", "flow"])
def test_codecs_of_motion_images_are_warned_of(vae: str, caplog: pytest.LogCaptureFixture) -> None:
    future, flow = (
        make_motion_config(motion_target=target, motion_vae=vae)
        for target in ("future_image", "flow_image")
    )

    with caplog.at_level(logging.WARNING):
        flow.enter_run(TrainRun(num_steps=10))
        assert "is made for motion images" not in caplog.text
        future.enter_run(TrainRun(num_steps=10))

    assert f"motion_vae={vae} is made for motion images" in caplog.text


def test_a_vae_of_natural_images_is_not_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    config = make_motion_config(
        motion_target="future_image", motion_vae="some/vae", motion_latent_shape=(4, 14, 14)
    )

    with caplog.at_level(logging.WARNING):
        config.enter_run(TrainRun(num_steps=10))

    assert "is made for motion images" not in caplog.text


def test_to_leave_out_the_head_is_still_for_serving() -> None:
    config = make_motion_config(motion_target="none", load_motion_head=False)

    with pytest.raises(ValueError, match=r"is for serving; .* or say --policy.motion_target=none"):
        config.enter_run(TrainRun(num_steps=10))


@pytest.mark.parametrize("target", ["future_image", "none"])
def test_the_target_survives_a_file(tmp_path: Any, target: str) -> None:
    make_motion_config(motion_target=target).save_pretrained(tmp_path)

    assert PreTrainedConfig.from_pretrained(tmp_path).motion_target == target


# --- the latents ---


def test_the_latent_shape_comes_from_the_vae() -> None:
    config = MotionPi0Config(backbone="tiny", device="cpu")
    assert config.motion_latent_shape is None

    config.settle_latent_shape()

    assert config.motion_latent_shape == (3, 28, 28)


def test_a_known_latent_shape_needs_no_vae() -> None:
    config = MotionPi0Config(device="cpu", motion_vae="nobody/vae", motion_latent_shape=(4, 28, 28))

    config.settle_latent_shape()

    assert config.motion_latent_shape == (4, 28, 28)


def test_a_run_that_makes_targets_compares_the_latent_shape_with_the_vae() -> None:
    config = make_motion_config(motion_vae="flow", motion_latent_shape=(3, 14, 14))
    config.settle_latent_shape()  # To serve: no VAE is asked.
    config.enter_run(TrainRun(num_steps=10))

    message = (
        r"motion_vae: the latents of flow have shape \(4, 14, 14\), but the motion head expects "
        r"\(3, 14, 14\) \(motion_latent_shape\), at an image_resolution of 112x112\. Use VAE and "
        r"resolution that the checkpoint was trained with; for a new motion head, leave motion_lat"
    )
    with pytest.raises(ValueError, match=message):
        MotionPi0Policy(config)


def test_a_run_from_a_checkpoint_of_the_same_vae_is_fine() -> None:
    config = make_motion_config(motion_latent_shape=(3, 14, 14))
    config.enter_run(TrainRun(num_steps=10))

    config.settle_latent_shape()

    assert config.motion_latent_shape == (3, 14, 14)


def test_a_run_from_a_store_needs_no_vae() -> None:
    config = make_motion_config(
        motion_vae="nobody/vae", motion_latent_shape=(4, 14, 14), motion_latents="some/store"
    )
    config.enter_run(TrainRun(num_steps=10))

    config.settle_latent_shape()

    assert config.motion_latent_shape == (4, 14, 14)


def test_settings_of_the_target_need_camera_and_latents() -> None:
    config = MotionPi0Config(backbone="tiny", device="cpu")
    message = r"motion_camera and motion_latent_shape must be settled .* got None and None"
    with pytest.raises(ValueError, match=message):
        _ = config.motion_target_settings

    config.settle_latent_shape()
    with pytest.raises(ValueError, match=r"must be settled .* got None and \(3, 28, 28\)"):
        _ = config.motion_target_settings

    config.settle_camera([CAMERA])
    assert config.motion_target_settings == {
        "camera": CAMERA,
        "flow_estimator": "dis",
        "flow_weights": None,
        "max_magnitude": 64.0,
        "vae": "pool",
        "latent_shape": [3, 28, 28],
        "image_resolution": [224, 224],
        "latents": None,
        "motion_target": "flow_image",
    }


# --- the run ---


@pytest.mark.parametrize("num_steps", [10, 5])
def test_a_warmup_as_long_as_the_run_warns(
    num_steps: int, caplog: pytest.LogCaptureFixture
) -> None:
    config = make_motion_config(motion_warmup_steps=10)

    with caplog.at_level(logging.WARNING):
        config.enter_run(TrainRun(num_steps=num_steps))

    assert f"motion_warmup_steps=10 is not shorter than the run (steps={num_steps})" in caplog.text


def test_a_warmup_shorter_than_the_run_does_not_warn(caplog: pytest.LogCaptureFixture) -> None:
    config = make_motion_config(motion_warmup_steps=10)
    run = TrainRun(num_steps=11)

    with caplog.at_level(logging.WARNING):
        config.enter_run(run)

    assert not [record for record in caplog.records if "motion" in record.name]
    assert config.train_run is run


def test_a_run_without_a_head_is_refused() -> None:
    config = make_motion_config(load_motion_head=False)

    with pytest.raises(ValueError, match="load_motion_head=false is for serving; a run without"):
        config.enter_run(TrainRun(num_steps=10))
    assert config.train_run is None


@pytest.fixture
def weights(tmp_path: Path) -> dict[str, Path]:
    """Files of weights: good ones of each RAFT, and cut ones."""
    paths = {name: tmp_path / f"{name}.safetensors" for name in ("raft_small", "raft_large", "cut")}
    save_file(raft_small(weights=None).state_dict(), paths["raft_small"])
    save_file(raft_large(weights=None).state_dict(), paths["raft_large"])
    paths["cut"].write_bytes(paths["raft_small"].read_bytes()[:100_000])
    return {**paths, "nowhere": tmp_path / "nowhere"}


@pytest.mark.parametrize(
    ("estimator", "held", "error", "message"),
    [
        ("raft_small", "nowhere", FileNotFoundError, "flow_weights: no file at .*nowhere"),
        ("raft_small", "cut", OSError, r"is not a readable safetensors file .* truncated"),
        ("raft_small", "raft_large", ValueError, "These are weights of raft_large: set flow_est"),
        ("dis", "raft_small", ValueError, r"dis has no weights, got .* Leave flow_weights out"),
    ],
)
def test_flow_weights_are_looked_at_when_the_run_begins(
    weights: dict[str, Path], estimator: str, held: str, error: type[Exception], message: str
) -> None:
    settings = {"flow_estimator": estimator, "image_resolution": (128, 128)}
    config = make_motion_config(**settings, flow_weights=str(weights[held]))

    with pytest.raises(error, match=message):
        config.enter_run(TrainRun(num_steps=10))
    assert config.train_run is None


def test_flow_weights_that_are_read_are_fine(weights: dict[str, Path]) -> None:
    config = make_motion_config(
        flow_estimator="raft_small",
        image_resolution=(128, 128),
        flow_weights=str(weights["raft_small"]),
    )

    config.enter_run(TrainRun(num_steps=10))


def test_with_a_store_flow_weights_are_not_read() -> None:
    config = make_motion_config(flow_weights="nowhere", motion_latents="some/store")

    config.enter_run(TrainRun(num_steps=10))


def test_the_run_is_not_saved(tmp_path: Any) -> None:
    config = make_motion_config()
    config.enter_run(TrainRun(num_steps=10))

    config.save_pretrained(tmp_path)

    assert "train_run" not in (tmp_path / "config.json").read_text()


def test_a_hidden_path_is_shown_where_it_is_needed() -> None:
    config = make_motion_config(pretrained_path="some/where")

    config.hide_checkpoint_path()
    assert config.pretrained_path is None
    with config.checkpoint_path_shown():
        assert config.pretrained_path == "some/where"
    assert config.pretrained_path is None

    assert config.release_checkpoint_path() == "some/where"
    assert config.pretrained_path == "some/where"
    assert config.release_checkpoint_path() is None
    with config.checkpoint_path_shown():
        assert config.pretrained_path == "some/where"
    assert config.pretrained_path == "some/where"


def test_a_checkpoint_draws_no_video_unasked(tmp_path: Path) -> None:
    """Whoever drives a robot with it would pay, and see nothing."""
    config = make_motion_config(save_predicted_video=True)

    config.save_pretrained(tmp_path)

    assert config.save_predicted_video
    assert not PreTrainedConfig.from_pretrained(tmp_path).save_predicted_video
