"""Processors: stock pi0's, with the motion target among them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lerobot.policies.factory import make_pre_post_processors
from lerobot.processor import (
    RelativeActionsProcessorStep,
    TokenizerProcessorStep,
)
from tiny import (
    CAMERA,
    make_dataset_batch,
    make_motion_config,
    make_stats,
    make_stock_policy,
    make_stock_processors,
    shared_file,
)

from lerobot_motion.joint.run import TrainRun
from lerobot_motion.motion_pi0.processor_motion_pi0 import make_motion_pi0_pre_post_processors
from lerobot_motion.steps import MOTION_LATENT, MOTION_VALID, ByteTokenizerStep, MotionTargetStep

WRIST = "observation.images.wrist"
CAMERAS = (CAMERA, WRIST)


def make_pair(**settings: Any) -> tuple[Any, Any]:
    """Pre- and postprocessor of stock pi0 and of ours."""
    ours = make_motion_config(CAMERAS, **settings)
    settings = {k: v for k, v in settings.items() if k not in {"load_motion_head"}}
    stock = make_stock_policy(cameras=CAMERAS, **settings).config
    return (
        make_stock_processors(stock, make_stats()),
        make_motion_pi0_pre_post_processors(ours, make_stats()),
    )


def first_frames(batch: dict[str, Any]) -> dict[str, Any]:
    """What stock pi0's data loader gives of the same samples."""
    return {
        key: value[:, 0] if key.startswith("observation.") else value
        for key, value in batch.items()
        if not (key.startswith("observation.") and key.endswith("_is_pad"))
    }


def assert_same(result: dict[str, Any], expected: dict[str, Any]) -> None:
    assert set(result) == set(expected)
    for key, value in expected.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(result[key], value), key
        else:
            assert result[key] == value, key


@pytest.mark.parametrize("use_relative_actions", [False, True])
@pytest.mark.parametrize("past", [(False, False), (True, False), (True, True)])
def test_a_training_batch_is_stock_pi0s_with_a_target(
    use_relative_actions: bool, past: tuple[bool, bool]
) -> None:
    settings = {"use_relative_actions": use_relative_actions, "relative_exclude_joints": []}
    # Relative actions subtract the state: as many joints as actions.
    (stock, _), (ours, _) = make_pair(**settings)
    batch = make_dataset_batch(cameras=CAMERAS, past_the_end=past)

    result = ours(batch)

    latent, valid = result.pop(MOTION_LATENT), result.pop(MOTION_VALID)
    assert latent.shape == (2, 3, 14, 14)
    assert valid.tolist() == [not p for p in past]
    assert_same(result, stock(first_frames(batch)))


@pytest.mark.parametrize("load_motion_head", [True, False])
def test_an_evaluation_batch_is_stock_pi0s(load_motion_head: bool) -> None:
    (stock, _), (ours, _) = make_pair(load_motion_head=load_motion_head)
    batch = make_dataset_batch(cameras=CAMERAS, stacked=False)

    assert_same(ours(batch), stock(batch))


def test_a_single_observation_is_stock_pi0s() -> None:
    """As a robot gives it: without a batch dimension."""
    (stock, _), (ours, _) = make_pair()
    batch = make_dataset_batch(cameras=CAMERAS, stacked=False)
    single = {key: value[0] for key, value in batch.items()}

    result = ours(single)

    assert result[CAMERA].shape == (1, 3, 48, 64)
    assert_same(result, stock(single))


def test_actions_are_unnormalized_as_in_stock_pi0() -> None:
    (_, stock), (_, ours) = make_pair()
    actions = torch.randn(2, 5)

    assert torch.equal(ours(actions), stock(actions))
    assert not torch.equal(ours(actions), actions)


def test_the_steps_are_stock_pi0s_with_the_target_before_relative_actions() -> None:
    (stock_pre, stock_post), (ours_pre, ours_post) = make_pair()

    types = [type(step) for step in ours_pre.steps]
    position = types.index(MotionTargetStep)

    assert types[:position] + types[position + 1 :] == [type(step) for step in stock_pre.steps]
    assert types[position + 1] is RelativeActionsProcessorStep
    assert [type(step) for step in ours_post.steps] == [type(step) for step in stock_post.steps]
    assert ours_pre.name == stock_pre.name
    assert ours_post.name == stock_post.name


def test_without_a_head_the_steps_are_stock_pi0s() -> None:
    (stock, _), (ours, _) = make_pair(load_motion_head=False)

    assert [type(step) for step in ours.steps] == [type(step) for step in stock.steps]


def test_every_step_has_stock_pi0s_settings() -> None:
    (stock_pre, stock_post), (ours_pre, ours_post) = make_pair()

    ours = [s for s in ours_pre.steps if not isinstance(s, MotionTargetStep)] + [*ours_post.steps]
    for step, expected in zip(ours, [*stock_pre.steps, *stock_post.steps], strict=True):
        assert step.get_config() == expected.get_config()


def test_relative_and_absolute_actions_share_their_state() -> None:
    _, (pre, post) = make_pair(use_relative_actions=True)

    relative = next(s for s in pre.steps if isinstance(s, RelativeActionsProcessorStep))

    assert post.steps[1].relative_step is relative


# --- tokenizers ---


