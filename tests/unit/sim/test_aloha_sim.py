"""The simulated robot through LeRobot's robot API."""

import gc
import sys

import numpy as np
import pytest
from gym_aloha.constants import ACTIONS, DT, JOINTS
from lerobot.robots import RobotConfig, make_robot_from_config
from lerobot.utils.errors import DeviceAlreadyConnectedError, DeviceNotConnectedError

from lerobot_motion.sim import aloha_sim
from lerobot_motion.sim.aloha_scene import SUCCESS_REWARD
from lerobot_motion.sim.aloha_sim import AlohaSim, find_robot
from lerobot_motion.sim.config_aloha_sim import CAMERAS, CONTROL_HZ, JOINT_KEYS, AlohaSimConfig

CUBE = slice(16, 19)  # Of the scene's `qpos`.


def stand_still(robot: AlohaSim) -> dict[str, float]:
    observation = robot.get_observation()
    return {key: observation[key] for key in JOINT_KEYS}


def test_joints_cameras_and_rate_are_gym_alohas(robot):
    names = [key.removesuffix(".pos") for key in JOINT_KEYS]
    model = robot.current_scene().model

    assert names == JOINTS == ACTIONS
    assert {model.camera(i).name for i in range(model.ncam)} == set(CAMERAS)
    assert round(1 / DT) == CONTROL_HZ
    assert aloha_sim.SUCCESS_REWARD == SUCCESS_REWARD


def test_lerobot_finds_it_by_its_type(tmp_path):
    assert RobotConfig.get_choice_class("aloha_sim") is AlohaSimConfig
    robot = make_robot_from_config(AlohaSimConfig(calibration_dir=tmp_path))
    assert isinstance(robot, AlohaSim)
    assert (robot.name, robot.config.type, str(robot)) == ("aloha_sim",) * 3


def test_observations_are_as_announced(make_robot):
    robot = make_robot(camera_names=["top", "left_wrist"])
    features = robot.observation_features  # Also while it is not connected.
    robot.connect()
    observation = robot.get_observation()

    assert list(observation) == list(features)
    assert features["top"] == features["left_wrist"] == (48, 64, 3)
    for key, kind in features.items():
        if kind is float:
            assert isinstance(observation[key], float)
        else:
            assert observation[key].shape == kind
            assert observation[key].dtype == np.uint8
            assert observation[key].std() > 10  # There is something to see.
    assert not np.array_equal(observation["top"], observation["left_wrist"])
    assert len(robot.cameras) == 2


def test_an_action_moves_the_arms_within_its_time(make_robot):
    robot = make_robot(fps=10)
    robot.connect()
    action = stand_still(robot)
    before = robot.get_observation()
    action["left_arm_waist.pos"] += 0.3

    assert robot.send_action(action) is action
    after = robot.get_observation()

    assert robot.attempt.num_steps == CONTROL_HZ // 10
    assert after["left_arm_waist.pos"] - before["left_arm_waist.pos"] > 0.1
    assert after["right_arm_waist.pos"] == pytest.approx(before["right_arm_waist.pos"], abs=0.01)
    assert not np.array_equal(before["top"], after["top"])


def test_the_scene_waits_for_actions(robot):
    first, second = robot.get_observation(), robot.get_observation()

    assert all(np.array_equal(first[key], second[key]) for key in first)


def test_in_real_time_the_scene_does_not_wait(make_robot, monkeypatch):
    now = 100.0
    monkeypatch.setattr(aloha_sim.time, "perf_counter", lambda: now)
    robot = make_robot(real_time=True)
    robot.connect()
    action = stand_still(robot)
    action["left_arm_waist.pos"] += 0.3
    robot.send_action(action)
    assert robot.attempt.num_steps == 0

    now += 0.505
    waist = robot.get_observation()["left_arm_waist.pos"]
    assert robot.attempt.num_steps == 25
    assert waist == pytest.approx(action["left_arm_waist.pos"], abs=0.05)  # The command held.

    now += 0.05
    robot.send_action(stand_still(robot))  # Until here the earlier command held.
    assert robot.attempt.num_steps == 27


def test_each_announced_episode_has_a_scene_of_its_own(robot, announce):
    cubes = [robot.current_scene().qpos[CUBE]]
    for number in (0, 1, 2):
        announce(f"Recording episode {number}")
        cubes.append(robot.current_scene().qpos[CUBE])
        robot.send_action(stand_still(robot))

    assert np.array_equal(cubes[0], cubes[1])
    assert len({tuple(cube) for cube in cubes}) == 3
    assert robot.attempt.seed == 2


