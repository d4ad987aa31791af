"""Processors: the stock policy's, with the motion target among them."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from lerobot.policies.factory import make_pre_post_processors
from lerobot.processor import (
    DeviceProcessorStep,
    RelativeActionsProcessorStep,
    TokenizerProcessorStep,
)
from tiny import (
    BASES,
    CAMERA,
    make_dataset_batch,
    make_motion_config,
    make_stats,
    make_stock_policy,
    make_stock_processors,
    shared_file,
)

from lerobot_motion.steps import MOTION_LATENT, MOTION_VALID, ByteTokenizerStep, MotionTargetStep
from lerobot_motion.training.train_run import TrainRun

WRIST = "observation.images.wrist"
CAMERAS = (CAMERA, WRIST)
OURS_ONLY = {"load_motion_head", "motion_target"}
WITHOUT_A_HEAD = [{"load_motion_head": False}, {"motion_target": "none"}]


def make_processors(config: Any, stats: dict[str, Any] | None = None) -> tuple[Any, Any]:
    """Our pre- and postprocessor."""
    return BASES[config.type.removeprefix("motion_")].make_motion_processors(config, stats)


def make_pair(base: str, **settings: Any) -> tuple[Any, Any]:
    """Pre- and postprocessor of the stock policy and of ours."""
    ours = make_motion_config(CAMERAS, base, **settings)
    settings = {k: v for k, v in settings.items() if k not in OURS_ONLY}
    stock = make_stock_policy(cameras=CAMERAS, base=base, **settings).config
    return make_stock_processors(stock, make_stats()), make_processors(ours, make_stats())


def shifted_stats(by: float) -> dict[str, dict[str, torch.Tensor]]:
    """Statistics of values that are larger."""
    return {
        key: {name: v if name == "std" else v + by for name, v in stats.items()}
        for key, stats in make_stats().items()
    }


def stock_steps_of(pipeline: Any, base: str) -> list[Any]:
    """The steps of our preprocessor but for those that the motion target brings."""
    num_added = {"pi0": 1, "pi05": 2}[base]
    steps = list(pipeline.steps)
    end = [type(step) for step in steps].index(MotionTargetStep) + 1
    return steps[: end - num_added] + steps[end:]


def first_frames(batch: dict[str, Any]) -> dict[str, Any]:
    """What the stock policy's data loader gives of the same samples."""
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
def test_a_training_batch_is_the_stock_policys_with_a_target(
    base: str, use_relative_actions: bool, past: tuple[bool, bool]
) -> None:
    settings = {"use_relative_actions": use_relative_actions, "relative_exclude_joints": []}
    # Relative actions subtract the state: as many joints as actions.
    (stock, _), (ours, _) = make_pair(base, **settings)
    batch = make_dataset_batch(cameras=CAMERAS, past_the_end=past)

    result = ours(batch)

    latent, valid = result.pop(MOTION_LATENT), result.pop(MOTION_VALID)
    assert latent.shape == (2, 3, 14, 14)
    assert valid.tolist() == [not p for p in past]
    assert_same(result, stock(first_frames(batch)))


@pytest.mark.parametrize("settings", [{}, {"motion_target": "future_image"}, *WITHOUT_A_HEAD])
def test_an_evaluation_batch_is_the_stock_policys(base: str, settings: dict[str, Any]) -> None:
    (stock, _), (ours, _) = make_pair(base, **settings)
    batch = make_dataset_batch(cameras=CAMERAS, stacked=False)

    assert_same(ours(batch), stock(batch))


def test_a_single_observation_is_the_stock_policys(base: str) -> None:
    """As a robot gives it: without a batch dimension."""
    (stock, _), (ours, _) = make_pair(base)
    batch = make_dataset_batch(cameras=CAMERAS, stacked=False)
    single = {key: value[0] for key, value in batch.items()}

    result = ours(single)

    assert result[CAMERA].shape == (1, 3, 48, 64)
    assert_same(result, stock(single))


def test_actions_are_unnormalized_as_in_the_stock_policy(base: str) -> None:
    (_, stock), (_, ours) = make_pair(base)
    actions = torch.randn(2, 5)

    assert torch.equal(ours(actions), stock(actions))
    assert not torch.equal(ours(actions), actions)


