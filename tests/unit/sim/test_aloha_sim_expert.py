"""The scripted expert as a teleoperator of the simulated robot."""

import sys

import numpy as np
import pytest

pytest.importorskip("mink", reason="needs the extra `sim`")

from lerobot.teleoperators import TeleoperatorConfig, make_teleoperator_from_config
from lerobot.utils.errors import DeviceAlreadyConnectedError, DeviceNotConnectedError

from lerobot_motion.sim.aloha_sim import AlohaSim
from lerobot_motion.sim.aloha_sim_expert import AlohaSimExpert
from lerobot_motion.sim.config_aloha_sim import CONTROL_HZ, JOINT_KEYS
from lerobot_motion.sim.config_aloha_sim_expert import AlohaSimExpertConfig

PLAN_S = 4.0


@pytest.fixture
def make_expert(tmp_path):
    def make(**settings) -> AlohaSimExpert:
        return AlohaSimExpert(AlohaSimExpertConfig(calibration_dir=tmp_path, **settings))

    return make


def drive(robot: AlohaSim, expert: AlohaSimExpert, seconds: float) -> None:
    """LeRobot's loop without the pictures."""
    for _ in range(round(seconds * robot.config.fps)):
        robot.send_action(expert.get_action())


def test_lerobot_finds_it_by_its_type(tmp_path):
    assert TeleoperatorConfig.get_choice_class("aloha_sim_expert") is AlohaSimExpertConfig
    expert = make_teleoperator_from_config(AlohaSimExpertConfig(calibration_dir=tmp_path))
    assert isinstance(expert, AlohaSimExpert)
    assert expert.feedback_features == {}
    assert tuple(expert.action_features) == JOINT_KEYS


@pytest.mark.parametrize(("fps", "speed"), [(50, 1.0), (25, 1.0), (10, 0.4)])
def test_hands_the_cube_over_in_every_scene(make_robot, make_expert, announce, fps, speed):
    expert, robot = make_expert(speed=speed), make_robot(fps=fps)
    expert.connect()  # Before the robot, as LeRobot does.
    robot.connect()
    for number in range(3):
        announce(f"Recording episode {number}")
        drive(robot, expert, PLAN_S / speed + 0.2)
        assert robot.attempt.success
        assert robot.attempt.seed == number


def test_holds_still_when_it_is_done(robot, make_expert):
    expert = make_expert()
    expert.connect()
    drive(robot, expert, PLAN_S)
    last = expert.get_action()
    drive(robot, expert, 0.2)

    assert expert.get_action() == last


def test_follows_the_scenes_clock_in_real_time(make_robot, make_expert, monkeypatch):
    now = 0.0
    monkeypatch.setattr("lerobot_motion.sim.aloha_sim.time.perf_counter", lambda: now)
    expert, robot = make_expert(), make_robot(real_time=True)
    robot.connect()
    expert.connect()
    for _ in range(int(PLAN_S * 30)):
        robot.send_action(expert.get_action())
        now += 1 / 25
    assert robot.attempt.success


def test_plans_anew_where_a_policy_has_driven(robot, make_expert, caplog):
    expert = make_expert()
    expert.connect()
    drive(robot, expert, 0.5)
    away = dict(zip(JOINT_KEYS, robot.current_scene().state.tolist(), strict=True))
    away["right_arm_waist.pos"] += 0.4
    for _ in range(CONTROL_HZ // 2):
        robot.send_action(away)
    state = robot.current_scene().state
    first = np.array(list(expert.get_action().values()))

    assert first == pytest.approx(state, abs=0.02)  # It sets out from where the arms are.
    drive(robot, expert, PLAN_S)
    assert robot.attempt.success
    assert caplog.text == ""


@pytest.mark.parametrize("ended_by", ["episode", "disconnect"])
def test_warns_of_half_a_demonstration(robot, make_expert, announce, caplog, ended_by):
    expert = make_expert()
    expert.connect()
    drive(robot, expert, 1.0)
    if ended_by == "episode":
        announce("Recording episode 1")
        robot.get_observation()
        expert.get_action()
    else:
        expert.disconnect()

    assert "the scene ended after 1.0 of the 4.0 s that its plan takes" in caplog.text
    assert "--dataset.episode_time_s" in caplog.text


def test_misuse_is_named(make_robot, make_expert):
    expert = make_expert(id="ada")
    for use in (expert.get_action, expert.disconnect):
        with pytest.raises(DeviceNotConnectedError, match="aloha_sim_expert ada is not connected"):
            use()
    robot = make_robot(id="bench")
    expert.connect()
    with pytest.raises(DeviceAlreadyConnectedError, match="ada is already connected"):
        expert.connect()
    with pytest.raises(DeviceNotConnectedError, match="scene of aloha_sim bench, which is not con"):
        expert.get_action()
    with pytest.raises(NotImplementedError, match="takes no feedback"):
        expert.send_feedback(robot.action_features)


def test_the_robot_must_be_there(make_robot, make_expert):
    robot = make_robot(id="bench")
    with pytest.raises(DeviceNotConnectedError, match=f"of id 'other'.*{robot.id}"):
        make_expert(robot_id="other").connect()


def test_the_pace_is_checked(caplog):
    message = "speed must be above 0 and at most 1, got 0."
    with pytest.raises(ValueError, match=message):
        AlohaSimExpertConfig(speed=0)
    assert caplog.messages == [message]


def test_the_missing_solver_is_named(make_robot, make_expert, monkeypatch):
    make_robot()
    monkeypatch.delitem(sys.modules, "lerobot_motion.sim.aloha_expert", raising=False)
    monkeypatch.setitem(sys.modules, "mink", None)

    with pytest.raises(ImportError, match=r'pip install "lerobot_policy_motion\[sim\]"'):
        make_expert().connect()
