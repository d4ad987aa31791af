"""A robot that is not there: it sees noise and writes down what it is told to do."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lerobot.robots import Robot, RobotConfig

CAMERAS = ("top", "wrist")


@RobotConfig.register_subclass("mock_motion")
@dataclass
class MockMotionConfig(RobotConfig):
    # File to which every action is appended, one JSON object a line.
    actions_path: Path = Path("actions.jsonl")
    num_joints: int = 6
    num_actions: int = 5
    height: int = 48
    width: int = 64


class MockMotion(Robot):
    config_class = MockMotionConfig
    name = "mock_motion"

    def __init__(self, config: MockMotionConfig) -> None:
        super().__init__(config)
        self.config = config
        self.random = np.random.default_rng(0)
        self.connected = False

    @property
    def action_features(self) -> dict[str, Any]:
        return {f"j{i}.pos": float for i in range(self.config.num_actions)}

    @property
    def observation_features(self) -> dict[str, Any]:
        joints = {f"j{i}.pos": float for i in range(self.config.num_joints)}
        return joints | dict.fromkeys(CAMERAS, (self.config.height, self.config.width, 3))

    @property
    def is_connected(self) -> bool:
        return self.connected

    @property
    def is_calibrated(self) -> bool:
        return True

    def connect(self, calibrate: bool = True) -> None:
        self.connected = True

    def calibrate(self) -> None: ...

    def configure(self) -> None: ...

    def get_observation(self) -> dict[str, Any]:
        return {
            key: self.random.integers(0, 256, kind, dtype=np.uint8)
            if isinstance(kind, tuple)
            else float(self.random.normal())
            for key, kind in self.observation_features.items()
        }

    def send_action(self, action: dict[str, Any]) -> dict[str, Any]:
        with self.config.actions_path.open("a") as file:
            file.write(json.dumps({key: float(value) for key, value in action.items()}) + "\n")
        return action

    def disconnect(self) -> None:
        self.connected = False