def test_the_steps_are_the_stock_policys_with_the_target_before_relative_actions(base: str) -> None:
    (stock_pre, stock_post), (ours_pre, ours_post) = make_pair(base)

    types = [type(step) for step in ours_pre.steps]
    position = types.index(MotionTargetStep)

    # pi0.5 moves to the device at the end alone; the target is made on it.
    assert DeviceProcessorStep in types[:position]
    expected = [type(step) for step in stock_pre.steps]
    assert [type(step) for step in stock_steps_of(ours_pre, base)] == expected
    assert types[position + 1] is RelativeActionsProcessorStep
    assert [type(step) for step in ours_post.steps] == [type(step) for step in stock_post.steps]
    assert ours_pre.name == stock_pre.name
    assert ours_post.name == stock_post.name


@pytest.mark.parametrize("settings", WITHOUT_A_HEAD)
def test_without_a_head_the_steps_are_the_stock_policys(
    base: str, settings: dict[str, Any]
) -> None:
    (stock, _), (ours, _) = make_pair(base, **settings)

    assert [type(step) for step in ours.steps] == [type(step) for step in stock.steps]
    for step, expected in zip(ours.steps, stock.steps, strict=True):
        assert step.get_config() == expected.get_config()


def test_without_a_target_a_training_batch_is_the_stock_policys(base: str) -> None:
    (stock, _), (ours, _) = make_pair(base, motion_target="none")
    batch = first_frames(make_dataset_batch(cameras=CAMERAS))

    assert_same(ours(batch), stock(batch))


def test_without_a_target_no_flags_are_renamed(base: str) -> None:
    config = make_motion_config(base=base, motion_target="none", train_from_scratch=True)
    config.enter_run(TrainRun(num_steps=9, rename_map={"observation.cam": CAMERA}))

    assert make_processors(config)[0].steps[0].rename_map == {"observation.cam": CAMERA}


def test_every_step_has_the_stock_policys_settings(base: str) -> None:
    (stock_pre, stock_post), (ours_pre, ours_post) = make_pair(base)

    ours = [*stock_steps_of(ours_pre, base), *ours_post.steps]
    for step, expected in zip(ours, [*stock_pre.steps, *stock_post.steps], strict=True):
        assert step.get_config() == expected.get_config()


def test_relative_and_absolute_actions_share_their_state(base: str) -> None:
    _, (pre, post) = make_pair(base, use_relative_actions=True)

    relative = next(s for s in pre.steps if isinstance(s, RelativeActionsProcessorStep))

    assert post.steps[1].relative_step is relative


# --- tokenizers ---


def test_paligemmas_tokenizer_is_used_where_it_is_named(base: str) -> None:
    path = str(shared_file("tokenizers/paligemma"))
    pre, _ = make_processors(make_motion_config(base=base, tokenizer_name=path))

    step = next(s for s in pre.steps if isinstance(s, TokenizerProcessorStep))
    tokens = pre(make_dataset_batch(stacked=False))["observation.language.tokens"]

    assert type(step) is TokenizerProcessorStep
    assert step.tokenizer_name == path
    prompt = step.input_tokenizer.decode(tokens[0], skip_special_tokens=True)
    expected = {
        "pi0": r"push the square\n",
        "pi05": r"Task: push the square, State:( -?\d+){6};\nAction: ",
    }
    assert re.fullmatch(expected[base], prompt)


def test_a_tokenizer_that_cannot_be_loaded_says_what_to_do(base: str, tmp_path: Path) -> None:
    config = make_motion_config(base=base, tokenizer_name=str(tmp_path / "none"))

    message = r"tokenizer_name: the tokenizer '.*none' could not be loaded .*PaliGemma's is gated"
    with pytest.raises(OSError, match=message):
        make_processors(config)


# --- saving, overriding, resuming ---


def test_saved_processors_load_and_give_the_same(base: str, tmp_path: Path) -> None:
    _, (pre, post) = make_pair(base)
    pre.save_pretrained(tmp_path)
    post.save_pretrained(tmp_path)
    config = make_motion_config(CAMERAS, base)

    loaded_pre, loaded_post = make_pre_post_processors(config, pretrained_path=str(tmp_path))

    batch = make_dataset_batch(cameras=CAMERAS)
    assert_same(loaded_pre(dict(batch)), pre(dict(batch)))
    actions = torch.randn(2, 5)
    assert torch.equal(loaded_post(actions), post(actions))