def test_paligemmas_tokenizer_is_used_where_it_is_named() -> None:
    path = str(shared_file("tokenizers/paligemma"))
    pre, _ = make_motion_pi0_pre_post_processors(make_motion_config(tokenizer_name=path))

    step = next(s for s in pre.steps if isinstance(s, TokenizerProcessorStep))
    tokens = pre(make_dataset_batch(stacked=False))["observation.language.tokens"]

    assert type(step) is TokenizerProcessorStep
    assert step.tokenizer_name == path
    assert step.input_tokenizer.decode(tokens[0], skip_special_tokens=True) == "push the square\n"


def test_a_tokenizer_that_cannot_be_loaded_says_what_to_do(tmp_path: Path) -> None:
    config = make_motion_config(tokenizer_name=str(tmp_path / "none"))

    message = r"tokenizer_name: the tokenizer '.*none' could not be loaded .*PaliGemma's is gated"
    with pytest.raises(OSError, match=message):
        make_motion_pi0_pre_post_processors(config)


# --- saving, overriding, resuming ---


def test_saved_processors_load_and_give_the_same(tmp_path: Path) -> None:
    _, (pre, post) = make_pair()
    pre.save_pretrained(tmp_path)
    post.save_pretrained(tmp_path)
    config = make_motion_config(CAMERAS)

    loaded_pre, loaded_post = make_pre_post_processors(config, pretrained_path=str(tmp_path))

    batch = make_dataset_batch(cameras=CAMERAS)
    assert_same(loaded_pre(dict(batch)), pre(dict(batch)))
    actions = torch.randn(2, 5)
    assert torch.equal(loaded_post(actions), post(actions))


def test_lerobots_commands_can_override_what_they_override(tmp_path: Path) -> None:
    _, (pre, post) = make_pair()
    pre.save_pretrained(tmp_path)
    post.save_pretrained(tmp_path)

    loaded, _ = make_pre_post_processors(
        make_motion_config(CAMERAS),
        pretrained_path=str(tmp_path),
        preprocessor_overrides={
            "device_processor": {"device": "cpu"},
            "normalizer_processor": {"stats": {}},
            "rename_observations_processor": {"rename_map": {"a": "b"}},
        },
        postprocessor_overrides={"unnormalizer_processor": {"stats": {}}},
    )

    assert loaded.steps[0].rename_map == {"a": "b"}


def test_the_factory_of_lerobot_finds_ours() -> None:
    pre, _ = make_pre_post_processors(make_motion_config(), dataset_stats=make_stats())

    assert any(isinstance(step, MotionTargetStep) for step in pre.steps)
    assert any(isinstance(step, ByteTokenizerStep) for step in pre.steps)


def test_the_runs_rename_map_reaches_step_and_statistics() -> None:
    config = make_motion_config()
    config.enter_run(TrainRun(num_steps=9, rename_map={"observation.cam": CAMERA, "a": "action"}))
    stats = {"observation.state": make_stats()["observation.state"], "a": make_stats()["action"]}

    pre, _ = make_motion_pi0_pre_post_processors(config, stats)

    batch = make_dataset_batch()
    renamed = {key.replace(CAMERA, "observation.cam"): value for key, value in batch.items()}
    result = pre(renamed)
    expected = make_motion_pi0_pre_post_processors(make_motion_config(), make_stats())[0](batch)
    assert_same(result, expected)


def test_a_resumed_run_keeps_its_statistics_and_takes_the_runs_settings(tmp_path: Path) -> None:
    _, (pre, post) = make_pair()
    pre.save_pretrained(tmp_path)
    post.save_pretrained(tmp_path)
    config = make_motion_config(CAMERAS, pretrained_path=tmp_path, flow_max_magnitude=7.0)
    config.enter_run(TrainRun(num_steps=9, resume=True, rename_map={"x": "y"}))
    config.hide_checkpoint_path()
    others = {
        key: {"mean": value["mean"] + 9, "std": value["std"]} for key, value in make_stats().items()
    }

    resumed, resumed_post = make_motion_pi0_pre_post_processors(config, others)

    step = next(s for s in resumed.steps if isinstance(s, MotionTargetStep))
    assert step.max_magnitude == 7.0
    assert resumed.steps[0].rename_map["x"] == "y"
    assert config.pretrained_path == tmp_path
    actions = torch.randn(2, 5)
    assert torch.equal(resumed_post(actions), post(actions))


def test_a_new_run_from_a_checkpoint_takes_the_datasets_statistics(tmp_path: Path) -> None:
    _, (pre, post) = make_pair()
    pre.save_pretrained(tmp_path)
    post.save_pretrained(tmp_path)
    config = make_motion_config(CAMERAS, pretrained_path=tmp_path)
    config.enter_run(TrainRun(num_steps=9))
    config.hide_checkpoint_path()
    others = {
        key: {"mean": value["mean"] + 9, "std": value["std"]} for key, value in make_stats().items()
    }

    _, new_post = make_motion_pi0_pre_post_processors(config, others)

    actions = torch.randn(2, 5)
    torch.testing.assert_close(new_post(actions), post(actions) + 9)
    assert config.pretrained_path == tmp_path


def test_targets_cannot_be_made_before_camera_and_latents_are_settled() -> None:
    config = make_motion_config()
    config.motion_camera = None

    with pytest.raises(ValueError, match="motion_camera and motion_latent_shape must be settled"):
        make_motion_pi0_pre_post_processors(config)
