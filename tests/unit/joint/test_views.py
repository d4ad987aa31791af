"""Several motion cameras: their names, the policy's losses and pictures, and what is refused."""

import json
import re
from pathlib import Path
from typing import Any

import draccus
import pytest
import torch
from lerobot.configs import PreTrainedConfig
from test_dataset_checks import make_meta
from tiny import (
    BASES,
    CAMERA,
    make_batch,
    make_motion_config,
    make_motion_policy,
    save_stock_checkpoint,
    wake_motion_head,
)
from training_runs import write_checkpoint

from lerobot_motion.checkpoints.card_tables import Training, policy_table
from lerobot_motion.checkpoints.export_card import export_card
from lerobot_motion.checkpoints.loading import CheckpointSource
from lerobot_motion.joint.dataset_checks import check_dataset
from lerobot_motion.models.latent_codec import load_latent_codec
from lerobot_motion.motion_pi0.configuration_motion_pi0 import MotionPi0Config
from lerobot_motion.training.resume_checks import check_resumed
from lerobot_motion.training.train_run import TrainRun

WRIST, EMPTY = "observation.images.wrist", "observation.images.empty_camera_0"
TWO = {"cameras": (CAMERA, WRIST), "motion_camera": [CAMERA, WRIST]}
WITH_EMPTY = {"motion_camera": [CAMERA, EMPTY], "empty_cameras": 1}

on_both_bases = pytest.mark.parametrize("base", sorted(BASES))


def make_views_policy(**settings: Any) -> Any:
    return wake_motion_head(make_motion_policy(**{**TWO, **settings}))


# --- names ---


@pytest.mark.parametrize(
    ("flag", "expected"),
    [
        (CAMERA, CAMERA),
        (f"[{CAMERA}]", CAMERA),
        (f"[{CAMERA},{WRIST}]", [CAMERA, WRIST]),
        (f"['{WRIST}', '{CAMERA}']", [WRIST, CAMERA]),
        (f"{CAMERA},{WRIST}", [CAMERA, WRIST]),
        (f"{CAMERA}, {WRIST}", [CAMERA, WRIST]),
        ("null", None),
    ],
)
def test_every_form_of_the_flag(flag: str, expected: list[str] | str | None) -> None:
    config = draccus.parse(
        MotionPi0Config, args=["--backbone=tiny", "--device=cpu", f"--motion_camera={flag}"]
    )

    assert config.motion_camera == expected


@pytest.mark.parametrize("flag", [f"[{WRIST},{CAMERA}]", f'["{WRIST}","{CAMERA}"]'])
def test_flags_that_change_a_checkpoint_have_the_same_forms(flag: str, tmp_path: Path) -> None:
    """LeRobot reads them in another way, as JSON."""
    make_motion_config(**TWO).save_pretrained(tmp_path)
    flags = [f"--motion_camera={flag}", "--motion_latents=[/a,/b]"]

    config = PreTrainedConfig.from_pretrained(tmp_path, cli_overrides=flags)

    assert config.motion_camera == [WRIST, CAMERA]
    assert config.motion_latents == ["/a", "/b"]


@pytest.mark.parametrize("camera", [CAMERA, [CAMERA, WRIST], None])
def test_a_saved_configuration_keeps_its_cameras(camera: Any, tmp_path: Path) -> None:
    make_motion_config((CAMERA, WRIST), motion_camera=camera).save_pretrained(tmp_path)

    assert json.loads((tmp_path / "config.json").read_text())["motion_camera"] == camera
    assert PreTrainedConfig.from_pretrained(tmp_path).motion_camera == camera


def test_one_view_has_the_settings_it_always_had() -> None:
    config = make_motion_config()

    assert config.motion_cameras == [CAMERA]
    assert config.motion_sample_shape == config.motion_latent_shape == (3, 14, 14)
    assert config.motion_target_settings["camera"] == CAMERA
    assert config.motion_target_settings["latents"] is None


