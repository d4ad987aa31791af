import functools
from pathlib import Path
from types import SimpleNamespace

import pytest
from lerobot.configs.default import DatasetConfig
from lerobot.configs.train import TrainPipelineConfig
from tiny import make_motion_config

from lerobot_motion.training import exact_resume
from lerobot_motion.training.run import install_run_hook
from lerobot_motion.training.train_run import TrainRun


@pytest.fixture(autouse=True)
def entered(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The runs for which the training script is prepared: notes, the script stays as it is."""
    runs: list[object] = []
    monkeypatch.setattr(exact_resume, "enter_exact_run", runs.append)
    return runs


@pytest.fixture
def validated(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """LeRobot's validation replaced by one that takes notes; the hook is not installed yet."""
    calls: list[object] = []
    monkeypatch.setattr(TrainPipelineConfig, "validate", lambda self: calls.append(self))
    return calls


def make_train_config(policy: object, **settings: object) -> TrainPipelineConfig:
    return TrainPipelineConfig(
        dataset=DatasetConfig(repo_id="tests/tiny", streaming=True), policy=policy, **settings
    )


def test_the_policy_sees_the_run(validated: list[object]) -> None:
    install_run_hook()
    policy = make_motion_config()
    config = make_train_config(policy, steps=123, log_freq=7, rename_map={"a": "b"}, resume=True)

    config.validate()

    assert validated == [config]
    assert policy.train_run == TrainRun(
        num_steps=123, log_freq=7, rename_map={"a": "b"}, resume=True, streaming=True
    )


def test_the_hook_is_installed_once(validated: list[object]) -> None:
    install_run_hook()
    installed = TrainPipelineConfig.validate

    install_run_hook()

    assert TrainPipelineConfig.validate is installed
    make_train_config(make_motion_config()).validate()
    assert len(validated) == 1


@pytest.mark.usefixtures("validated")
@pytest.mark.parametrize(("rank", "times"), [("0", 1), ("1", 0)])
def test_of_all_ranks_one_is_told_what_to_mind(
    rank: str, times: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("RANK", rank)
    install_run_hook()

    make_train_config(make_motion_config(train_expert_only=True)).validate()

    assert caplog.text.count("train_expert_only=true freezes the VLM") == times


@pytest.mark.parametrize("policy", [None, SimpleNamespace(type="act")])
def test_other_policies_are_left_alone(
    validated: list[object], entered: list[object], policy: object
) -> None:
    install_run_hook()

    make_train_config(policy).validate()

    assert len(validated) == 1
    assert entered == [None]


def test_the_training_script_is_prepared_for_ours(
    validated: list[object], entered: list[object]
) -> None:
    install_run_hook()
    config = make_train_config(make_motion_config())

    config.validate()

    assert entered == [config]


def test_a_resumed_run_is_compared_with_its_checkpoint(
    validated: list[object], entered: list[object], tmp_path: Path
) -> None:
    install_run_hook()
    config = make_train_config(make_motion_config(pretrained_path=tmp_path), resume=True)
    config.checkpoint_path = tmp_path

    with pytest.raises(FileNotFoundError, match=r"resume: \S+ lacks training_step.json"):
        config.validate()

    assert entered == []


def test_the_policy_found_by_validation_is_the_one_that_sees_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """LeRobot reads --policy.path within validate."""
    policy = make_motion_config()
    monkeypatch.setattr(
        TrainPipelineConfig, "validate", lambda self: setattr(self, "policy", policy)
    )
    install_run_hook()

    make_train_config(None, steps=5).validate()

    assert policy.train_run.num_steps == 5


def test_a_policy_that_refuses_the_run_stops_it(validated: list[object]) -> None:
    install_run_hook()

    with pytest.raises(ValueError, match="load_motion_head=false is for serving"):
        make_train_config(make_motion_config(load_motion_head=False)).validate()


def test_the_hook_goes_on_top_of_another_plugins(
    monkeypatch: pytest.MonkeyPatch, validated: list[object]
) -> None:
    original = TrainPipelineConfig.validate

    @functools.wraps(original)
    def another(self: object) -> None:
        original(self)

    monkeypatch.setattr(TrainPipelineConfig, "validate", another)
    install_run_hook()
    policy = make_motion_config()

    make_train_config(policy, steps=7).validate()

    assert policy.train_run is not None


def test_the_run_tells_which_transforms_move_pixels(validated: list[object]) -> None:
    """LeRobot's default set has one."""
    install_run_hook()
    config = make_train_config(make_motion_config())
    config.dataset.image_transforms.enable = True

    config.validate()

    assert config.policy.train_run.image_transforms
    assert config.policy.train_run.geometric_transforms == ("affine (RandomAffine)",)


def test_a_transform_without_weight_is_not_in_use(validated: list[object]) -> None:
    install_run_hook()
    config = make_train_config(make_motion_config())
    config.dataset.image_transforms.enable = True
    config.dataset.image_transforms.tfs["affine"].weight = 0.0

    config.validate()

    assert config.policy.train_run.geometric_transforms == ()


def test_the_run_tells_its_episodes(validated: list[object]) -> None:
    install_run_hook()
    config = make_train_config(make_motion_config())
    config.dataset.episodes = [3, 1]

    config.validate()

    assert config.policy.train_run.episodes == (3, 1)
