import dataclasses
import errno
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from lerobot.processor import TokenizerProcessorStep
from safetensors.torch import load_file
from tiny import (
    BASES,
    make_batch,
    make_motion_policy,
    make_stats,
    save_adapters,
    save_full_size_checkpoint,
    save_stock_checkpoint,
)

from lerobot_motion.checkpoints.export_card import export_card
from lerobot_motion.checkpoints.loading import MOTION_HEAD_PREFIX, CheckpointSource
from lerobot_motion.joint import export as export_module
from lerobot_motion.joint.backbone import replaced, tiny_backbone
from lerobot_motion.joint.export import Export, export_checkpoint, stock_config, stock_steps
from lerobot_motion.training.train_run import TrainRun

WEIGHTS = "model.safetensors"
on_both_bases = pytest.mark.parametrize("base", sorted(BASES), indirect=True)


@pytest.fixture(scope="module")
def checkpoint(base: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of ours; never written to."""
    path = tmp_path_factory.mktemp("export") / "checkpoint"
    save_full_size_checkpoint(path, base)
    return path


def export(checkpoint: Path | str, output: Path, **options: Any) -> Export:
    return export_checkpoint(CheckpointSource(str(checkpoint)), output, **options)


def copied(checkpoint: Path, target: Path) -> Path:
    shutil.copytree(checkpoint, target)
    return target


def edit_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


# --- what is written ---


@on_both_bases
def test_the_weights_are_all_but_the_heads(base: str, checkpoint: Path, tmp_path: Path) -> None:
    exported = export(checkpoint, tmp_path / "out")

    before, after = load_file(checkpoint / WEIGHTS), load_file(tmp_path / "out" / WEIGHTS)
    assert set(after) == {key for key in before if not key.startswith(MOTION_HEAD_PREFIX)}
    assert all(torch.equal(value, before[key]) for key, value in after.items())
    num_dropped = len(before) - len(after)
    assert num_dropped > 0
    assert exported == Export(tmp_path / "out", base, len(after), num_dropped)


@on_both_bases
def test_the_configuration_is_the_stock_policys(
    base: str, checkpoint: Path, tmp_path: Path
) -> None:
    """LeRobot would refuse a field that it does not know."""
    export(checkpoint, tmp_path / "out", repo_id="user/name")
    config_class = BASES[base].policy.config_class

    stored = json.loads((tmp_path / "out/config.json").read_text())
    config = config_class.from_pretrained(tmp_path / "out")

    fields = {field.name for field in dataclasses.fields(config_class)}
    assert set(stored) == fields | {"type"}
    assert type(config) is config_class
    before = json.loads((checkpoint / "config.json").read_text())
    assert {k for k in fields if stored[k] != before[k]} == {"repo_id"}
    assert config.repo_id == "user/name"


@on_both_bases
@pytest.mark.parametrize("rename_map", [{}, {"observation.cam": "observation.images.top"}])
def test_the_processors_are_byte_for_byte_the_stock_policys(
    base: str, rename_map: dict[str, str], tmp_path: Path
) -> None:
    """But for the tokenizer's name, which LeRobot's factory does not let one choose."""
    policy = save_full_size_checkpoint(tmp_path / "c", base, train_from_scratch=True)
    policy.config.enter_run(TrainRun(num_steps=9, rename_map=rename_map))
    for pipeline in BASES[base].make_motion_processors(policy.config, make_stats()):
        pipeline.save_pretrained(tmp_path / "c")
    name = policy.config.tokenizer_name

    def make_step(tokenizer_name: str, **padding: Any) -> TokenizerProcessorStep:
        return TokenizerProcessorStep(tokenizer_name=name, **padding)

    fields = {f.name for f in dataclasses.fields(BASES[base].policy.config_class)}
    settings = {key: getattr(policy.config, key) for key in fields}
    with replaced(BASES[base].processing, TokenizerProcessorStep=make_step):
        stock = BASES[base].make_processors(
            BASES[base].policy.config_class(**settings), make_stats()
        )
    stock[0].steps[0].rename_map = rename_map
    for pipeline in stock:
        pipeline.save_pretrained(tmp_path / "stock")

    export(tmp_path / "c", tmp_path / "out")

    names = {path.name for path in (tmp_path / "stock").iterdir()}
    others = {"config.json", WEIGHTS, "README.md"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names | others
    for name in names:
        found, expected = (tmp_path / place / name for place in ("out", "stock"))
        if name.endswith(".json"):
            assert json.loads(found.read_text()) == json.loads(expected.read_text())
        else:
            assert found.read_bytes() == expected.read_bytes()


def test_a_checkpoint_without_a_head_is_exported_too(tmp_path: Path) -> None:
    save_full_size_checkpoint(tmp_path / "c", load_motion_head=False)

    exported = export(tmp_path / "c", tmp_path / "out")

    assert exported.num_dropped == 0
    assert exported.num_tensors == len(load_file(tmp_path / "c" / WEIGHTS))


@on_both_bases
def test_a_checkpoint_without_a_target_is_exported_too(base: str, tmp_path: Path) -> None:
    save_full_size_checkpoint(tmp_path / "c", base, motion_target="none")

    exported = export(tmp_path / "c", tmp_path / "out")

    before, after = (load_file(tmp_path / place / WEIGHTS) for place in ("c", "out"))
    assert exported.num_dropped == 0
    assert set(after) == set(before)
    assert all(torch.equal(value, before[key]) for key, value in after.items())
    pre, post = (f"policy_{name}processor.json" for name in ("pre", "post"))
    for name in (pre, post):
        saved, left = (json.loads((tmp_path / place / name).read_text()) for place in ("c", "out"))
        assert left == saved
    card = (tmp_path / "out/README.md").read_text()
    assert f"\n# {base}\n" in card
    assert f"trained as `motion_{base}` with\n`motion_target=none`" in card


def test_the_card_names_another_target(tmp_path: Path) -> None:
    save_full_size_checkpoint(tmp_path / "c", motion_target="future_image")

    export(tmp_path / "c", tmp_path / "out")

    card = (tmp_path / "out/README.md").read_text()
    assert "# pi0, trained jointly with future images" in card
    assert "joint learning of\nactions and future images, [arXiv" in card


def test_the_card_says_what_it_was(checkpoint: Path, tmp_path: Path) -> None:
    export(checkpoint, tmp_path / "out")

    card = (tmp_path / "out/README.md").read_text()
    assert f"exported by `lerobot-motion-export` from `{checkpoint.name}` (local)." in card
    assert "It was trained for 0 optimizer steps as `motion_pi0`" in card
    assert "horizon of\n4 frames on `observation.images.top`" in card
    data = ModelCard(card).data
    assert (data.license, data.library_name, data.pipeline_tag) == (
        "apache-2.0",
        "lerobot",
        "robotics",
    )
    assert data.tags == ["lerobot", "motion-image-diffusion", "pi0", "robotics"]
    assert data.base_model is None


def test_the_card_names_the_repository_it_was_made_from() -> None:
    config = {
        "type": "motion_pi0",
        "motion_target": "flow_image",
        "motion_horizon": 30,
        "motion_camera": "observation.images.top",
        "license": "mit",
        "tags": ["cubes"],
    }
    source = CheckpointSource("user/motion", revision="v2")

    card = ModelCard(export_card(config, "pi0", source, torch.tensor(30000)))

    assert (card.data.base_model, card.data.license) == ("user/motion", "mit")
    assert "cubes" in card.data.tags
    assert "from `user/motion` at revision `v2`.\nIt was trained for 30,000 optimizer" in card.text


def test_directories_on_the_way_are_made(checkpoint: Path, tmp_path: Path) -> None:
    export(checkpoint, tmp_path / "a/b/out")

    assert [path.name for path in (tmp_path / "a/b").iterdir()] == ["out"]


def test_nothing_of_the_training_run_is_left_to_be_overwritten() -> None:
    config = {"type": "motion_pi0", "repo_id": "user/motion", "pretrained_path": "lerobot/pi0_base"}

    stock = stock_config({**config, "use_peft": True, "chunk_size": 7, "motion_horizon": 3}, "pi0")

    assert stock == {
        "type": "pi0",
        "chunk_size": 7,
        "repo_id": None,
        "pretrained_path": None,
        "use_peft": False,
    }


@pytest.mark.parametrize(
    ("names", "kept"),
    [
        (["device_processor", "motion_target_processor", "b"], ["device_processor", "b"]),
        (
            ["device_processor", "motion_target_processor", "b", "device_processor"],
            [*"b", "device_processor"],
        ),
        (["motion_target_processor", "device_processor"], ["device_processor"]),
        (["device_processor", "b"], ["device_processor", "b"]),
    ],
)
def test_the_target_goes_with_the_device_step_that_it_brought(
    names: list[str], kept: list[str]
) -> None:
    steps = [{"registry_name": name, "config": {}} for name in names]

    assert [step["registry_name"] for step in stock_steps(steps)] == kept


# --- tokenizers ---


def test_a_tokenizer_of_this_machine_is_warned_of(
    checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        export(checkpoint, tmp_path / "out")

    assert "The tokenizer is the local directory" in caplog.text


def test_another_tokenizer_can_be_named(
    checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        export(checkpoint, tmp_path / "out", tokenizer_name="user/tokenizer")

    steps = json.loads((tmp_path / "out/policy_preprocessor.json").read_text())["steps"]
    (step,) = [s for s in steps if s["registry_name"] == "tokenizer_processor"]
    assert step["config"]["tokenizer_name"] == "user/tokenizer"
    assert caplog.text == ""


# --- what cannot be exported ---


def test_a_checkpoint_that_is_not_there(tmp_path: Path) -> None:
    message = r"checkpoint \S+/none: there is no such local directory, and config.json could not be"
    with pytest.raises(FileNotFoundError, match=message):
        export(tmp_path / "none", tmp_path / "out")


@on_both_bases
def test_lerobots_own_checkpoint_needs_no_export(base: str, tmp_path: Path) -> None:
    save_stock_checkpoint(tmp_path / "c", base=base)

    message = (
        rf"c holds a policy of type '{base}'; expected one of \['motion_pi0', 'motion_pi05'\]. "
        "Only these need an export"
    )
    with pytest.raises(ValueError, match=message):
        export(tmp_path / "c", tmp_path / "out")


@pytest.mark.parametrize("kind", ["empty directory", "file", "checkpoint"])
def test_what_exists_is_not_touched(checkpoint: Path, tmp_path: Path, kind: str) -> None:
    output = tmp_path / "out"
    if kind == "file":
        output.write_text("mine")
    else:
        output.mkdir()
    if kind == "checkpoint":
        (output / "config.json").write_text("mine")

    with pytest.raises(FileExistsError, match=rf"output: {output} exists; an export never overwri"):
        export(checkpoint, output)

    assert [p.read_text() for p in tmp_path.rglob("*") if p.is_file()] == ["mine"] * (
        kind != "empty directory"
    )


def test_a_place_that_cannot_be_written_to(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"output: cannot write to \S+/file \(File exists\). Name a"):
        export(checkpoint, tmp_path / "file/out")

    def refuse(self: Path, **options: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(OSError, match=r"output: cannot write to \S+ \(Permission denied\). Name a"):
        export(checkpoint, tmp_path / "out")


def test_a_place_that_cannot_be_written_to_is_known_before_weights_are_read(
    checkpoint: Path, tmp_path: Path
) -> None:
    path = copied(checkpoint, tmp_path / "c")
    (path / WEIGHTS).unlink()

    with pytest.raises(OSError, match="output: cannot write to"):
        export(path, path / "config.json" / "out")


def test_an_interrupted_export_leaves_nothing(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(state: dict[str, torch.Tensor], path: Path, **options: Any) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(export_module, "save_file", fail)

    with pytest.raises(OSError, match="No space left"):
        export(checkpoint, tmp_path / "out")

    assert list(tmp_path.iterdir()) == []


def test_truncated_weights_leave_nothing(checkpoint: Path, tmp_path: Path) -> None:
    path = copied(checkpoint, tmp_path / "c")
    (path / WEIGHTS).write_bytes((path / WEIGHTS).read_bytes()[:3000])

    with pytest.raises(
        OSError, match=rf"{WEIGHTS} is not a readable safetensors file .* truncated"
    ):
        export(path, tmp_path / "out")

    assert [p.name for p in tmp_path.iterdir()] == ["c"]


def test_a_tiny_backbone_is_refused(tmp_path: Path) -> None:
    make_motion_policy().save_pretrained(tmp_path / "c")

    with pytest.raises(ValueError, match=r"backbone=tiny cannot be exported: LeRobot has no netwo"):
        export(tmp_path / "c", tmp_path / "out")


@pytest.mark.parametrize("step", ["byte_tokenizer_processor", "class"])
def test_steps_of_other_packages_are_refused(checkpoint: Path, tmp_path: Path, step: str) -> None:
    path = copied(checkpoint, tmp_path / "c")
    file = path / "policy_preprocessor.json"
    entry = {"registry_name": step} if step != "class" else {"class": "elsewhere.Step"}
    steps = [*json.loads(file.read_text())["steps"], {**entry, "config": {}}]
    edit_json(file, steps=steps)

    with pytest.raises(ValueError, match=r"step (byte_tok\S+|elsewhere.Step) is not LeRobot's, so"):
        export(path, tmp_path / "out")


@pytest.mark.parametrize("name", ["policy_preprocessor.json", "policy_postprocessor.json", WEIGHTS])
def test_a_missing_file_is_named(checkpoint: Path, tmp_path: Path, name: str) -> None:
    path = copied(checkpoint, tmp_path / "c")
    (path / name).unlink()

    with pytest.raises(FileNotFoundError, match=rf"checkpoint \S+/c has no {name}; expected a dir"):
        export(path, tmp_path / "out")


# --- adapters ---


@on_both_bases
def test_adapters_are_merged(base: str, tmp_path: Path) -> None:
    adapted = save_adapters(tmp_path / "c", base, tmp_path / "base").eval()
    assert not (tmp_path / "c" / WEIGHTS).exists()

    with tiny_backbone(BASES[base].modeling):
        exported = export(tmp_path / "c", tmp_path / "out")
        config = BASES[base].policy.config_class.from_pretrained(tmp_path / "out")
        stock = BASES[base].policy(config)
    state = load_file(tmp_path / "out" / WEIGHTS)
    stock.load_state_dict(state, strict=True)

    assert exported.policy_type == base
    assert not config.use_peft
    batch = make_batch(stock)
    noise = torch.randn(2, 4, 8)
    actions = stock.eval().predict_action_chunk(batch, noise=noise)
    torch.testing.assert_close(actions, adapted.predict_action_chunk(batch, noise=noise))
    unadapted = load_file(tmp_path / "base" / WEIGHTS)
    assert any(not torch.equal(value, unadapted[key]) for key, value in state.items())


def test_adapters_need_what_they_were_trained_on(tmp_path: Path) -> None:
    save_adapters(tmp_path / "c", "pi0", tmp_path / "base")
    settings = tmp_path / "c/adapter_config.json"

    shutil.rmtree(tmp_path / "base")
    with pytest.raises(FileNotFoundError, match=r"checkpoint \S+/base: there is no such local dir"):
        export(tmp_path / "c", tmp_path / "out")

    edit_json(settings, base_model_name_or_path=None)
    with pytest.raises(ValueError, match=r"adapter_config.json names no base_model_name_or_path"):
        export(tmp_path / "c", tmp_path / "out")

    (tmp_path / "c/adapter_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"c has no adapter_model.safetensors"):
        export(tmp_path / "c", tmp_path / "out")
