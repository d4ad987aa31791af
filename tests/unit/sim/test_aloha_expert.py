"""The scripted expert on gym-aloha's physics, without rendering."""

import gymnasium
import numpy as np
import pytest

pytest.importorskip("mink", reason="needs the extra `sim`")

from gym_aloha.constants import START_ARM_POSE
from gym_aloha.tasks.sim import BOX_POSE
from gym_aloha.utils import sample_box_pose

from lerobot_motion.sim.aloha_expert import (
    ARM_DOF,
    QPOS_PER_ARM,
    STABLE_STEPS,
    SUCCESS_REWARD,
    AlohaTransferCubeExpert,
    Episode,
    TransferCubeSimulation,
    min_jerk,
)

LEROBOT_EPISODE_LENGTH = 400  # lerobot.envs.configs.AlohaEnv.episode_length
GRIPPERS = [ARM_DOF, 2 * ARM_DOF + 1]
# The corners of the area gym-aloha puts the cube in, and its middle.
PLACES = [(0.0, 0.4), (0.0, 0.6), (0.2, 0.4), (0.2, 0.6), (0.1, 0.5)]


def scene_state(x: float, y: float) -> np.ndarray:
    return np.array([*START_ARM_POSE, x, y, 0.05, 1.0, 0.0, 0.0, 0.0])


@pytest.fixture(scope="module")
def simulation() -> TransferCubeSimulation:
    return TransferCubeSimulation()


@pytest.fixture
def expert(simulation: TransferCubeSimulation) -> AlohaTransferCubeExpert:
    return AlohaTransferCubeExpert(simulation.model)


def plan(expert: AlohaTransferCubeExpert, place: tuple[float, float]) -> np.ndarray:
    expert.reset(scene_state(*place))
    return np.array([expert.action(step) for step in range(len(expert))])


@pytest.mark.parametrize("seed", [0, 4, 9, 11, 17, 42])
def test_hands_the_cube_over_within_lerobots_episode(simulation, expert, seed):
    episode = simulation.run(expert, seed)

    assert episode.success
    assert len(episode.rewards) <= LEROBOT_EPISODE_LENGTH
    # Taken over in mid-air: reward 3 would mean that the left hand touched it on the table.
    assert set(episode.rewards) == {0, 1, 2, 4}


def test_right_gripper_has_let_go_at_the_end(simulation, expert):
    simulation.run(expert, 0)
    data = simulation._env.physics.data
    model = simulation.model
    cube = model.geom("red_box").id
    touching = {
        model.geom(geom).name
        for contact in data.contact
        if cube in (contact.geom1, contact.geom2)
        for geom in (contact.geom1, contact.geom2)
    }

    assert touching == {
        "red_box",
        "vx300s_left/10_left_gripper_finger",
        "vx300s_left/10_right_gripper_finger",
    }


def test_an_episode_records_what_it_did(simulation, expert):
    episode = simulation.run(expert, 3)
    steps = len(expert)

    assert episode.qpos.shape == (steps, len(scene_state(0, 0)))
    assert episode.states.shape == episode.actions.shape == (steps, 14)
    assert episode.states.dtype == episode.actions.dtype == np.float32
    np.testing.assert_allclose(episode.states[:, :6], episode.qpos[:, :6], atol=1e-6)
    np.testing.assert_allclose(episode.qpos[0, -7:], sample_box_pose(3))


def test_same_seed_gives_the_same_episode(simulation, expert):
    first = simulation.run(expert, 5)
    simulation.run(expert, 6)
    again = simulation.run(AlohaTransferCubeExpert(simulation.model), 5)

    np.testing.assert_array_equal(first.qpos, again.qpos)
    np.testing.assert_array_equal(first.actions, again.actions)


