"""`metaworld_fast`: LeRobot's Meta-World environment, rendered an order of magnitude faster.

LeRobot's `metaworld` always renders 480 x 480 with 4096-pixel shadow maps, which is nearly all of an
episode's time on a CPU. This environment is the same object (a subclass: same physics, camera, seeds,
observation keys and task sentences); only the picture is smaller, has no shadows and is rendered once
a step. Episodes end after `episode_length` steps, which LeRobot's environment ignores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.envs.configs import EnvConfig, MetaworldEnv

# Frames are rendered twice as large and averaged: on a software renderer, which spends its time on the
# robot's 67,000 faces and not on pixels, this costs less than multisampling (27 against 39 ms a frame).
SUPERSAMPLING = 2


@EnvConfig.register_subclass("metaworld_fast")
@dataclass
class MetaworldFastEnv(MetaworldEnv):
    """Environment config for `--env.type=metaworld_fast`.

    Attributes:
        task: one Meta-World v3 task, a comma-separated list, or a difficulty (`easy`, `medium`, `hard`,
            `very_hard`), as for LeRobot's `metaworld`.
        episode_length: steps until an episode counts as failed.
        observation_size: width and height of the frames, pixels.
    """

    task: str = "push-v3"
    episode_length: int = 150
    observation_size: int = 96

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.episode_length < 1 or self.episode_length > 500:
            raise ValueError(f"env.episode_length={self.episode_length}: Meta-World allows 1 to 500 steps")
        if self.observation_size < 16:
            raise ValueError(f"env.observation_size={self.observation_size}: needs at least 16 pixels")
        shape = (self.observation_size, self.observation_size, 3)
        self.features["pixels/top"] = PolicyFeature(type=FeatureType.VISUAL, shape=shape)

    @property
    def gym_kwargs(self) -> dict[str, Any]:
        return {
            **super().gym_kwargs,
            "observation_width": self.observation_size,
            "observation_height": self.observation_size,
            "episode_length": self.episode_length,
        }

    def create_envs(self, n_envs: int, use_async_envs: bool = False) -> dict[str, dict[int, Any]]:
        """Vector environments as `{task or difficulty: {task id: env}}`, like LeRobot's `metaworld`."""
        from lerobot.envs.metaworld import DIFFICULTY_TO_TASKS
        from lerobot.envs.utils import freeze_after_episode_end

        vec_env = gym.vector.AsyncVectorEnv if use_async_envs and n_envs > 1 else gym.vector.SyncVectorEnv
        groups = [group.strip() for group in self.task.split(",") if group.strip()]
        return {
            group: {
                task_id: vec_env([freeze_after_episode_end(partial(make_env, task, **self.gym_kwargs))] * n_envs)
                for task_id, task in enumerate(DIFFICULTY_TO_TASKS.get(group, [group]))
            }
            for group in groups
        }


def shrink(image: np.ndarray, factor: int) -> np.ndarray:
    """Average blocks of `factor` x `factor` pixels: uint8 (H, W, 3) -> uint8 (H / factor, W / factor, 3)."""
    height, width, channels = image.shape
    blocks = image.reshape(height // factor, factor, width // factor, factor, channels)
    return (blocks.sum((1, 3), dtype=np.uint16) // factor**2).astype(np.uint8)


def make_env(task: str, **kwargs: Any) -> gym.Env:
    """One environment. Meta-World is imported here, so that the config alone does not need it.

    Args:
        task: a Meta-World v3 task name such as `push-v3`.
        kwargs: `observation_width`, `observation_height`, `episode_length`, and what LeRobot's env takes.

    Raises:
        ValueError: if the task does not exist; the message lists those that do.
    """
    from lerobot.envs import metaworld as stock

    name = task.removeprefix("metaworld-")
    if name not in stock.TASK_DESCRIPTIONS:
        raise ValueError(f"no Meta-World task {task!r}; there are {', '.join(sorted(stock.TASK_DESCRIPTIONS))}")
    return _fast_env_class()(name, **kwargs)


def _fast_env_class() -> Callable[..., gym.Env]:
    from lerobot.envs import metaworld as stock
    from metaworld import MT1

    class FastMetaworld(stock.MetaworldEnv):
        def __init__(self, task: str, episode_length: int = 500, **kwargs: Any) -> None:
            super().__init__(task, **kwargs)
            self._max_episode_steps = episode_length
            self._frame: np.ndarray | None = None
            self._pictures = True

        def _ensure_env(self) -> None:
            # LeRobot's own set-up with another size, and quality settings that the renderer reads
            # when it is first used.
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
            observation, info = super().reset(seed=seed, **kwargs)
            self._frame = observation["pixels"]
            return observation, info

        def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            result = super().step(action)
            # Set after the parent's step, which resets a finished episode: the video then ends with
            # the success and not with the next start.
            self._frame = result[0]["pixels"]
            return result

        @contextmanager
        def without_pictures(self) -> Iterator[None]:
            """Physics only: observations have no pixels inside this block."""
            self._pictures = False
            try:
                yield
            finally:
                self._pictures = True

        def render(self) -> np.ndarray:
            return super().render() if self._frame is None else self._frame

        def _format_raw_obs(self, raw_obs: np.ndarray) -> Any:
            self.raw_observation = raw_obs  # float64[39], the full state: for scripted experts only
            if not self._pictures:
                return {"pixels": None, "agent_pos": raw_obs[:4]}
            observation = super()._format_raw_obs(raw_obs)
            observation["pixels"] = shrink(observation["pixels"], SUPERSAMPLING)
            return observation

    return FastMetaworld
