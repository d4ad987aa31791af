import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest
from tiny import make_motion_config
from training_runs import STATE_FILES, write_checkpoint

from lerobot_motion.training import resume_checks
from lerobot_motion.training.resume_checks import check_resumed, check_resumed_store


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "000004")


def test_the_same_settings_are_fine(checkpoint: Path, caplog: pytest.LogCaptureFixture) -> None:
    check_resumed(make_motion_config(), checkpoint)

    assert not caplog.records


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"motion_horizon": 8}, "motion_horizon is 4 in the checkpoint and 8 in this run"),
        (
            {"motion_camera": "observation.images.wrist"},
            "motion_camera is observation.images.top in the checkpoint and "
            "observation.images.wrist in this run",
        ),
        (
            {"motion_target": "future_image"},
            "motion_target is flow_image in the checkpoint and future_image in this run",
        ),
        (
            {"motion_target": "none"},
            "motion_target is flow_image in the checkpoint and none in this run",
        ),
        ({"motion_head_layers": 5}, "motion_head_layers is 2 in the checkpoint and 5 in this run"),
        ({"motion_head_dim": 128}, "motion_head_dim is 64 in the checkpoint and 128 in this run"),
        ({"motion_head_heads": 8}, "motion_head_heads is 4 in the checkpoint and 8 in this run"),
        (
            {"motion_vae": "flow", "motion_latent_shape": (3, 14, 14)},
            "motion_vae is pool in the checkpoint and flow in this run",
        ),
        (
            {"motion_latent_shape": (4, 14, 14)},
            "motion_latent_shape is [3, 14, 14] in the checkpoint and [4, 14, 14] in this run",
        ),
        (
            {"image_resolution": (224, 224), "motion_latent_shape": (3, 14, 14)},
            "image_resolution is [112, 112] in the checkpoint and [224, 224] in this run",
        ),
        (
            {"flow_max_magnitude": 32.0},
            "flow_max_magnitude is 64.0 in the checkpoint and 32.0 in this run",
        ),
        (
            {
                "flow_estimator": "raft_small",
                "image_resolution": (128, 128),
                "motion_latent_shape": (3, 14, 14),
            },
            "image_resolution is [112, 112] in the checkpoint and [128, 128] in this run; "
            "flow_estimator is dis in the checkpoint and raft_small in this run",
        ),
    ],
)
def test_another_head_or_target_is_refused(
    checkpoint: Path, settings: dict[str, Any], message: str
) -> None:
    advice = r" \(\S+000004\)\. A resumed run goes on with .* --policy.path=\S+pretrained_model "

    with pytest.raises(ValueError, match=f"resume: {re.escape(message)}{advice}"):
        check_resumed(make_motion_config(**settings), checkpoint)


@pytest.mark.parametrize(
    "settings",
    [
        {"motion_loss_weight": 0.1},
        {"motion_warmup_steps": 7},
        {"motion_latents": "auto"},
        {"tokenizer_name": "/elsewhere"},
        {"motion_latent_shape": None},
        {"motion_camera": None},
    ],
)
def test_the_rest_may_change(checkpoint: Path, settings: dict[str, Any]) -> None:
    config = make_motion_config()
    for name, value in settings.items():
        setattr(config, name, value)

    check_resumed(config, checkpoint)


def test_without_a_head_its_settings_do_not_matter(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "1", motion_target="none")

    check_resumed(make_motion_config(motion_target="none", motion_horizon=9), checkpoint)
    with pytest.raises(ValueError, match="motion_target is none in the checkpoint and flow_image"):
        check_resumed(make_motion_config(), checkpoint)


def test_without_flow_its_settings_do_not_matter(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "1", motion_target="future_image")

    check_resumed(
        make_motion_config(motion_target="future_image", flow_max_magnitude=1.0), checkpoint
    )


def test_the_vae_may_have_moved(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = {"pool": "1", "/new/place": "1", "/another": "2", "/gone": None}
    monkeypatch.setattr(resume_checks, "latent_codec_sha256", hashes.get)
    config = make_motion_config()

    config.motion_vae = "/new/place"
    check_resumed(config, checkpoint)
    for other in ("/another", "/gone"):
        config.motion_vae = other
        with pytest.raises(ValueError, match=f"motion_vae is pool in the checkpoint and {other}"):
            check_resumed(config, checkpoint)


def test_rates_that_have_no_effect_are_said(
    checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        check_resumed(make_motion_config(optimizer_lr=0.5), checkpoint)

    assert "resume: optimizer_lr=0.5 has no effect; the optimizer's state" in caplog.text
    assert "has the rate 2.5e-05" in caplog.text


def test_a_rate_of_the_heads_own_can_neither_come_nor_go(tmp_path: Path) -> None:
    without, with_rate = tmp_path / "1", tmp_path / "2"
    write_checkpoint(without)
    write_checkpoint(with_rate, motion_head_lr=1e-3)

    with pytest.raises(ValueError, match=r"motion_head_lr is None in the checkpoint and 0.001 in"):
        check_resumed(make_motion_config(motion_head_lr=1e-3), without)
    with pytest.raises(ValueError, match=r"motion_head_lr is 0.001 in the checkpoint and None in"):
        check_resumed(make_motion_config(), with_rate)
    check_resumed(make_motion_config(motion_head_lr=2e-3), with_rate)


@pytest.mark.parametrize("name", STATE_FILES)
def test_a_checkpoint_that_was_not_saved_to_its_end_is_refused(checkpoint: Path, name: str) -> None:
    (checkpoint / "training_state" / name).unlink()

    with pytest.raises(FileNotFoundError, match=rf"training_state lacks {name}; a run that is"):
        check_resumed(make_motion_config(), checkpoint)


@pytest.mark.parametrize("content", [None, "{"])
def test_a_checkpoint_without_settings_is_refused(checkpoint: Path, content: str | None) -> None:
    path = checkpoint / "pretrained_model" / "config.json"
    path.unlink()
    if content is not None:
        path.write_text(content)

    with pytest.raises(ValueError, match=r"resume: \S+config.json is no readable configuration"):
        check_resumed(make_motion_config(), checkpoint)


def test_a_checkpoint_of_an_older_version_may_lack_settings(checkpoint: Path) -> None:
    path = checkpoint / "pretrained_model" / "config.json"
    settings = json.loads(path.read_text())
    del settings["motion_target"]
    path.write_text(json.dumps(settings))

    check_resumed(make_motion_config(), checkpoint)


def test_a_store_of_the_same_flow_is_fine() -> None:
    check_resumed_store(make_motion_config(), Path("store"), "dis")
    check_resumed_store(make_motion_config(motion_target="future_image"), Path("store"), None)


def test_a_store_of_another_flow_is_refused() -> None:
    message = (
        "resume: flow_estimator is dis in the checkpoint and raft_large in the latent store store. "
    )
    with pytest.raises(ValueError, match=message):
        check_resumed_store(make_motion_config(), Path("store"), "raft_large")
