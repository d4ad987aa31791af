"""Configuration of the simulated robot: `--robot.type=aloha_sim`.

LeRobot finds the robot through the names: `AlohaSimConfig` in `config_aloha_sim.py` leads it to
`AlohaSim` in `aloha_sim.py`. This module is imported by every LeRobot command and needs neither
MuJoCo nor gym-aloha.
"""

import math
from dataclasses import dataclass, field

from lerobot.robots.config import RobotConfig

from lerobot_motion.config_errors import logged_refusal

CONTROL_HZ = 50
"""Control steps per second of gym-aloha."""
CAMERAS = (
    "top",
    "angle",
    "front_close",
    "left_pillar",
    "right_pillar",
    "left_wrist",
    "right_wrist",
)
"""Cameras of gym-aloha's scene."""
_JOINTS = (
    "waist",
    "shoulder",
    "elbow",
    "forearm_roll",
    "wrist_angle",
    "wrist_rotate",
    "gripper",
)
JOINT_KEYS = tuple(f"{arm}_arm_{joint}.pos" for arm in ("left", "right") for joint in _JOINTS)
"""Keys of states and actions, in gym-aloha's order: radians; grippers 0 (shut) to 1 (open)."""


@RobotConfig.register_subclass("aloha_sim")
@dataclass(kw_only=True)
class AlohaSimConfig(RobotConfig):
    """Two simulated ViperX arms and a cube: gym-aloha's TransferCube as a robot."""

    # Cameras to look through: top, angle, front_close, left_pillar, right_pillar, left_wrist and
    # right_wrist.
    camera_names: list[str] = field(default_factory=lambda: ["top"])
    # Height of the images in pixels. `lerobot-eval --env.type=aloha` shows a policy 480.
    height: int = 480
    # Width of the images in pixels. `lerobot-eval --env.type=aloha` shows a policy 640.
    width: int = 640
    # Coarser shadows and edges: several times faster where a CPU renders.
    draft: bool = False
    # Rate at which actions come, a divisor of 50; give the command the same (--fps, --dataset.fps).
    # Each action moves the scene on by 1/fps seconds, however long the command took over it.
    fps: int = 50
    # Let the scene move on by the wall's clock instead, as the world does under a real robot: the
    # last action holds until the next one comes.
    real_time: bool = False
    # Where the cube lies: episode i of a recording starts from seed + i, anything else from seed.
    seed: int = 0
    # Rehearse a failure: seconds of the scene's time after which the cameras give no more frames.
    camera_fails_after_s: float | None = None

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: If one cannot be simulated.
        """
        super().__post_init__()
        with logged_refusal():
            self._validate()

    def _validate(self) -> None:
        unknown = [name for name in self.camera_names if name not in CAMERAS]
        if unknown or len(set(self.camera_names)) < len(self.camera_names):
            raise ValueError(
                f"camera_names must be different ones of {', '.join(CAMERAS)}; got "
                f"{', '.join(self.camera_names)}."
            )
        for name in ("height", "width"):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"{name} must be at least 1 pixel, got {value}.")
        if self.fps < 1 or CONTROL_HZ % self.fps:
            allowed = ", ".join(str(n) for n in range(1, CONTROL_HZ + 1) if CONTROL_HZ % n == 0)
            raise ValueError(f"fps must divide {CONTROL_HZ} (one of {allowed}), got {self.fps}.")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must lie in 0 to 2**32 - 1, got {self.seed}.")
        after = self.camera_fails_after_s
        if after is not None and not (math.isfinite(after) and after >= 0):
            raise ValueError(f"camera_fails_after_s must be 0 or more seconds, got {after}.")
