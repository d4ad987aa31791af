"""The recipes against what their datasets hold and what LeRobot's environments show and take."""

import copy
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import recipe_datasets
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.configs.train import TrainPipelineConfig
from lerobot.datasets.factory import resolve_delta_timestamps
from lerobot.envs import EnvConfig, env_to_policy_features, make_env_config
from lerobot.envs.utils import preprocess_observation
from lerobot.policies.utils import validate_visual_features_consistency
from lerobot.utils.feature_utils import dataset_to_policy_features
from recipe_datasets import RecipeDataset

import lerobot_motion.motion_pi05.configuration_motion_pi05  # noqa: F401 - registers the type
from lerobot_motion.joint.dataset_checks import check_dataset
from lerobot_motion.motion_pi0.modeling_motion_pi0 import MotionPi0Policy
from lerobot_motion.sim.robotwin_randomized import RoboTwinRandomizedEnvConfig
from lerobot_motion.training.run import install_run_hook

CONFIGS = Path(__file__).parents[2] / "configs" / "policy"
DATASETS = {
    "aloha_finetune": recipe_datasets.aloha,
    "custom_robot_lora": recipe_datasets.custom_robot,
    "droid_pretrain": lambda: recipe_datasets.DROID,
    "libero_finetune": lambda: recipe_datasets.LIBERO,
    "libero_pi05_finetune": lambda: recipe_datasets.LIBERO,
    "libero_plus_finetune": lambda: recipe_datasets.LIBERO_PLUS,
    "robotwin_finetune": lambda: recipe_datasets.ROBOTWIN,
    "so101_lora": recipe_datasets.so101,
    "tiny_aloha": recipe_datasets.aloha,
}
ENVIRONMENTS = {
    "aloha_finetune": ["aloha"],
    "libero_finetune": ["libero", "libero_plus"],
    "libero_pi05_finetune": ["libero", "libero_plus"],
    "libero_plus_finetune": ["libero", "libero_plus"],
    "robotwin_finetune": ["robotwin", "robotwin_randomized"],
    "tiny_aloha": ["aloha"],
}
# The slots of lerobot/pi0_base, in its order, and who sits in them.
PI0_BASE = [
    f"observation.images.{name}" for name in ("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb")
]
IN_THE_SCENE = ("top", "image", "front", "head_camera", "exterior_1_left", "base_0_rgb")


