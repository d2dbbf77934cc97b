"""The environment behind `metaworld_fast`; imports Meta-World, which the config beside it does not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from lerobot.envs.metaworld import TASK_DESCRIPTIONS, MetaworldEnv
from metaworld import MT1

# Frames are rendered twice as large and averaged: on a software renderer, which spends its time on the
# robot's 67,000 faces and not on pixels, this costs less than multisampling (27 against 39 ms a frame).
SUPERSAMPLING = 2


class FastMetaworld(MetaworldEnv):
    """LeRobot's `MetaworldEnv` with a small picture without shadows, rendered once a step.

    Args:
        task: a Meta-World v3 task such as `push-v3`.
        episode_length: steps until an episode is cut off.
        kwargs: `observation_width` and `observation_height` in pixels, and what LeRobot's takes.

    Raises:
        ValueError: if the task does not exist; the message lists those that do.
    """

    _env: Any

    def __init__(self, task: str, episode_length: int = 500, **kwargs: Any) -> None:
        if task.removeprefix("metaworld-") not in TASK_DESCRIPTIONS:
            raise ValueError(f"no Meta-World task {task!r}; there are {', '.join(sorted(TASK_DESCRIPTIONS))}")
        super().__init__(task, **kwargs)
        self._max_episode_steps = episode_length
        self._frame: np.ndarray | None = None
        self._pictures = True
        self._stepping = False

    def _ensure_env(self) -> None:
        # LeRobot's own set-up with another size, and quality settings that the renderer reads when it is
        # first used.
        if self._env is not None:
            return
        mt1 = MT1(self.task, seed=42)
        env = mt1.train_classes[self.task](
            render_mode=self.render_mode,
            camera_name=self.camera_name,
            width=SUPERSAMPLING * self.observation_width,
            height=SUPERSAMPLING * self.observation_height,
        )
        env.model.vis.quality.shadowsize = 0
        env.model.vis.quality.offsamples = 0
        env.set_task(mt1.train_tasks[0])
        if self.camera_name == "corner2":
            env.model.cam_pos[2] = [0.75, 0.075, 0.7]
        env.reset()
        env._freeze_rand_vec = False
        env.seeded_rand_vec = True
        self._env = env

    def reset(self, seed: int | None = None, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        # LeRobot's step resets a finished episode at once, and the vector environment resets it again: the
        # first of the two is a wasted picture, and would be the last one of the video.
        return ({}, {}) if self._stepping else super().reset(seed=seed, **kwargs)

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._stepping = True
        try:
            return super().step(action)
        finally:
            self._stepping = False

    def render(self) -> np.ndarray:
        """The picture of the last observation, at the size at which it was rendered."""
        return super().render() if self._frame is None else self._frame

    @contextmanager
    def without_pictures(self) -> Iterator[None]:
        """Physics only: observations have no pixels inside this block."""
        self._pictures = False
        try:
            yield
        finally:
            self._pictures = True

    def _format_raw_obs(self, raw_obs: np.ndarray) -> dict[str, Any]:
        self.raw_observation = raw_obs  # float64[39], the full state: for scripted experts only
        if not self._pictures:
            return {"pixels": None, "agent_pos": raw_obs[:4]}
        observation = super()._format_raw_obs(raw_obs)
        self._frame = observation["pixels"]
        observation["pixels"] = shrink(self._frame, SUPERSAMPLING)
        return observation


def shrink(image: np.ndarray, factor: int) -> np.ndarray:
    """Average blocks of `factor` x `factor` pixels: uint8 (H, W, 3) -> uint8 (H / factor, W / factor, 3)."""
    height, width, channels = image.shape
    blocks = image.reshape(height // factor, factor, width // factor, factor, channels)
    return (blocks.sum((1, 3), dtype=np.uint16) // factor**2).astype(np.uint8)