@pytest.mark.parametrize(
    ("camera", "message"),
    [
        ([CAMERA, CAMERA], f"motion_camera must name each only once, got {CAMERA} repeatedly"),
        (f"{CAMERA},{WRIST},{CAMERA}", f"only once, got {CAMERA} repeatedly"),
        ([], r"motion_camera must be a name, or names separated by commas, got \[\]"),
        (f"{CAMERA},", "motion_camera must be a name, or names separated by commas, got"),
    ],
)
def test_names_that_cannot_be(camera: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_motion_config((CAMERA, WRIST), motion_camera=camera)


def test_a_path_of_one_store_may_have_a_comma() -> None:
    assert make_motion_config(motion_latents="/a,b").motion_latents == "/a,b"
    assert make_motion_config(**TWO, motion_latents="/a,/b").motion_latents == ["/a", "/b"]


# --- the dataset ---


def test_several_cameras_of_the_dataset_are_taken() -> None:
    config = make_motion_config(**TWO)

    check_dataset(config, make_meta(images=(CAMERA, WRIST)))

    assert config.motion_camera == [CAMERA, WRIST]


def test_a_camera_that_is_not_there_is_named_and_what_to_do() -> None:
    message = (
        rf"motion_camera must be one of \['{CAMERA}'\] \(names after --rename_map\), got "
        rf"'{WRIST}'\. .*name {EMPTY} in its stead, and pass --policy\.empty_cameras=1"
    )
    with pytest.raises(ValueError, match=message):
        check_dataset(make_motion_config(**TWO), make_meta(images=(CAMERA,)))


def test_an_empty_camera_keeps_the_place_of_one() -> None:
    config = make_motion_config(**WITH_EMPTY)

    check_dataset(config, make_meta(images=(CAMERA,)))

    assert config.seen_cameras == [CAMERA]
    assert config.absent_views == [1]


def test_an_empty_camera_must_be_one_of_the_policys() -> None:
    config = make_motion_config(**{**WITH_EMPTY, "empty_cameras": 0})

    with pytest.raises(ValueError, match=f"must be one of .*, got '{EMPTY}'"):
        check_dataset(config, make_meta(images=(CAMERA,)))


def test_empty_cameras_alone_teach_nothing() -> None:
    config = make_motion_config(motion_camera=EMPTY, empty_cameras=1)

    with pytest.raises(ValueError, match="motion_camera names empty cameras alone"):
        check_dataset(config, make_meta(images=(CAMERA,)))


def test_streamed_video_of_any_view_is_refused() -> None:
    config = make_motion_config(**TWO)
    config.enter_run(TrainRun(num_steps=10, streaming=True))

    with pytest.raises(ValueError, match=r"dataset\.streaming must be false"):
        check_dataset(config, make_meta(images=(CAMERA,), videos=(WRIST,)))


# --- losses ---


@on_both_bases
def test_a_step_of_training_reaches_every_view(base: str) -> None:
    policy = make_views_policy(base=base).train()

    loss, log = policy(make_batch(policy))
    loss.backward()

    assert loss.item() == pytest.approx(log["action_loss"] + log["motion_loss"], abs=1e-5)
    embedding = policy.model.motion_head.transformer.pos_embed.view_embed
    assert embedding.grad.any(dim=1).tolist() == [True, True]


def test_masked_views_count_as_zero_in_the_mean() -> None:
    policy = make_views_policy()

    def loss(valid: list[list[bool]]) -> torch.Tensor:
        torch.manual_seed(0)
        batch = make_batch(policy, valid=valid)
        return policy.eval()(batch, reduction="none")[0] - policy_action_loss(policy, valid)

    both = loss([[True, True], [True, True]])
    parts = loss([[True, False], [True, False]]), loss([[False, True], [False, True]])

    torch.testing.assert_close(parts[0] + parts[1], both, rtol=1e-4, atol=1e-5)
    assert (parts[0] > 0).all()
    assert torch.equal(loss([[False, False]] * 2), torch.zeros(2))


def policy_action_loss(policy: Any, valid: list[list[bool]]) -> torch.Tensor:
    """The action's part of the loss: that of a batch of which no view is valid."""
    torch.manual_seed(0)
    batch = make_batch(policy, valid=[[False, False] for _ in valid])
    return policy.eval()(batch, reduction="none")[0].detach()


@pytest.mark.parametrize("settings", [TWO, WITH_EMPTY])
def test_several_draws_of_noise_reach_every_view(settings: dict[str, Any]) -> None:
    policy = make_motion_policy(**settings, motion_samples_per_step=3)
    wake_motion_head(policy).train()
    seen = settings is TWO
    batch = make_batch(policy, valid=[[True, seen], [True, False]])
    batch.pop(EMPTY, None)

    loss, _ = policy(batch)
    loss.backward()

    assert loss.isfinite()
    embedding = policy.model.motion_head.transformer.pos_embed.view_embed
    # No loss and no attention reaches the view without a camera.
    assert embedding.grad.any(dim=1).tolist() == [True, seen]


# --- imagination ---


def test_one_image_for_every_view() -> None:
    policy = make_views_policy()
    batch = make_batch(policy, motion=False)
    noise = torch.randn(2, 2, 3, 14, 14)

    images = policy.predict_motion(batch, num_steps=2, noise=noise)

    assert images.shape == (2, 2, 3, 112, 112)
    latent = policy.predict_motion_latent(batch, num_steps=2, noise=noise)
    codec = load_latent_codec("pool", "cpu")
    assert torch.equal(images[:, 1], codec.decode(latent[:, 1]))
    with pytest.raises(ValueError, match=r"noise must have shape \(2, 2, 3, 14, 14\)"):
        policy.predict_motion(batch, noise=noise[:, 0])


def test_nothing_is_imagined_of_an_empty_camera() -> None:
    policy = wake_motion_head(make_motion_policy(**WITH_EMPTY))
    assert EMPTY in policy.config.image_features

    batch = make_batch(policy, motion=False)
    del batch[EMPTY]
    images = policy.predict_motion(batch, num_steps=2)

    assert images[:, 0].isfinite().all()
    assert images[:, 1].isnan().all()


@pytest.mark.parametrize("settings", [TWO, WITH_EMPTY])
def test_a_rollout_is_drawn_with_a_row_for_every_view(settings: dict[str, Any]) -> None:
    policy = make_views_policy(save_predicted_video=True, motion_camera=CAMERA)
    views = wake_motion_head(make_motion_policy(save_predicted_video=True, **settings))
    heights = []
    for one in (policy, views):
        one.reset()
        for step in range(5):
            batch = make_batch(one, 3, seed=step, motion=False)
            batch.pop(EMPTY, None)
            one.select_action(batch)
        video = one.decode_predicted_latents(torch.empty(0))
        heights.append(video.shape[1])
        assert video.shape[0] == 5

    # Three environments of one view; of two views two environments, of one and an empty one three.
    rows = {True: 4, False: 3}[settings is TWO]
    assert abs((heights[1] - heights[0]) - (rows - 3) * (224 + 24 + 8)) <= 1
    num_seen = len(views.config.seen_cameras)
    assert views.last_predicted_latents.shape == (3, 3, num_seen, 14, 14)
    assert views.last_predicted_latents.isfinite().all()


# --- checkpoints ---


@on_both_bases
def test_a_checkpoint_is_loaded_as_it_was(base: str, tmp_path: Path) -> None:
    policy = make_views_policy(base=base)
    policy.save_pretrained(tmp_path)

    loaded = BASES[base].motion_policy.from_pretrained(tmp_path)

    assert loaded.config.motion_camera == [CAMERA, WRIST]
    expected, found = policy.state_dict(), loaded.state_dict()
    assert list(found) == list(expected)
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_a_warm_start_has_fresh_views(tmp_path: Path) -> None:
    save_stock_checkpoint(tmp_path / "stock", cameras=(CAMERA, WRIST))

    policy = BASES["pi0"].motion_policy.from_pretrained(
        tmp_path / "stock", config=make_motion_config(**TWO)
    )

    assert policy.model.motion_head.num_views == 2


@pytest.mark.parametrize(("saved", "wanted"), [(CAMERA, [CAMERA, WRIST]), ([CAMERA, WRIST], WRIST)])
def test_a_head_of_another_number_of_views_is_refused(
    saved: Any, wanted: Any, tmp_path: Path
) -> None:
    make_motion_policy(**{**TWO, "motion_camera": saved}).save_pretrained(tmp_path)
    config = make_motion_config(**{**TWO, "motion_camera": wanted})
    found, expected = (len(x) if isinstance(x, list) else 1 for x in (saved, wanted))

    message = (
        f"checkpoint {tmp_path} does not fit the policy: the number of views that its motion head "
        f"predicts is {found}, and motion_camera names {expected}"
    )
    with pytest.raises(ValueError, match=message):
        BASES["pi0"].motion_policy.from_pretrained(tmp_path, config=config)


@pytest.mark.parametrize("camera", [CAMERA, [WRIST, CAMERA], [CAMERA, EMPTY]])
def test_a_resumed_run_keeps_its_views_and_their_order(camera: Any, tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "000004", **TWO)
    check_resumed(make_motion_config(**TWO), checkpoint)

    before = re.escape(f"resume: motion_camera is {[CAMERA, WRIST]} in the checkpoint and {camera}")
    with pytest.raises(ValueError, match=f"{before} in this run"):
        check_resumed(make_motion_config(**{**TWO, "motion_camera": camera}), checkpoint)


def test_cards_name_every_view() -> None:
    config = make_motion_config(**TWO)

    table = policy_table(config, Training(), None)
    card = export_card(
        {
            "type": "motion_pi0",
            "motion_target": "flow_image",
            "motion_horizon": 4,
            "motion_camera": [CAMERA, WRIST],
        },
        "pi0",
        CheckpointSource("/somewhere"),
        None,
    )

    assert f"| Motion cameras | `{CAMERA}`, `{WRIST}` |" in table
    assert f"frames on `{CAMERA}`, `{WRIST}`)" in card
    assert f"| Motion camera | `{CAMERA}` |" in policy_table(make_motion_config(), Training(), None)
