"""motion_pi05: LeRobot's pi0.5, trained jointly with a motion head (arXiv 2512.18007)."""

from typing import Any

from lerobot.policies.pi05 import modeling_pi05
from lerobot.policies.pi05.modeling_pi05 import PI05Policy, PI05Pytorch

from lerobot_motion.joint.backbone import JointModel, building
from lerobot_motion.joint.policy import JointMotionPolicy
from lerobot_motion.motion_pi05.configuration_motion_pi05 import MotionPi05Config


class MotionPi05Model(JointModel, PI05Pytorch):
    """pi0.5's network with a motion head on its VLM."""


class MotionPi05Policy(JointMotionPolicy, PI05Policy):
    """LeRobot's pi0.5 that also learns to draw how the scene is about to move."""

    config_class = MotionPi05Config
    name = "motion_pi05"
    base_policy_type = "pi05"

    def __init__(
        self, config: MotionPi05Config, dataset_meta: Any | None = None, **kwargs: Any
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
        with building(modeling_pi05, MotionPi05Model, tiny=config.backbone == "tiny"):
            super().__init__(config, **kwargs)
