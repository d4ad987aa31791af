import json
from pathlib import Path

import pytest
from lerobot.configs.default import DatasetConfig
from lerobot.configs.train import TrainPipelineConfig
from tiny import make_motion_config

from lerobot_motion.checkpoints.origin import checkpoint_label, is_hub_id, origin_of


def make_run(pretrained_path: Path | str | None, *, resume: bool = False) -> TrainPipelineConfig:
    policy = make_motion_config()
    policy.pretrained_path = pretrained_path
    return TrainPipelineConfig(
        dataset=DatasetConfig(repo_id="user/data"), policy=policy, resume=resume
    )


def save_run(directory: Path, pretrained_path: Path | str | None, *, resume: bool) -> Path:
    """A checkpoint's train_config.json, as far as it is read."""
    directory.mkdir(parents=True)
    path = None if pretrained_path is None else str(pretrained_path)
    settings = {"policy": {"pretrained_path": path}, "resume": resume}
    (directory / "train_config.json").write_text(json.dumps(settings))
    return directory


def test_a_repository_is_told_from_a_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "user/local").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)

    assert is_hub_id("user/remote")
    assert not is_hub_id("user/local")
    assert not is_hub_id("remote")
    assert not is_hub_id(str(tmp_path / "absent"))


def test_a_label_holds_nothing_of_the_machine(tmp_path: Path) -> None:
    step = tmp_path / "my_run/checkpoints/000004/pretrained_model"
    step.mkdir(parents=True)
    last = tmp_path / "my_run/checkpoints/last"
    last.symlink_to("000004")

    assert checkpoint_label(str(step)) == "my_run/checkpoints/000004"
    assert checkpoint_label(str(last / "pretrained_model")) == "my_run/checkpoints/000004"
    assert checkpoint_label(str(tmp_path / "pi0_base")) == "pi0_base"
    assert checkpoint_label("user/remote") == "user/remote"


@pytest.mark.parametrize("path", ["lerobot/pi0_base", None])
def test_the_origin_is_what_the_run_was_given(path: str | None) -> None:
    assert origin_of(make_run(path)) == path


def test_nothing_is_known_without_a_run() -> None:
    assert origin_of(None) is None


@pytest.mark.parametrize("origin", ["lerobot/pi0_base", None])
def test_the_origin_of_a_run_that_was_resumed_twice(tmp_path: Path, origin: str | None) -> None:
    first = save_run(tmp_path / "first", origin, resume=False)
    second = save_run(tmp_path / "second", first, resume=True)

    assert origin_of(make_run(second, resume=True)) == origin
    # Not resumed: the run began with that checkpoint.
    assert origin_of(make_run(second)) == str(second)


@pytest.mark.parametrize("text", [None, "{", "{}", "[]"])
def test_the_trail_ends_where_nothing_is_noted(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "train_config.json").write_text(text)

    assert origin_of(make_run(tmp_path, resume=True)) == str(tmp_path)


def test_a_trail_that_leads_back_to_itself_ends(tmp_path: Path) -> None:
    directory = save_run(tmp_path / "last", tmp_path / "last", resume=True)

    assert origin_of(make_run(directory, resume=True)) == str(directory)
