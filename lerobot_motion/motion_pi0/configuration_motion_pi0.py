"""Configuration of motion_pi0."""

from dataclasses import dataclass

from lerobot.configs import PreTrainedConfig
from lerobot.policies.pi0.configuration_pi0 import PI0Config

from lerobot_motion.joint.configuration import JointMotionConfig


@PreTrainedConfig.register_subclass("motion_pi0")
@dataclass
class MotionPi0Config(JointMotionConfig, PI0Config):
    """LeRobot's pi0 with joint learning of motion images (arXiv 2512.18007)."""
