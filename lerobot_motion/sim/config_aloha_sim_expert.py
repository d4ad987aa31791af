"""Configuration of the scripted expert as a teleoperator: `--teleop.type=aloha_sim_expert`.

LeRobot finds the teleoperator through the names: `AlohaSimExpertConfig` in
`config_aloha_sim_expert.py` leads it to `AlohaSimExpert` in `aloha_sim_expert.py`. This module is
imported by every LeRobot command and needs neither MuJoCo nor mink.
"""

from dataclasses import dataclass

from lerobot.teleoperators.config import TeleoperatorConfig

from lerobot_motion.config_errors import logged_refusal


@TeleoperatorConfig.register_subclass("aloha_sim_expert")
@dataclass(kw_only=True)
class AlohaSimExpertConfig(TeleoperatorConfig):
    """The scripted expert that hands the cube over, in the place of a human with leader arms."""

    # The --robot.id of the aloha_sim robot to drive. Null: the only one of this process.
    robot_id: str | None = None
    # Pace: 1 hands the cube over in 4 s of the scene's time. Below 25 actions a second the arms
    # jerk and lose the cube at that pace: choose about fps / 25, such as 0.4 at 10.
    speed: float = 1.0

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: If the pace is not above 0 and at most 1.
        """
        with logged_refusal():
            if not 0 < self.speed <= 1:
                raise ValueError(f"speed must be above 0 and at most 1, got {self.speed}.")
