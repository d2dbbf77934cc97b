"""Meta-World's scripted experts as the recorder takes them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from .camera_names import batch_keys
from .depth_camera import metres
from .metaworld_fast import MetaworldFastEnv
from .scripted_expert import depth_features, image_state_action_features

EPISODE_LENGTH = 200  # an expert that has not succeeded by then is stuck


class MetaworldExpert:
    """Meta-World's own scripted policy for each of its 50 tasks.

    With noise, the executed action is disturbed and the recorded one is not (DART, Laskey et al. 2017), so
    that the data cover the states around the expert's path with the way back.
    """

    robot_type = "sawyer"

    def __init__(self, task: str, size: int, noise: float, **options: Any) -> None:
        """`options` are those of `MetaworldFastEnv`: cameras, goal_markers, depth, camera_poses."""
        os.environ.setdefault("LP_NUM_THREADS", "1")  # Mesa's software renderer: workers, not threads
        config = MetaworldFastEnv(observation_size=size, episode_length=EPISODE_LENGTH, **options)
        # Meta-World's reset depends, in the last digits, on what came before; so the try-out has a simulator
        # of its own, and the one that is recorded sees what an evaluated one sees.
        self.env: Any = config.make(task)
        self.tryout: Any = config.make(task)
        self.fps = config.fps
        self.noise = noise
        self.cameras = list(batch_keys(config.camera_names).values())
        self.features = image_state_action_features(
            size, ["x", "y", "z", "gripper"], ["dx", "dy", "dz", "gripper"], self.cameras
        )
        if config.depth:
            self.features |= depth_features(size, self.tryout.get_wrapper_attr("calibration")())

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
                **self._depth(observation),
                "observation.state": observation["agent_pos"].astype(np.float32),
                "action": action,
                "task": env.task_description,
            }
            executed = action.copy()
            executed[:3] += rng.normal(0, self.noise, 3)  # not the gripper
            observation, _, terminated, _, _ = env.step(np.clip(executed, -1, 1))
            if terminated:
                return

    def _depth(self, observation: dict[str, Any]) -> dict[str, np.ndarray]:
        """Depth in metres, which is how LeRobot takes decimals, and what of intrinsics and pose has a column."""
        seen = {f"observation.{key}": value for key, value in observation.items()}
        return {
            key: metres(value) if self.features[key]["dtype"] == "image" else value
            for key, value in seen.items()
            if key in self.features
        }

    def close(self) -> None:
        self.env.close()
        self.tryout.close()