@pytest.mark.parametrize("place", PLACES)
def test_actions_stay_in_the_joints_limits(simulation, expert, place):
    actions = plan(expert, place)
    low, high = simulation.model.jnt_range.T

    for arm, first_qpos in enumerate((0, QPOS_PER_ARM)):
        joints = actions[:, arm * (ARM_DOF + 1) :][:, :ARM_DOF]
        limits = slice(first_qpos, first_qpos + ARM_DOF)
        assert (joints >= low[limits]).all()
        assert (joints <= high[limits]).all()
    assert (actions[:, GRIPPERS] >= 0).all()
    assert (actions[:, GRIPPERS] <= 1).all()


@pytest.mark.parametrize("place", PLACES)
def test_actions_are_smooth_from_the_reset_pose_on(expert, place):
    actions = plan(expert, place)
    arms = np.delete(actions, GRIPPERS, axis=1)

    np.testing.assert_allclose(arms[0], [*START_ARM_POSE[:6], *START_ARM_POSE[8:14]], atol=1e-6)
    assert np.abs(np.diff(arms, axis=0)).max() < 0.06  # Radians a step: 3 rad/s.
    assert np.abs(np.diff(arms, n=2, axis=0)).max() < 0.01  # A spinning wrist would exceed this.
    assert np.abs(np.diff(actions[:, GRIPPERS], axis=0)).max() < 0.16  # A stroke takes 0.2 s.
    np.testing.assert_array_equal(actions[-STABLE_STEPS:], np.tile(actions[-1], (STABLE_STEPS, 1)))


def test_min_jerk_starts_and_ends_at_rest():
    phase = np.linspace(0, 1, 101)
    way = min_jerk(phase)

    assert way[0] == 0
    assert way[-1] == pytest.approx(1)
    assert way[50] == pytest.approx(0.5)
    speed = np.gradient(way, phase)
    assert speed[0] == pytest.approx(0, abs=1e-2)
    assert speed.max() == pytest.approx(1.875, abs=1e-2)


def test_last_command_holds_past_the_end(expert):
    expert.reset(scene_state(0.1, 0.5))

    np.testing.assert_array_equal(expert.action(10_000), expert.action(len(expert) - 1))


def test_a_caller_cannot_change_the_plan(expert):
    expert.reset(scene_state(0.1, 0.5))
    expert.action(0)[:] = 7.0

    assert (expert.action(0) != 7.0).all()


def test_plans_from_a_gymnasium_environment(simulation, expert):
    env = gymnasium.make("gym_aloha/AlohaTransferCube-v0", obs_type="pixels_agent_pos")
    # As env.reset(seed=8) does, but without the images.
    BOX_POSE[0] = sample_box_pose(8)
    inner = env.unwrapped._env
    inner.task.initialize_episode(inner.physics)

    from_env = AlohaTransferCubeExpert.from_env(env)
    simulation.run(expert, 8)

    assert len(from_env) == len(expert)
    for step in range(len(expert)):
        np.testing.assert_array_equal(from_env.action(step), expert.action(step))


def test_action_before_reset_says_what_to_do(expert):
    with pytest.raises(RuntimeError, match=r"call reset\(qpos\) first"):
        expert.action(0)


def test_negative_step_is_refused(expert):
    expert.reset(scene_state(0.1, 0.5))

    with pytest.raises(ValueError, match="step must be at least 0, got -1"):
        expert.action(-1)


def test_cube_out_of_reach_is_refused(expert):
    with pytest.raises(ValueError, match=r"vx300s_right cannot reach .* x 0 to 0.2 m"):
        expert.reset(scene_state(-0.6, 0.5))


@pytest.mark.parametrize(("last", "success"), [(SUCCESS_REWARD, True), (2, False)])
def test_success_needs_the_cube_held_to_the_end(last, success):
    rewards = np.full(2 * STABLE_STEPS, float(SUCCESS_REWARD))
    rewards[-1] = last
    nothing = np.zeros((len(rewards), 14), np.float32)

    assert Episode(np.zeros((len(rewards), 23)), nothing, nothing, rewards).success is success
