import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from huggingface_hub import ModelCard
from lerobot.policies.pretrained import PreTrainedPolicy
from tiny import make_batch, make_motion_policy
from training_runs import make_run

from lerobot_motion.checkpoints.uploading import last_checkpoint
from lerobot_motion.joint import publishing
from lerobot_motion.training.train_run import TrainRun

FACTS = SimpleNamespace(
    repo_id="user/cubes",
    total_episodes=3,
    total_frames=90,
    fps=30,
    robot_type=None,
    tasks=SimpleNamespace(index=[]),
)


@pytest.fixture
def policy(tmp_path: Path) -> Any:
    """A policy within a run that writes to `tmp_path`."""
    policy = make_motion_policy(repo_id="user/motion")
    run = make_run(policy, tmp_path)
    policy.config.enter_run(TrainRun(num_steps=run.steps, pipeline=run))
    return policy


def upload(policy: Any) -> None:
    policy.push_model_to_hub(policy.config.train_run.pipeline)


# --- losses ---


@pytest.mark.parametrize("motion_target", ["flow_image", "none"])
def test_training_batches_are_noted_and_others_are_not(motion_target: str) -> None:
    policy = make_motion_policy(motion_target=motion_target)
    batch = make_batch(policy)
    policy.eval()
    policy.forward(batch)
    assert policy.recent_losses.means() is None

    policy.train()
    logs = [policy.forward(batch)[1] for _ in range(2)]

    means = policy.recent_losses.means()
    assert means.num_batches == 2
    assert set(means.values) == {"loss", "action_loss", "motion_loss"} & set(logs[0])
    for name, value in means.values.items():
        assert value == pytest.approx(sum(log[name] for log in logs) / 2)


def test_the_warmup_is_known_as_such() -> None:
    policy = make_motion_policy(motion_warmup_steps=1).train()

    policy.forward(make_batch(policy))
    assert policy.recent_losses.means().in_warmup
    policy.update()
    policy.forward(make_batch(policy))

    assert not policy.recent_losses.means().in_warmup


# --- cards of checkpoints ---


def test_a_checkpoint_of_a_run_has_a_card(policy: Any, tmp_path: Path) -> None:
    policy.update()
    policy.config.dataset_facts = publishing.describe_dataset(FACTS)

    policy.save_pretrained(tmp_path / "c")

    text = ModelCard.load(tmp_path / "c/README.md").text
    assert "| Optimizer steps | 1 of 10 |" in text
    assert "3 episodes, 90 frames at 30 fps" in text
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]


def test_outside_of_a_run_no_card_is_made_up(tmp_path: Path) -> None:
    make_motion_policy().save_pretrained(tmp_path)

    assert not (tmp_path / "README.md").exists()


def test_a_checkpoint_of_adapters_has_our_card_too(policy: Any, tmp_path: Path) -> None:
    policy.config.pretrained_path = "user/base"
    policy.loaded_from = None
    pytest.importorskip("peft")
    # What it notes of its base would be read from there.
    policy._base_checkpoint = lambda: None

    policy.wrap_with_peft().save_pretrained(tmp_path / "c")

    card = ModelCard.load(tmp_path / "c/README.md")
    assert (tmp_path / "c/adapter_config.json").is_file()
    assert card.data.base_model == "user/base"
    assert "| Policy | `motion_pi0` of the LeRobot plugin" in card.text


# --- uploads ---


def test_lerobot_asks_for_a_card_in_these_words() -> None:
    theirs = inspect.signature(PreTrainedPolicy.generate_model_card)
    ours = inspect.signature(publishing.Publishing.generate_model_card)

    assert list(theirs.parameters) == list(ours.parameters)


def test_the_card_brings_the_processors_of_the_last_checkpoint(policy: Any, tmp_path: Path) -> None:
    run = policy.config.train_run.pipeline
    directory = last_checkpoint(run)
    directory.mkdir(parents=True)
    names = [
        "policy_postprocessor.json",
        "policy_preprocessor.json",
        "policy_preprocessor_2.safetensors",
    ]
    for name in names:
        (directory / name).write_text(name)
    (directory / "model.safetensors").touch()

    card = policy.generate_model_card("", "", None, None, cfg=run, dataset_meta=FACTS)
    (tmp_path / "upload").mkdir()
    card.save(str(tmp_path / "upload/README.md"))

    assert sorted(path.name for path in (tmp_path / "upload").iterdir()) == ["README.md", *names]
    assert (tmp_path / "upload" / names[0]).read_text() == names[0]
    assert "3 episodes, 90 frames" in card.text


def test_a_card_without_a_run_is_made_too(policy: Any) -> None:
    card = policy.generate_model_card("", "", None, None)

    assert "The run that made it is not recorded." in card.text


@pytest.mark.parametrize(
    "error",
    [
        ConnectionError("no route"),
        ValueError("invalid metadata"),
        RuntimeError("Error while uploading"),
        httpx.ConnectError("refused"),
    ],
)
def test_a_failed_upload_says_where_the_checkpoint_is(
    policy: Any, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_args: Any, **_options: Any) -> None:
        raise error

    monkeypatch.setattr(PreTrainedPolicy, "push_model_to_hub", fail)
    directory = last_checkpoint(policy.config.train_run.pipeline)
    directory.mkdir(parents=True)

    with pytest.raises(OSError, match="user/motion could not be uploaded") as caught:
        upload(policy)

    assert str(caught.value) == (
        f"user/motion could not be uploaded ({type(error).__name__}: {error}). Training is done. "
        f"The checkpoint is whole in {directory}; upload it with: hf upload user/motion {directory}"
    )


def test_a_failed_upload_promises_no_checkpoint(
    policy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: Any, **_options: Any) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(PreTrainedPolicy, "push_model_to_hub", fail)

    with pytest.raises(OSError, match=r"Training is done\. There is no local checkpoint of it"):
        upload(policy)


def test_a_picture_is_uploaded_before_the_card_that_shows_it(
    policy: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls: list[tuple[str, Any]] = []

    class Hub:
        def create_repo(self, repo_id: str, **options: Any) -> Any:
            calls.append(("create_repo", options))
            return SimpleNamespace(repo_id=repo_id)

        def upload_file(self, **options: Any) -> None:
            calls.append(("upload_file", options))

    monkeypatch.setattr(publishing, "HfApi", Hub)
    monkeypatch.setattr(
        PreTrainedPolicy, "push_model_to_hub", lambda *_: calls.append(("push", None))
    )
    upload(policy)
    assert calls == [("push", None)]
    picture = tmp_path / "motion.png"
    picture.touch()
    calls.clear()

    upload(policy)

    assert calls == [
        ("create_repo", {"private": None, "exist_ok": True}),
        (
            "upload_file",
            {"path_or_fileobj": picture, "path_in_repo": "motion.png", "repo_id": "user/motion"},
        ),
        ("push", None),
    ]
    card = policy.generate_model_card("", "", None, None, cfg=policy.config.train_run.pipeline)
    assert "](motion.png)" in card.text
