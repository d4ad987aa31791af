"""Checks of a dataset against the settings of joint motion learning, before a step is trained."""

from typing import TYPE_CHECKING

from lerobot_motion.joint.configuration import JointMotionConfig
from lerobot_motion.joint.stored_targets import settle_latent_stores
from lerobot_motion.training.episode_split import split_episodes
from lerobot_motion.training.train_run import TrainRun

if TYPE_CHECKING:
    from lerobot.datasets import LeRobotDatasetMetadata


def check_dataset(config: JointMotionConfig, dataset_meta: "LeRobotDatasetMetadata") -> None:
    """Settle the motion cameras and check that the dataset can teach motion.

    Args:
        config: The policy's configuration; its `motion_camera` is settled.
        dataset_meta: Metadata of the training dataset.

    Raises:
        ValueError: If there is no suitable camera, every episode that is trained on is shorter than
            the horizon, or the dataset is streamed video, or the latent store does not suit.
        FileNotFoundError: If there is no latent store where `motion_latents` says.
    """
    run = config.train_run or TrainRun(num_steps=0)
    names = {key: run.rename_map.get(key, key) for key in dataset_meta.camera_keys}
    config.settle_camera([name for name in names.values() if name in config.image_features])
    _check_horizon(config, dataset_meta, run)
    videos = [names[key] for key in dataset_meta.video_keys]
    from_video = set(config.motion_cameras) & set(videos)
    if run.streaming and config.motion_latents is None and from_video:
        raise ValueError(
            "dataset.streaming must be false to make motion targets from video, got true: LeRobot "
            "0.6.1's streaming returns the next episode's frames past an episode's end. Make the "
            "targets beforehand with lerobot-motion-precompute, and pass --policy.motion_latents."
        )
    if config.motion_latents is not None:
        settle_latent_stores(config, dataset_meta, run)


def _check_horizon(
    config: JointMotionConfig, dataset_meta: "LeRobotDatasetMetadata", run: TrainRun
) -> None:
    lengths = list(dataset_meta.episodes["length"])
    tasks = list(dataset_meta.episodes["tasks"]) if run.eval_split else []
    episodes = range(len(lengths)) if run.episodes is None else run.episodes
    trained, _ = split_episodes(tasks, episodes, run.eval_split)
    longest = max(lengths[episode] for episode in trained)
    if config.motion_horizon >= longest:
        raise ValueError(
            "motion_horizon must be shorter than the longest episode that is trained on "
            f"({longest} frames), got {config.motion_horizon}: no frame would have a future to "
            f"learn from. One second is --policy.motion_horizon={dataset_meta.fps}."
        )
