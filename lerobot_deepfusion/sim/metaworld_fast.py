"""`metaworld_fast`: LeRobot's Meta-World environment, rendered an order of magnitude faster.

LeRobot's `metaworld` always renders 480 x 480 with 4096-pixel shadow maps, which is nearly all of an
episode's time on a CPU. This environment is a subclass of it: same physics, camera, seeds, observation keys
and task sentences. Only the picture is smaller and has no shadows, the one that `reset` returns shows the state
(LeRobot's shows markers, and some things, where this episode does not have them), and episodes end after
`episode_length` steps, which LeRobot's environment ignores.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import gymnasium as gym
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.envs.configs import EnvConfig, MetaworldEnv

from ..inputs.depth_keys import depth_key
from .camera_names import CAMERAS, ON_THE_HAND, batch_keys
from .camera_poses import CAMERA_POSES
from .off_screen import draw_off_screen


@EnvConfig.register_subclass("metaworld_fast")
@dataclass
class MetaworldFastEnv(MetaworldEnv):
    """Environment config for `--env.type=metaworld_fast`.

    Attributes:
        task: one Meta-World v3 task, a comma-separated list, or a difficulty (`easy`, `medium`, `hard`,
            `very_hard`), as for LeRobot's `metaworld`; or `one-faucet-open` and `one-faucet-close`, one scene in
            which only the instruction says which way to turn.
        episode_length: steps until an episode counts as failed.
        observation_size: width and height of the frames, pixels.
        cameras: one of `CAMERAS`, which policies see as `observation.image`, or a comma-separated list, which they
            see as `observation.images.<name>`.
        goal_markers: whether pictures and depth show Meta-World's markers, which give goals away.
        depth: whether each camera gives its depth too, in millimetres, with intrinsics and pose (`depth_keys`).
        camera_poses: `fixed`, or a range of `camera_poses.py` from whose poses the seed of each episode draws where
            the cameras stand, other than those on the hand: `few_train`, `narrow_train`, `wide_train` and their
            `_held_out`.
        instruction: what policies are told to do, if not the task's own sentence; in the same words for every task.
    """

    task: str = "push-v3"
    episode_length: int = 150
    observation_size: int = 96
    cameras: str = "corner2"
    goal_markers: bool = True
    depth: bool = False
    camera_poses: str = "fixed"
    instruction: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.episode_length <= 500:
            raise ValueError(f"env.episode_length={self.episode_length}: Meta-World allows 1 to 500 steps")
        if self.observation_size < 16:
            raise ValueError(f"env.observation_size={self.observation_size}: needs at least 16 pixels")
        unknown = [name for name in self.camera_names if name not in CAMERAS]
        if unknown or not self.camera_names or len(set(self.camera_names)) < len(self.camera_names):
            raise ValueError(
                f"env.cameras={self.cameras!r}: name each once, comma-separated; there are {', '.join(CAMERAS)}"
            )
        if self.camera_poses not in CAMERA_POSES:
            raise ValueError(f"env.camera_poses={self.camera_poses!r}: there are {', '.join(CAMERA_POSES)}")
        if self.camera_poses != "fixed" and set(self.camera_names) <= set(ON_THE_HAND):
            raise ValueError(
                f"env.camera_poses={self.camera_poses} moves none of env.cameras={self.cameras}, which are on the "
                "robot's hand; leave it out"
            )
        size = self.observation_size
        self.features.pop("pixels/top", None)
        for name, key in batch_keys(self.camera_names).items():
            self._show("pixels/top" if len(self.camera_names) == 1 else f"pixels/{name}", key, (size, size, 3))
            if self.depth:
                self._show(f"depth/{name}", depth_key(key), (size, size, 1))

    def _show(self, name: str, key: str, shape: tuple[int, ...]) -> None:
        self.features[name] = PolicyFeature(type=FeatureType.VISUAL, shape=shape)
        self.features_map[name] = key

    @property
    def camera_names(self) -> tuple[str, ...]:
        return tuple(name.strip() for name in self.cameras.split(",") if name.strip())

    @property
    def gym_kwargs(self) -> dict[str, Any]:
        return {
            **super().gym_kwargs,
            "observation_width": self.observation_size,
            "observation_height": self.observation_size,
            "episode_length": self.episode_length,
            "cameras": self.camera_names,
            "goal_markers": self.goal_markers,
            "depth": self.depth,
            "camera_poses": self.camera_poses,
            "instruction": self.instruction,
        }

    def make(self, task: str) -> gym.Env:
        """One environment of a task."""
        draw_off_screen()
        from .metaworld_env import FastMetaworld

        return FastMetaworld(task, **self.gym_kwargs)

    def create_envs(self, n_envs: int, use_async_envs: bool = False) -> dict[str, dict[int, Any]]:
        """Vector environments as `{task or difficulty: {task id: env}}`, like LeRobot's `metaworld`."""
        draw_off_screen()
        from lerobot.envs.metaworld import DIFFICULTY_TO_TASKS
        from lerobot.envs.utils import freeze_after_episode_end

        def vector(task: str) -> gym.vector.VectorEnv:
            makers = [freeze_after_episode_end(partial(self.make, task))] * n_envs
            if use_async_envs and n_envs > 1:
                return gym.vector.AsyncVectorEnv(makers, context="forkserver")
            return gym.vector.SyncVectorEnv(makers)

        groups = [group.strip() for group in self.task.split(",") if group.strip()]
        return {
            group: {index: vector(task) for index, task in enumerate(DIFFICULTY_TO_TASKS.get(group, [group]))}
            for group in groups
        }
