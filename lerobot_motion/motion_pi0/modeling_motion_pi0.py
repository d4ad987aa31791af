"""motion_pi0: LeRobot's pi0, trained jointly with a motion head (arXiv 2512.18007)."""

from typing import Any

from lerobot.policies.pi0 import modeling_pi0
from lerobot.policies.pi0.modeling_pi0 import PI0Policy, PI0Pytorch

from lerobot_motion.joint.backbone import JointModel, building
from lerobot_motion.joint.policy import JointMotionPolicy
from lerobot_motion.motion_pi0.configuration_motion_pi0 import MotionPi0Config


class MotionPi0Model(JointModel, PI0Pytorch):
    """pi0's network with a motion head on its VLM."""


class MotionPi0Policy(JointMotionPolicy, PI0Policy):
    """LeRobot's pi0 that also learns to draw how the scene is about to move."""

    config_class = MotionPi0Config
    name = "motion_pi0"
    base_policy_type = "pi0"

    def __init__(
        self, config: MotionPi0Config, dataset_meta: Any | None = None, **kwargs: Any
    ) -> None:
        """Build the policy with fresh weights; `from_pretrained` loads some.

        Args:
            config: The configuration; what it leaves open is settled from the VAE and the dataset.
            dataset_meta: Metadata of the training dataset; LeRobot's make_policy passes it.
            **kwargs: Passed on to LeRobot.

        Raises:
            OSError: If the VAE's configuration cannot be read.
            ValueError: If the dataset cannot teach motion.
        """
        self.settle(config, dataset_meta)
        with building(modeling_pi0, MotionPi0Model, tiny=config.backbone == "tiny"):
            super().__init__(config, **kwargs)
