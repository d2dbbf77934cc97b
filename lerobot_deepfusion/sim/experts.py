"""Scripted experts: an environment, what to record of it, and who acts.

An expert yields frames for `LeRobotDataset.add_frame`, at exactly the observation that `lerobot-eval` gives
to a policy. It may see the simulator's state, which the policy never does.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from lerobot.utils.constants import OBS_IMAGE, OBS_IMAGES

EPISODE_LENGTH = 200  # Meta-World; an expert that has not succeeded by then is stuck


class Expert(Protocol):
    """What the recorder needs of a simulator."""

    fps: int
    robot_type: str
    features: dict[str, Any]

    def episode(self, seed: int) -> list[dict[str, Any]] | None:
        """The frames of one episode, or None if the expert failed it."""

    def close(self) -> None: ...


def make(simulator: str, task: str, *, size: int, noise: float, cameras: str = "") -> Expert:
    """Build an expert.

    Args:
        simulator: `metaworld` or `pusht`.
        task: the task's name there.
        size: frame width and height, pixels.
        noise: standard deviation of the noise on executed actions, in units of the action's half range.
        cameras: comma-separated names of Meta-World's cameras; by default the one that LeRobot shows.

    Raises:
        ValueError: for an unknown simulator, task or camera, and for what a simulator can't do.
    """
    if simulator == "metaworld":
        return MetaworldExpert(task, size, noise, cameras or "corner2")
    if simulator == "pusht":
        from lerobot_deepfusion.sim.pusht_planner import PushTExpert

        if cameras:
            raise ValueError(f"--cameras={cameras}: PushT has one camera, leave it out")
        return PushTExpert(size, noise)
    raise ValueError(f"no simulator {simulator!r}; there are 'metaworld' and 'pusht'")


def image_state_action_features(
    size: int, state: list[str], action: list[str], cameras: Sequence[str] = (OBS_IMAGE,)
) -> dict[str, Any]:
    """Data set features of square RGB cameras, given by their keys, a state vector and an action vector."""
    picture = {"dtype": "image", "shape": (size, size, 3), "names": ["height", "width", "channels"]}
    return {
        **dict.fromkeys(cameras, picture),
        "observation.state": {"dtype": "float32", "shape": (len(state),), "names": state},
        "action": {"dtype": "float32", "shape": (len(action),), "names": action},
    }


class MetaworldExpert:
    """Meta-World's own scripted policy for each of its 50 tasks.

    With noise, the executed action is disturbed and the recorded one is not (DART, Laskey et al. 2017), so
    that the data cover the states around the expert's path with the way back.
    """

    robot_type = "sawyer"

    def __init__(self, task: str, size: int, noise: float, cameras: str) -> None:
        os.environ.setdefault("MUJOCO_GL", "egl")
        os.environ.setdefault("LP_NUM_THREADS", "1")  # Mesa's software renderer: workers, not threads
        from lerobot_deepfusion.sim.metaworld_fast import MetaworldFastEnv

        config = MetaworldFastEnv(observation_size=size, episode_length=EPISODE_LENGTH, cameras=cameras)
        # Meta-World's reset depends, in the last digits, on what came before; so the try-out has a simulator
        # of its own, and the one that is recorded sees what an evaluated one sees.
        self.env: Any = config.make(task)
        self.tryout: Any = config.make(task)
        self.fps = config.fps
        self.noise = noise
        names = config.camera_names
        self.cameras = [OBS_IMAGE] if len(names) == 1 else [f"{OBS_IMAGES}.{name}" for name in names]
        self.features = image_state_action_features(
            size, ["x", "y", "z", "gripper"], ["dx", "dy", "dz", "gripper"], self.cameras
        )

    def succeeds(self, seed: int) -> bool:
        """Tried without pictures: physics takes a millisecond a step and a frame takes 25."""
        with self.tryout.without_pictures():
            return sum(1 for _ in self._run(self.tryout, seed)) < EPISODE_LENGTH

    def episode(self, seed: int) -> list[dict[str, Any]] | None:
        if not self.succeeds(seed):
            return None
        frames = list(self._run(self.env, seed))
        return frames if len(frames) < EPISODE_LENGTH else None

    def _run(self, env: Any, seed: int) -> Iterator[dict[str, Any]]:
        """Frames until success or the step limit."""
        rng = np.random.default_rng(seed)
        observation, _ = env.reset(seed=seed)
        for _ in range(EPISODE_LENGTH):
            action = env.expert_policy.get_action(env.raw_observation)
            action = np.clip(action, -1, 1).astype(np.float32)
            pixels = observation["pixels"]
            pictures = pixels.values() if isinstance(pixels, dict) else [pixels]
            yield {
                **dict(zip(self.cameras, pictures, strict=True)),
                "observation.state": observation["agent_pos"].astype(np.float32),
                "action": action,
                "task": env.task_description,
            }
            executed = action.copy()
            executed[:3] += rng.normal(0, self.noise, 3)  # not the gripper
            observation, _, terminated, _, _ = env.step(np.clip(executed, -1, 1))
            if terminated:
                return

    def close(self) -> None:
        self.env.close()
        self.tryout.close()