@pytest.fixture(params=sorted(DATASETS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def dataset(name: str) -> RecipeDataset:
    return DATASETS[name]()


@pytest.fixture(scope="module")
def read_recipe(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[[str], TrainPipelineConfig]]:
    """Read a recipe as lerobot-train has it before it looks at the dataset."""

    @cache
    def read_once(name: str) -> TrainPipelineConfig:
        config = TrainPipelineConfig.from_pretrained(CONFIGS / f"{name}.yaml")
        config.output_dir = tmp_path_factory.mktemp(name) / "run"
        config.validate()
        return config

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainPipelineConfig, "validate", TrainPipelineConfig.validate)
        install_run_hook()
        patch.setattr("sys.argv", ["lerobot-train"])
        yield lambda name: copy.deepcopy(read_once(name))


@pytest.fixture
def recipe(name: str, read_recipe: Callable[[str], TrainPipelineConfig]) -> TrainPipelineConfig:
    return read_recipe(name)


def metadata(dataset: RecipeDataset) -> SimpleNamespace:
    """As much of a LeRobotDatasetMetadata as is looked at before training."""
    return SimpleNamespace(
        features=dataset.features,
        fps=dataset.fps,
        camera_keys=dataset.cameras,
        video_keys=dataset.cameras,
        episodes={"length": [5 * dataset.fps]},
    )


def take_features(recipe: TrainPipelineConfig, dataset: RecipeDataset) -> Any:
    """The policy's configuration, with its features as LeRobot's make_policy gives them to it."""
    config = recipe.policy
    features = dataset_to_policy_features(dataset.features)
    config.output_features = {k: v for k, v in features.items() if v.type is FeatureType.ACTION}
    if not config.input_features:
        config.input_features = {
            k: v for k, v in features.items() if k not in config.output_features
        }
    if not recipe.rename_map:
        validate_visual_features_consistency(config, features)
    MotionPi0Policy._rename_features(config, metadata(dataset))
    return config


# --- datasets ---


def test_cameras_states_and_actions_are_the_datasets(
    recipe: TrainPipelineConfig, dataset: RecipeDataset
) -> None:
    config = take_features(recipe, dataset)
    there = {recipe.rename_map.get(key, key): value for key, value in dataset.features.items()}

    assert set(recipe.rename_map) <= set(dataset.features)
    assert config.image_features
    assert set(config.input_features) <= set(there)
    height, width, channels = there[config.motion_camera]["shape"]
    assert config.image_features[config.motion_camera].shape == (channels, height, width)
    (state,) = there["observation.state"]["shape"]
    assert config.robot_state_feature.shape == (state,)
    assert state <= config.max_state_dim
    assert config.action_feature.shape == there["action"]["shape"]
    assert config.action_feature.shape[0] <= config.max_action_dim


def test_the_dataset_is_checked_and_found_good(
    recipe: TrainPipelineConfig, dataset: RecipeDataset
) -> None:
    config = take_features(recipe, dataset)
    config.motion_latents = None  # A store must be on the disk.

    check_dataset(config, metadata(dataset))

    assert config.motion_camera in config.image_features
    assert config.motion_camera.removeprefix("observation.images.") in IN_THE_SCENE


def test_cameras_come_in_the_order_of_the_base(
    recipe: TrainPipelineConfig, dataset: RecipeDataset
) -> None:
    """The scene first, then what sits on arms: pi0 knows its cameras by their order alone."""
    cameras = list(take_features(recipe, dataset).image_features)

    assert cameras[0] == recipe.policy.motion_camera
    assert len(cameras) <= len(PI0_BASE)
    used = [PI0_BASE.index(camera) for camera in cameras if camera in PI0_BASE]
    assert used == sorted(used)
    sides = [next((i for i, side in enumerate(("left", "right")) if side in c), 0) for c in cameras]
    assert sides[1:] == sorted(sides[1:])


def test_actions_and_motion_span_the_same_second(
    name: str, recipe: TrainPipelineConfig, dataset: RecipeDataset
) -> None:
    config = take_features(recipe, dataset)
    seconds = resolve_delta_timestamps(config, metadata(dataset))

    assert config.motion_horizon == dataset.fps
    assert config.n_action_steps == config.chunk_size
    # From a store: no further frame of the dataset is asked for.
    assert set(seconds) == {"action"}
    window = 0.5 if name == "tiny_aloha" else 1.0
    assert len(seconds["action"]) / dataset.fps == window
    config.motion_latents = None
    ahead = resolve_delta_timestamps(config, metadata(dataset))["observation.state"]
    assert ahead == [0, 1.0]


@pytest.mark.parametrize("lacking", ["the camera", "all cameras"])
def test_a_dataset_without_the_recipes_camera_is_refused(
    name: str, recipe: TrainPipelineConfig, dataset: RecipeDataset, lacking: str
) -> None:
    names = {new: old for old, new in recipe.rename_map.items()}
    camera = names.get(recipe.policy.motion_camera, recipe.policy.motion_camera)
    features = {k: v for k, v in dataset.features.items() if v["dtype"] != "video"}
    if lacking == "the camera":
        features["observation.images.ceiling"] = dataset.features[camera]
    other = RecipeDataset(dataset.fps, features)
    recipe.policy.motion_latents = None

    if recipe.policy.input_features:  # The recipe names its inputs.
        message = "Feature mismatch between dataset/environment and policy config"
        if lacking == "all cameras":
            message = "the dataset has no camera"
    elif lacking == "the camera":
        message = (
            r"motion_camera must be one of \['observation.images.ceiling'\] \(names after "
            rf"--rename_map\), got '{recipe.policy.motion_camera}'"
        )
    else:
        message = "the dataset has no camera"
    with pytest.raises(ValueError, match=message):
        check_dataset(take_features(recipe, other), metadata(other))


# --- environments ---


def environments() -> list[Any]:
    return [
        pytest.param(recipe, env, id=f"{recipe}-{env}")
        for recipe, envs in ENVIRONMENTS.items()
        for env in envs
    ]


def shown_by(env: EnvConfig) -> dict[str, PolicyFeature]:
    """What a policy is shown and asked for, with LIBERO's state as LeRobot's step composes it."""
    features = env_to_policy_features(env)
    steps = env.get_env_processors()[0].steps
    if not steps:
        return features
    observation = {
        "robot_state": {
            "eef": {"pos": np.zeros((1, 3)), "quat": np.full((1, 4), 0.5)},
            "gripper": {"qpos": np.zeros((1, 2))},
        }
    }
    state = steps[0].observation(preprocess_observation(observation))["observation.state"]
    features = {k: v for k, v in features.items() if v.type is not FeatureType.STATE}
    features["observation.state"] = PolicyFeature(FeatureType.STATE, tuple(state.shape[1:]))
    return features


@pytest.mark.parametrize(("recipe_name", "env_type"), environments())
def test_a_checkpoint_fits_the_environment(
    recipe_name: str, env_type: str, read_recipe: Callable[[str], TrainPipelineConfig]
) -> None:
    """Without --rename_map, as the pages evaluate: lerobot-eval forgets the training's."""
    dataset = DATASETS[recipe_name]()
    config = take_features(read_recipe(recipe_name), dataset)
    shown = shown_by(make_env_config(env_type))

    validate_visual_features_consistency(config, shown)
    assert set(config.image_features) == {
        key for key, feature in shown.items() if feature.type is FeatureType.VISUAL
    }
    assert config.robot_state_feature.shape == shown["observation.state"].shape
    assert config.action_feature.shape == shown["action"].shape


@pytest.mark.parametrize(
    ("env_type", "dataset", "frames_a_step"),
    [
        ("aloha", recipe_datasets.aloha(), 1),
        ("libero_plus", recipe_datasets.LIBERO_PLUS, 1),
        # The dataset's clock runs at half the simulator's; its frames are the simulator's steps.
        ("libero", recipe_datasets.LIBERO, 2),
    ],
)
def test_the_environments_rate(env_type: str, dataset: RecipeDataset, frames_a_step: int) -> None:
    assert make_env_config(env_type).fps == frames_a_step * dataset.fps


def test_robotwins_rate_is_only_a_name() -> None:
    """LeRobot's 25 fps are neither the dataset's 30 nor a rate of control: examples/robotwin.md."""
    assert make_env_config("robotwin").fps == 25
    assert recipe_datasets.ROBOTWIN.fps == 30


def test_droids_actions_are_the_arms_alone(
    read_recipe: Callable[[str], TrainPipelineConfig],
) -> None:
    """Of the dataset's many actions and states, those named `action` and `observation.state`."""
    config = take_features(read_recipe("droid_pretrain"), recipe_datasets.DROID)

    assert list(config.input_features) == [
        "observation.images.exterior_1_left",
        "observation.images.wrist_left",
        "observation.state",
    ]
    assert config.robot_state_feature.shape == config.action_feature.shape == (8,)


def test_the_hard_mode_is_registered() -> None:
    assert EnvConfig.get_choice_class("robotwin_randomized") is RoboTwinRandomizedEnvConfig
