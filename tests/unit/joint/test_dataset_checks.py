from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from lerobot.datasets import LeRobotDatasetMetadata
from tiny import CAMERA, make_motion_config, make_motion_policy, write_dataset

from lerobot_motion.joint.configuration import JointMotionConfig
from lerobot_motion.joint.dataset_checks import check_dataset
from lerobot_motion.training.train_run import TrainRun

WRIST = "observation.images.wrist"


def make_meta(
    images: tuple[str, ...] = (), videos: tuple[str, ...] = (), lengths: tuple[int, ...] = (30, 20)
) -> SimpleNamespace:
    return SimpleNamespace(
        camera_keys=[*images, *videos],
        video_keys=[*videos],
        episodes={"length": lengths, "tasks": [["push"]] * len(lengths)},
        fps=10,
        repo_id="local/made",
        total_episodes=len(lengths),
        total_frames=sum(lengths),
        robot_type=None,
        tasks=pd.DataFrame(index=["push"]),
    )


def unsettled(cameras: tuple[str, ...] = (CAMERA,), **settings: object) -> JointMotionConfig:
    return make_motion_config(cameras, **{"motion_camera": None, **settings})


# --- the camera ---


def test_the_only_camera_is_chosen() -> None:
    config = unsettled()

    check_dataset(config, make_meta(images=(CAMERA,)))

    assert config.motion_camera == CAMERA


def test_of_several_cameras_one_must_be_named() -> None:
    message = (
        rf"motion_camera must be set, there are several cameras: \['{CAMERA}', '{WRIST}'\]\. "
        rf"Pass --policy\.motion_camera={CAMERA}"
    )
    with pytest.raises(ValueError, match=message):
        check_dataset(unsettled((CAMERA, WRIST)), make_meta(images=(WRIST, CAMERA)))


def test_a_named_camera_is_taken() -> None:
    config = unsettled((CAMERA, WRIST), motion_camera=WRIST)

    check_dataset(config, make_meta(images=(CAMERA, WRIST)))

    assert config.motion_camera == WRIST


def test_an_unknown_camera_is_refused() -> None:
    config = unsettled((CAMERA, WRIST), motion_camera="observation.images.front")
    message = (
        rf"motion_camera must be one of \['{CAMERA}', '{WRIST}'\] \(names after --rename_map\), "
        r"got 'observation\.images\.front'\."
    )
    with pytest.raises(ValueError, match=message):
        check_dataset(config, make_meta(images=(CAMERA, WRIST)))


def test_even_an_only_camera_must_be_the_named_one() -> None:
    with pytest.raises(ValueError, match=r"motion_camera must be one of .* got 'top'"):
        check_dataset(unsettled(motion_camera="top"), make_meta(images=(CAMERA,)))


def test_a_dataset_without_cameras_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the dataset has no camera \(no image or video feature"):
        check_dataset(unsettled(()), make_meta())


def test_a_camera_that_the_policy_does_not_use_does_not_count() -> None:
    config = unsettled((CAMERA,))

    check_dataset(config, make_meta(images=(CAMERA, WRIST)))

    assert config.motion_camera == CAMERA


# --- the rename map ---


def test_cameras_go_by_their_new_names() -> None:
    config = unsettled()
    config.enter_run(TrainRun(num_steps=10, rename_map={"observation.images.cam0": CAMERA}))

    check_dataset(config, make_meta(images=("observation.images.cam0",)))

    assert config.motion_camera == CAMERA


def test_the_datasets_own_name_is_unknown_after_renaming() -> None:
    config = unsettled(motion_camera="observation.images.cam0")
    config.enter_run(TrainRun(num_steps=10, rename_map={"observation.images.cam0": CAMERA}))

    with pytest.raises(ValueError, match=rf"must be one of \['{CAMERA}'\] \(names after --rename"):
        check_dataset(config, make_meta(images=("observation.images.cam0",)))


# --- the horizon ---


@pytest.mark.parametrize("horizon", [30, 31])
def test_a_horizon_longer_than_every_episode_is_refused(horizon: int) -> None:
    message = (
        r"motion_horizon must be shorter than the longest episode that is trained on "
        rf"\(30 frames\), got {horizon}: .*--policy\.motion_horizon=10\."
    )
    with pytest.raises(ValueError, match=message):
        check_dataset(unsettled(motion_horizon=horizon), make_meta(images=(CAMERA,)))


@pytest.mark.parametrize("run", [{"episodes": (1, 2)}, {"episodes": (1, 2, 3), "eval_split": 0.3}])
def test_of_episodes_only_those_that_are_trained_on_count(run: dict[str, Any]) -> None:
    config = unsettled(motion_horizon=25)
    config.enter_run(TrainRun(num_steps=10, **run))

    with pytest.raises(ValueError, match=r"trained on \(25 frames\), got 25: no frame would have"):
        check_dataset(config, make_meta(images=(CAMERA,), lengths=(30, 25, 20, 40)))


def test_a_horizon_within_the_longest_episode_passes() -> None:
    config = unsettled(motion_horizon=29)

    check_dataset(config, make_meta(images=(CAMERA,), lengths=(3, 30)))

    assert config.motion_camera == CAMERA


# --- streaming ---


def test_streamed_video_is_refused() -> None:
    config = unsettled()
    config.enter_run(TrainRun(num_steps=10, streaming=True))

    with pytest.raises(ValueError, match=r"dataset\.streaming must be false .* got true: LeRobot"):
        check_dataset(config, make_meta(videos=(CAMERA,)))


def test_streamed_video_is_refused_under_its_new_name() -> None:
    config = unsettled()
    run = TrainRun(num_steps=10, streaming=True, rename_map={"observation.images.cam0": CAMERA})
    config.enter_run(run)

    with pytest.raises(ValueError, match=r"dataset\.streaming must be false"):
        check_dataset(config, make_meta(videos=("observation.images.cam0",)))


@pytest.mark.parametrize("streaming", [False, True])
def test_streamed_images_and_local_video_pass(streaming: bool) -> None:
    config = unsettled()
    config.enter_run(TrainRun(num_steps=10, streaming=streaming))
    kind = "images" if streaming else "videos"

    check_dataset(config, make_meta(**{kind: (CAMERA,)}))

    assert config.motion_camera == CAMERA


# --- with a real dataset, through the policy ---


def test_the_policy_checks_the_dataset_it_is_built_for(tmp_path: object) -> None:
    root = write_dataset(tmp_path / "data", num_episodes=1, num_frames=12)
    meta = LeRobotDatasetMetadata("tests/tiny", root=root)

    policy = make_motion_policy(dataset_meta=meta, motion_camera=None)
    assert policy.config.motion_camera == CAMERA

    with pytest.raises(ValueError, match=r"that is trained on \(12 frames\), got 12"):
        make_motion_policy(dataset_meta=meta, motion_horizon=12)


def test_serving_without_a_head_checks_nothing() -> None:
    policy = make_motion_policy(
        dataset_meta=make_meta(), load_motion_head=False, motion_camera=None
    )

    assert policy.config.motion_camera is None