def test_a_repeated_episode_begins_anew(robot, announce):
    start = robot.get_observation()
    action = stand_still(robot)
    action["left_arm_waist.pos"] += 0.3
    robot.send_action(action)
    announce("Reset the environment")
    assert robot.get_observation()["left_arm_waist.pos"] != start["left_arm_waist.pos"]

    announce("Recording episode 0")
    again = robot.get_observation()
    assert all(np.array_equal(start[key], again[key]) for key in start)


def test_seeds_place_the_cube_as_gym_aloha_does(make_robot, announce):
    places = []
    for seed, episode in ((7, 0), (4, 3)):
        robot = make_robot(seed=seed)
        robot.connect()
        announce(f"Recording episode {episode}")
        places.append(robot.current_scene().qpos[CUBE])

    assert np.array_equal(*places)


def test_a_disconnected_robot_listens_no_more(robot, announce):
    robot.disconnect()
    announce("Recording episode 5")
    robot.connect()

    assert robot.current_scene() is not None
    assert robot.attempt.seed == 0


def test_misuse_is_named(make_robot):
    robot = make_robot(id="bench")
    for use in (robot.get_observation, robot.disconnect, lambda: robot.send_action({})):
        with pytest.raises(DeviceNotConnectedError, match="aloha_sim bench is not connected: call"):
            use()
    robot.connect()
    with pytest.raises(DeviceAlreadyConnectedError, match="bench is already connected: call disc"):
        robot.connect()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"left_arm_waist.pos": None}, "14 joints .* got 13 values, missing: left_arm_waist.pos,"),
        ({"elbow.pos": 1.0}, "got 15 values, missing: none, unknown: elbow.pos. Is the dataset"),
        ({"left_arm_waist.pos": float("nan")}, "finite, got left_arm_waist.pos=nan. Nothing was"),
    ],
)
def test_wrong_actions_are_refused(robot, change, message):
    action = stand_still(robot) | change
    action = {key: value for key, value in action.items() if value is not None}

    with pytest.raises(ValueError, match=message):
        robot.send_action(action)
    assert robot.attempt.num_steps == robot.attempt.num_actions == 0


def test_a_camera_can_be_made_to_fail(make_robot):
    robot = make_robot(camera_fails_after_s=0.1, fps=10)
    robot.connect()
    robot.send_action(stand_still(robot))

    with pytest.raises(TimeoutError, match="frame from camera top of aloha_sim: it failed after"):
        robot.get_observation()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"camera_names": ["top", "side"]}, "camera_names must be different ones of top, angle,"),
        ({"camera_names": ["top", "top"]}, "got top, top"),
        ({"height": 0}, "height must be at least 1 pixel, got 0"),
        ({"fps": 30}, "fps must divide 50 .one of 1, 2, 5, 10, 25, 50., got 30"),
        ({"seed": -1}, "seed must lie in 0 to"),
        ({"camera_fails_after_s": -1.0}, "camera_fails_after_s must be 0 or more"),
    ],
)
def test_settings_are_checked(settings, message, caplog):
    with pytest.raises(ValueError, match=message) as caught:
        AlohaSimConfig(**settings)
    # LeRobot's parser keeps the reason to itself.
    assert caplog.messages == [str(caught.value)]


def test_the_missing_simulator_is_named(make_robot, monkeypatch):
    monkeypatch.delitem(sys.modules, "lerobot_motion.sim.aloha_scene")
    monkeypatch.setitem(sys.modules, "gym_aloha.constants", None)

    with pytest.raises(ImportError, match=r'pip install "lerobot_policy_motion\[sim\]"'):
        make_robot().connect()


def test_robots_are_found_by_id(make_robot):
    gc.collect()
    with pytest.raises(DeviceNotConnectedError, match="found 0 .* none.. Use --robot.type=aloha"):
        find_robot(None)
    left = make_robot(id="left")
    assert find_robot(None) is left
    right = make_robot(id="right")
    assert find_robot("right") is right
    with pytest.raises(DeviceNotConnectedError, match="expected one .* found 2 .*left, right"):
        find_robot(None)
    with pytest.raises(DeviceNotConnectedError, match="of id 'middle' in this process, found 0"):
        find_robot("middle")
