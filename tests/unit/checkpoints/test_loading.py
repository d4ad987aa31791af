import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from lerobot.datasets import LeRobotDatasetMetadata
from lerobot.policies.factory import make_policy
from safetensors.torch import load_file, save_file
from tiny import (
    BASES,
    CAMERA,
    make_motion_config,
    make_motion_policy,
    make_stock_policy,
    save_stock_checkpoint,
    write_dataset,
)
from torch import Tensor

from lerobot_motion.checkpoints import loading
from lerobot_motion.checkpoints.loading import CheckpointSource
from lerobot_motion.motion_pi0.modeling_motion_pi0 import MotionPi0Policy
from lerobot_motion.training.train_run import TrainRun

WEIGHTS = "model.safetensors"
EMBEDDING = "model.paligemma_with_expert.paligemma.model.language_model.embed_tokens.weight"
LM_HEAD = "model.paligemma_with_expert.paligemma.lm_head.weight"
STATE_PROJ = "model.state_proj.weight"
CAM0 = "observation.images.cam0"

on_both_bases = pytest.mark.parametrize("base", sorted(BASES), indirect=True)


@pytest.fixture(scope="module")
def stock_checkpoint(base: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vanilla checkpoint; never written to."""
    path = tmp_path_factory.mktemp("stock")
    save_stock_checkpoint(path, seed=1, base=base)
    return path


@pytest.fixture(scope="module")
def own_checkpoint(base: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of ours after 7 steps; never written to."""
    path = tmp_path_factory.mktemp("own")
    policy = make_motion_policy(seed=2, base=base)
    policy.model.motion_head.num_updates += 7
    policy.save_pretrained(path)
    return path


def edited(source: Path, target: Path, edit: Callable[[dict[str, Tensor]], object]) -> Path:
    """A copy of a checkpoint with other tensors."""
    target.mkdir()
    (target / "config.json").write_bytes((source / "config.json").read_bytes())
    state = load_file(source / WEIGHTS)
    edit(state)
    save_file(state, target / WEIGHTS)
    return target


def load(path: Path | str, base: str = "pi0", **options: object) -> Any:
    """Load with a configuration of ours, as lerobot-train does."""
    config = make_motion_config(base=base)
    return BASES[base].motion_policy.from_pretrained(path, config=config, **options)


def assert_holds(policy: torch.nn.Module, path: Path) -> None:
    state = policy.state_dict()
    stored = load_file(path / WEIGHTS)
    assert stored
    assert [key for key, value in stored.items() if not torch.equal(state[key], value)] == []


# --- what loads ---


@on_both_bases
def test_a_warm_start_takes_every_tensor(base: str, stock_checkpoint: Path) -> None:
    policy = load(stock_checkpoint, base)

    assert_holds(policy, stock_checkpoint)
    assert not policy.training
    assert not policy.starts_random
    assert int(policy.model.motion_head.num_updates) == 0
    assert not policy.model.motion_head.transformer.proj_out.weight.any()


@on_both_bases
def test_our_own_checkpoint_is_restored_whole(base: str, own_checkpoint: Path) -> None:
    policy = BASES[base].motion_policy.from_pretrained(own_checkpoint)

    assert policy.state_dict().keys() == load_file(own_checkpoint / WEIGHTS).keys()
    assert_holds(policy, own_checkpoint)
    assert int(policy.model.motion_head.num_updates) == 7
    assert policy.config.motion_camera == CAMERA


def test_a_string_is_as_good_as_a_path(own_checkpoint: Path) -> None:
    assert_holds(load(str(own_checkpoint)), own_checkpoint)


def test_without_a_head_it_is_dropped(own_checkpoint: Path) -> None:
    config = make_motion_config(load_motion_head=False)

    policy = MotionPi0Policy.from_pretrained(own_checkpoint, config=config)

    state = load_file(own_checkpoint / WEIGHTS)
    assert policy.model.motion_head is None
    assert policy.state_dict().keys() == {k for k in state if "motion" not in k}
    assert all(torch.equal(state[key], value) for key, value in policy.state_dict().items())


def test_a_checkpoint_without_a_head_serves_without_one(tmp_path: Path) -> None:
    make_motion_policy(load_motion_head=False, seed=3).save_pretrained(tmp_path)

    policy = MotionPi0Policy.from_pretrained(tmp_path)

    assert not policy.config.load_motion_head
    assert_holds(policy, tmp_path)


@on_both_bases
def test_lm_head_stands_in_for_the_embedding(
    base: str, stock_checkpoint: Path, tmp_path: Path
) -> None:
    path = edited(stock_checkpoint, tmp_path / "c", lambda state: state.pop(EMBEDDING))

    policy = load(path, base)

    assert_holds(policy, path)
    assert torch.equal(policy.state_dict()[EMBEDDING], load_file(path / WEIGHTS)[LM_HEAD])


@on_both_bases
@pytest.mark.parametrize("drop", [None, EMBEDDING])
def test_keys_without_the_prefix_are_valid(
    base: str, stock_checkpoint: Path, tmp_path: Path, drop: str | None
) -> None:
    def edit(state: dict[str, Tensor]) -> None:
        state.pop(drop, None)
        for key in list(state):
            state[key.removeprefix("model.")] = state.pop(key)

    path = edited(stock_checkpoint, tmp_path / "c", edit)

    policy = load(path, base)

    state = policy.state_dict()
    stored = load_file(path / WEIGHTS)
    assert all(torch.equal(state[f"model.{key}"], value) for key, value in stored.items())


def test_weights_keep_the_policys_own_dtype(stock_checkpoint: Path, tmp_path: Path) -> None:
    def edit(state: dict[str, Tensor]) -> None:
        state.update({key: value.bfloat16() for key, value in state.items()})

    policy = load(edited(stock_checkpoint, tmp_path / "c", edit))

    assert {parameter.dtype for parameter in policy.parameters()} == {torch.float32}


@on_both_bases
def test_loading_does_not_warn(
    base: str,
    stock_checkpoint: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with caplog.at_level(logging.WARNING):
        load(stock_checkpoint, base)

    assert [r.getMessage() for r in caplog.records if "key" in r.getMessage()] == []
    assert capsys.readouterr().out == ""


def test_a_base_checkpoints_own_configuration_becomes_ours(tmp_path: Path) -> None:
    """Without a configuration the full-size network would be built: only the reading is tested."""
    stock = make_stock_policy(num_inference_steps=9, image_resolution=(224, 224))
    stock.save_pretrained(tmp_path)

    config = MotionPi0Policy._read_config(CheckpointSource(str(tmp_path)), is_base=True)

    assert config.type == "motion_pi0"
    assert config.num_inference_steps == 9
    assert config.motion_vae == "stabilityai/sdxl-vae"
    assert list(config.image_features) == [CAMERA]


# --- what a training run adds ---


def test_a_warm_started_run_builds_fresh_processors(stock_checkpoint: Path) -> None:
    config = make_motion_config(pretrained_path=stock_checkpoint)
    config.enter_run(TrainRun(num_steps=10))

    policy = MotionPi0Policy.from_pretrained(stock_checkpoint, config=config)

    assert policy.config.pretrained_path is None
    assert policy.config.release_checkpoint_path() == stock_checkpoint


def test_outside_a_run_the_path_stays(stock_checkpoint: Path) -> None:
    config = make_motion_config(pretrained_path=stock_checkpoint)

    policy = MotionPi0Policy.from_pretrained(stock_checkpoint, config=config)

    assert policy.config.pretrained_path == stock_checkpoint


@pytest.mark.parametrize("checkpoint", ["stock_checkpoint", "own_checkpoint"])
def test_a_warm_start_with_a_rename_map(
    checkpoint: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """lerobot-train --policy.type=motion_pi0 --policy.pretrained_path=… --rename_map=…."""
    path = request.getfixturevalue(checkpoint)
    meta = LeRobotDatasetMetadata("tests/tiny", root=write_dataset(tmp_path / "d", cameras=(CAM0,)))
    config = make_motion_config(
        pretrained_path=path, input_features={}, output_features={}, motion_camera=None
    )
    rename_map = {CAM0: CAMERA}
    config.enter_run(TrainRun(num_steps=10, rename_map=rename_map))

    policy = make_policy(config, ds_meta=meta, rename_map=rename_map)

    assert list(policy.config.image_features) == [CAMERA]
    assert policy.config.motion_camera == CAMERA


# --- what cannot be found ---


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    path = tmp_path / "none"

    message = rf"checkpoint {path}: there is no such local directory, and config\.json could not"
    with pytest.raises(FileNotFoundError, match=message):
        load(path)


@pytest.mark.parametrize("name", ["config.json", WEIGHTS])
def test_a_missing_file_is_named(stock_checkpoint: Path, tmp_path: Path, name: str) -> None:
    path = edited(stock_checkpoint, tmp_path / "c", lambda state: None)
    (path / name).unlink()

    with pytest.raises(FileNotFoundError, match=rf"checkpoint {path} has no {name}; expected a"):
        load(path)


def test_an_unreachable_hub_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between the Hub's retries

    message = r"checkpoint nobody/pi0: there is no such local directory, and config\.json could not"
    with pytest.raises(FileNotFoundError, match=message):
        load("nobody/pi0", cache_dir=tmp_path)


def test_offline_what_is_not_cached_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)

    with pytest.raises(FileNotFoundError, match=r"checkpoint nobody/pi0: .* at revision v2 \("):
        load("nobody/pi0", cache_dir=tmp_path, revision="v2")


def test_local_files_only_needs_no_hub(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"checkpoint nobody/pi0: .* at revision main \("):
        load("nobody/pi0", cache_dir=tmp_path, local_files_only=True)


def test_the_hubs_options_reach_every_download(
    stock_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def download(path: str, name: str, **options: object) -> str:
        calls.append((path, name, options))
        return str(stock_checkpoint / name)

    monkeypatch.setattr(loading, "hf_hub_download", download)
    options = {
        "revision": "v2",
        "token": "secret",
        "cache_dir": "cache",
        "force_download": True,
        "local_files_only": True,
    }

    policy = load("somebody/pi0", **options)

    assert_holds(policy, stock_checkpoint)
    names = ["config.json", WEIGHTS]
    assert calls == [("somebody/pi0", name, options) for name in names]


# --- what does not fit ---


@pytest.mark.parametrize("keep", [0, 6, 3000, -1])
def test_truncated_weights_are_refused(stock_checkpoint: Path, tmp_path: Path, keep: int) -> None:
    path = edited(stock_checkpoint, tmp_path / "c", lambda state: None)
    (path / WEIGHTS).write_bytes((path / WEIGHTS).read_bytes()[:keep])

    message = rf"checkpoint {path}: .*{WEIGHTS} is not a readable safetensors file .* truncated"
    with pytest.raises(OSError, match=message):
        load(path)


@pytest.mark.parametrize("key", [STATE_PROJ, LM_HEAD, EMBEDDING])
def test_a_missing_tensor_is_named(stock_checkpoint: Path, tmp_path: Path, key: str) -> None:
    def edit(state: dict[str, Tensor]) -> None:
        del state[key]
        if key == EMBEDDING:
            del state[LM_HEAD]

    path = edited(stock_checkpoint, tmp_path / "c", edit)

    with pytest.raises(ValueError, match=rf"checkpoint {path} does not fit .* missing \(.*{key}"):
        load(path)


def test_an_unexpected_tensor_is_named(stock_checkpoint: Path, tmp_path: Path) -> None:
    extra = {"model.value_head.weight": torch.zeros(2)}
    path = edited(stock_checkpoint, tmp_path / "c", lambda state: state.update(extra))

    message = r"does not fit the policy: 1 tensors unexpected \(model\.value_head\.weight\)\. Check"
    with pytest.raises(ValueError, match=message):
        load(path)


def test_a_tensor_of_another_shape_is_named(stock_checkpoint: Path, tmp_path: Path) -> None:
    other = {STATE_PROJ: torch.zeros(128, 9)}
    path = edited(stock_checkpoint, tmp_path / "c", lambda state: state.update(other))

    message = rf"1 tensors of another shape \({STATE_PROJ} \(128, 9\), expected \(128, 8\)\)"
    with pytest.raises(ValueError, match=message):
        load(path)


def test_nothing_is_loaded_if_something_does_not_fit(
    stock_checkpoint: Path, tmp_path: Path
) -> None:
    path = edited(stock_checkpoint, tmp_path / "c", lambda state: state.pop(STATE_PROJ))
    policy = make_motion_policy()
    before = {key: value.clone() for key, value in policy.state_dict().items()}

    with pytest.raises(ValueError, match="1 tensors missing"):
        loading.load_weights(policy, CheckpointSource(str(path)), is_base=True)

    assert all(torch.equal(before[key], value) for key, value in policy.state_dict().items())


def test_of_many_tensors_five_are_named(stock_checkpoint: Path, tmp_path: Path) -> None:
    extra = {f"model.extra.{i}": torch.zeros(1) for i in range(9)}
    path = edited(stock_checkpoint, tmp_path / "c", lambda state: state.update(extra))

    message = r"9 tensors unexpected \(model\.extra\.0; .*model\.extra\.4 and 4 more\)"
    with pytest.raises(ValueError, match=message):
        load(path)


def test_a_head_of_another_size_is_refused(own_checkpoint: Path) -> None:
    config = make_motion_config(motion_head_dim=32)

    with pytest.raises(ValueError, match=r"of another shape \(model\.motion_head\..*motion_head_d"):
        MotionPi0Policy.from_pretrained(own_checkpoint, config=config)


def test_our_own_checkpoint_must_have_its_whole_head(own_checkpoint: Path, tmp_path: Path) -> None:
    key = "model.motion_head.num_updates"
    path = edited(own_checkpoint, tmp_path / "c", lambda state: state.pop(key))

    with pytest.raises(ValueError, match=rf"1 tensors missing \({key}\)"):
        load(path)


def test_a_checkpoint_saved_without_its_head_says_so(tmp_path: Path) -> None:
    make_motion_policy(load_motion_head=False).save_pretrained(tmp_path)

    with pytest.raises(ValueError, match=r"It was saved without its motion head \(load_motion_he"):
        load(tmp_path)


def test_an_unexpected_tensor_is_refused_without_a_head_too(
    own_checkpoint: Path, tmp_path: Path
) -> None:
    extra = {"model.value_head.weight": torch.zeros(2)}
    path = edited(own_checkpoint, tmp_path / "c", lambda state: state.update(extra))
    config = make_motion_config(load_motion_head=False)

    with pytest.raises(ValueError, match=r"1 tensors unexpected \(model\.value_head\.weight\)"):
        MotionPi0Policy.from_pretrained(path, config=config)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"type": "act"}, r"holds a policy of type 'act'; expected one of \['motion_pi0', 'pi0'\]"),
        ({"type": "pi05"}, r"holds a policy of type 'pi05'; expected one of"),
        ({"model_type": "llama"}, r"holds a policy of type None; expected one of"),
        ([1, 2], r"holds a policy of type None; expected one of"),
    ],
)
def test_a_checkpoint_of_another_policy_is_refused(
    stock_checkpoint: Path, tmp_path: Path, content: object, message: str
) -> None:
    path = edited(stock_checkpoint, tmp_path / "c", lambda state: None)
    (path / "config.json").write_text(json.dumps(content))

    with pytest.raises(ValueError, match=rf"checkpoint {path} {message}"):
        load(path)


