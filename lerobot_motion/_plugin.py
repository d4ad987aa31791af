"""Installed as the module `lerobot_policy_motion`, which LeRobot imports in each of its commands.

Importing the configurations registers the types of policies, and, in `sim`, of the environment, the
robot and the teleoperator that are simulated; importing the steps lets saved processor pipelines
load; the hooks show a training run to the policy it builds, and compare a robot with the policy
that is to drive it.
"""

import lerobot_motion.motion_pi0.configuration_motion_pi0
import lerobot_motion.motion_pi05.configuration_motion_pi05
import lerobot_motion.sim.config_aloha_sim
import lerobot_motion.sim.config_aloha_sim_expert
import lerobot_motion.sim.robotwin_randomized
import lerobot_motion.steps  # noqa: F401
from lerobot_motion.joint.driving import install_rollout_hook
from lerobot_motion.training.run import install_run_hook

install_run_hook()
install_rollout_hook()
