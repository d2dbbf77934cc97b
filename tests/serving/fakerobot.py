"""A robot for LeRobot's engines: it is where it was last sent, and on disconnecting writes down all it was sent."""

from __future__ import annotations

import json
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lerobot.robots import Robot, RobotConfig

JOINTS = ("shoulder.pos", "elbow.pos", "gripper.pos")
STATE = (*JOINTS, "base.vel")
FRAME = (720, 1280, 3)  # above 2 MB, which LeRobot's client sends in two pieces


@RobotConfig.register_subclass("fake")
@dataclass(kw_only=True)
class FakeRobotConfig(RobotConfig):
    # File for the actions, a JSON list.
    record: Path
    # After so many actions the robot's user presses Ctrl-C.
    actions: int = 20
    camera: str = "front"
    # Whether it measures depth, as LeRobot's robots give it: whole millimetres of 16 bits.
    depth: bool = False


class FakeRobot(Robot):
    config_class = FakeRobotConfig
    name = "fake"
    is_connected = False
    is_calibrated = True

    def __init__(self, config: FakeRobotConfig) -> None:
        super().__init__(config)
        self.config = config
        self.sent: list[dict[str, float]] = []
        self.state = dict.fromkeys(STATE, 1.0)
        random = np.random.default_rng(0)
        self.frame = random.integers(0, 255, FRAME, dtype=np.uint8)
        # A wall from half a metre to two, and nothing coming back from the upper left.
        wall = np.linspace(500, 2000, FRAME[1])[None, :, None] + random.integers(0, 20, (*FRAME[:2], 1))
        self.depth = wall.astype(np.uint16)
        self.depth[: FRAME[0] // 3, : FRAME[1] // 3] = 0

    @property
    def observation_features(self) -> dict[str, Any]:
        depth = {f"{self.config.camera}_depth": (*FRAME[:2], 1)} if self.config.depth else {}
        return {**dict.fromkeys(STATE, float), self.config.camera: FRAME, **depth}

    @property
    def action_features(self) -> dict[str, Any]:
        return dict.fromkeys(JOINTS, float)

    def connect(self, calibrate: bool = True) -> None:
        self.is_connected = True

    def calibrate(self) -> None: ...

    def configure(self) -> None: ...

    def get_observation(self) -> dict[str, Any]:
        depth = {f"{self.config.camera}_depth": self.depth} if self.config.depth else {}
        return {**self.state, self.config.camera: self.frame, **depth}

    def send_action(self, action: dict[str, float]) -> dict[str, float]:
        self.sent.append(action)
        self.state |= action
        if len(self.sent) == self.config.actions:
            signal.raise_signal(signal.SIGINT)
        return action

    def disconnect(self) -> None:
        self.is_connected = False
        self.config.record.write_text(json.dumps(self.sent))
