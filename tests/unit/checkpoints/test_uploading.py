import logging
from pathlib import Path
from typing import Any

import pytest
from tiny import make_motion_policy
from training_runs import make_run

from lerobot_motion.checkpoints import uploading
from lerobot_motion.checkpoints.uploading import check_upload


@pytest.fixture
def policy() -> Any:
    return make_motion_policy(repo_id="user/motion")


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploading, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(uploading, "get_token", lambda: "hf_loopback")


@pytest.mark.usefixtures("online")
@pytest.mark.parametrize("name", ["user/my motion", "a/b/c", "user/motion.git"])
@pytest.mark.parametrize("way", ["push_to_hub", "save_checkpoint_to_hub"])
def test_an_impossible_repository_is_refused(
    policy: Any, tmp_path: Path, name: str, way: str
) -> None:
    policy.config.repo_id = name
    policy.config.push_to_hub = way == "push_to_hub"
    run = make_run(policy, tmp_path, save_checkpoint_to_hub=way == "save_checkpoint_to_hub")

    with pytest.raises(ValueError, match=r"--policy\.repo_id must be <user>/<name>: .*"):
        check_upload(run)


def test_an_upload_without_the_hub_is_refused(
    policy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploading, "HF_HUB_OFFLINE", True)

    with pytest.raises(ValueError, match="HF_HUB_OFFLINE is set") as caught:
        check_upload(make_run(policy, tmp_path))

    assert str(caught.value).endswith(
        f"hf upload user/motion {tmp_path}/checkpoints/last/pretrained_model"
    )
    policy.config.push_to_hub = False
    check_upload(make_run(policy, tmp_path))


@pytest.mark.usefixtures("online")
def test_a_missing_token_is_told(
    policy: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    run = make_run(policy, tmp_path)
    with caplog.at_level(logging.WARNING):
        check_upload(run)
        assert not caplog.records
        monkeypatch.setattr(uploading, "get_token", lambda: None)

        check_upload(run)

    assert "uploaded to user/motion, and there is no token for the Hub" in caplog.text


def test_lerobot_refuses_an_upload_to_nowhere(policy: Any, tmp_path: Path) -> None:
    policy.config.repo_id = None

    with pytest.raises(ValueError, match="'repo_id' argument missing"):
        make_run(policy, tmp_path / "new").validate()