def test_lerobots_commands_can_override_what_they_override(base: str, tmp_path: Path) -> None:
    _, (pre, post) = make_pair(base)
    pre.save_pretrained(tmp_path)
    post.save_pretrained(tmp_path)

    loaded, _ = make_pre_post_processors(
        make_motion_config(CAMERAS, base),
        pretrained_path=str(tmp_path),
        preprocessor_overrides={
            "device_processor": {"device": "cpu", "float_dtype": "float64"},
            "normalizer_processor": {"stats": {}},
            "rename_observations_processor": {"rename_map": {"a": "b"}},
        },
        postprocessor_overrides={"unnormalizer_processor": {"stats": {}}},
    )

    assert loaded.steps[0].rename_map == {"a": "b"}
    moves = [step for step in loaded.steps if isinstance(step, DeviceProcessorStep)]
    assert [step.float_dtype for step in moves] == ["float64"] * {"pi0": 1, "pi05": 2}[base]


def test_quantiles_scale_what_pi05_sees() -> None:
    """From the 1st to the 99th percentile to [-1, 1]; the prompt tells the bins of 256."""
    (pre, _), stats = make_pair("pi05")[1], make_stats()["observation.state"]
    batch = make_dataset_batch(cameras=CAMERAS)
    batch["observation.state"][:, 0] = stats["q01"]
    batch["observation.state"][0, 0, :2] = stats["q99"][:2] - 1e-4

    result = pre(batch)

    assert result["observation.state"][1].tolist() == pytest.approx([-1.0] * 6, abs=1e-6)
    assert result["task"][0] == "Task: push the square, State: 255 255 0 0 0 0;\nAction: "


def test_the_factory_of_lerobot_finds_ours(base: str) -> None:
    pre, _ = make_pre_post_processors(make_motion_config(base=base), dataset_stats=make_stats())

    assert any(isinstance(step, MotionTargetStep) for step in pre.steps)
    assert any(isinstance(step, ByteTokenizerStep) for step in pre.steps)


def test_the_runs_rename_map_reaches_step_and_statistics(base: str) -> None:
    config = make_motion_config(base=base)
    config.enter_run(TrainRun(num_steps=9, rename_map={"observation.cam": CAMERA, "a": "action"}))
    stats = {"observation.state": make_stats()["observation.state"], "a": make_stats()["action"]}

    pre, _ = make_processors(config, stats)

    batch = make_dataset_batch()
    renamed = {key.replace(CAMERA, "observation.cam"): value for key, value in batch.items()}
    result = pre(renamed)
    expected = make_processors(make_motion_config(base=base), make_stats())[0](batch)
    assert_same(result, expected)


def test_a_resumed_run_keeps_its_statistics_and_takes_the_runs_settings(
    base: str, tmp_path: Path
) -> None:
    _, (pre, post) = make_pair(base)
    pre.save_pretrained(tmp_path)
    post.save_pretrained(tmp_path)
    config = make_motion_config(CAMERAS, base, pretrained_path=tmp_path, flow_max_magnitude=7.0)
    config.enter_run(TrainRun(num_steps=9, resume=True, rename_map={"x": "y"}))
    config.hide_checkpoint_path()

    resumed, resumed_post = make_processors(config, shifted_stats(by=9))

    step = next(s for s in resumed.steps if isinstance(s, MotionTargetStep))
    assert step.max_magnitude == 7.0
    assert step._kept == {}, "each target is made once, as in a new run"
    assert resumed.steps[0].rename_map["x"] == "y"
    assert config.pretrained_path == tmp_path
    actions = torch.randn(2, 5)
    assert torch.equal(resumed_post(actions), post(actions))


def test_a_new_run_from_a_checkpoint_takes_the_datasets_statistics(
    base: str, tmp_path: Path
) -> None:
    _, (pre, post) = make_pair(base)
    pre.save_pretrained(tmp_path)
    post.save_pretrained(tmp_path)
    config = make_motion_config(CAMERAS, base, pretrained_path=tmp_path)
    config.enter_run(TrainRun(num_steps=9))
    config.hide_checkpoint_path()

    _, new_post = make_processors(config, shifted_stats(by=9))

    actions = torch.randn(2, 5)
    torch.testing.assert_close(new_post(actions), post(actions) + 9)
    assert config.pretrained_path == tmp_path


def test_targets_cannot_be_made_before_camera_and_latents_are_settled(base: str) -> None:
    config = make_motion_config(base=base)
    config.motion_camera = None

    with pytest.raises(ValueError, match="motion_camera and motion_latent_shape must be settled"):
        make_processors(config)
