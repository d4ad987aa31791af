"""Configuration of motion_pi05."""

from dataclasses import dataclass

from lerobot.configs import PreTrainedConfig
from lerobot.policies.pi05.configuration_pi05 import PI05Config

from lerobot_motion.joint.configuration import JointMotionConfig


@PreTrainedConfig.register_subclass("motion_pi05")
@dataclass
class MotionPi05Config(JointMotionConfig, PI05Config):
    """LeRobot's pi0.5 with joint learning of motion images (arXiv 2512.18007)."""