@on_both_bases
@pytest.mark.parametrize("checkpoint", ["stock_checkpoint", "own_checkpoint"])
def test_a_checkpoint_on_the_other_base_is_refused(
    base: str, checkpoint: str, request: pytest.FixtureRequest
) -> None:
    path = request.getfixturevalue(checkpoint)
    other = {"pi0": "pi05", "pi05": "pi0"}[base]
    found = base if checkpoint == "stock_checkpoint" else f"motion_{base}"

    message = (
        rf"checkpoint {path} holds a policy of type '{found}'; expected one of "
        rf"\['motion_{other}', '{other}'\]. Pass another checkpoint, or the --policy.type"
    )
    with pytest.raises(ValueError, match=message):
        load(path, other)


@pytest.mark.parametrize("base", ["pi05"], indirect=True)
def test_weights_on_the_other_base_do_not_fit(base: str, own_checkpoint: Path) -> None:
    """Whatever config.json says: pi0.5 has no state_proj, and norms that pi0 does not have."""
    policy = make_motion_policy(base="pi0")
    before = {key: value.clone() for key, value in policy.state_dict().items()}

    with pytest.raises(ValueError, match=r"does not fit the policy: .*missing \(.*unexpected \("):
        loading.load_weights(policy, CheckpointSource(str(own_checkpoint)), is_base=False)

    assert all(torch.equal(before[key], value) for key, value in policy.state_dict().items())


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00"])
def test_a_broken_configuration_is_refused(
    stock_checkpoint: Path, tmp_path: Path, content: bytes
) -> None:
    path = edited(stock_checkpoint, tmp_path / "c", lambda state: None)
    (path / "config.json").write_bytes(content)

    with pytest.raises(ValueError, match=rf"checkpoint {path}: .*config\.json is not valid JSON"):
        load(path)


def test_missing_processors_are_told_when_a_policy_is_served(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    policy = make_motion_policy()
    policy.save_pretrained(tmp_path)

    with caplog.at_level(logging.WARNING):
        type(policy).from_pretrained(tmp_path)

    for name in ("policy_preprocessor.json", "policy_postprocessor.json"):
        assert f"Checkpoint {tmp_path} has no {name}, so LeRobot's commands cannot" in caplog.text
