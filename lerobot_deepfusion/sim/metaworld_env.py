"""The environment behind `metaworld_fast`; imports Meta-World, which the config beside it does not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mujoco
import numpy as np
from gymnasium import spaces
from lerobot.envs.metaworld import TASK_DESCRIPTIONS, MetaworldEnv
from metaworld import MT1

from . import one_faucet

# Frames are rendered twice as large and averaged: on a software renderer, which spends its time on the
# robot's 67,000 faces and not on pixels, this costs less than multisampling (27 against 39 ms a frame).
SUPERSAMPLING = 2
UPSIDE_DOWN = ("corner", "corner2", "corner3")  # the cameras that Meta-World mounts that way


def sentence(task: str) -> str:
    """The instruction of a task; KeyError if there is none of that name."""
    _, known_as = one_faucet.TASKS.get(task, (None, task))
    return TASK_DESCRIPTIONS[known_as]


class FastMetaworld(MetaworldEnv):
    """LeRobot's `MetaworldEnv` with a small picture without shadows, rendered once a step.

    Args:
        task: a Meta-World v3 task such as `push-v3`, or one of `one_faucet`.
        goal_markers: whether the picture shows what Meta-World marks: goals, and places on things. `one_faucet`'s
            tasks have no markers.
        episode_length: steps until an episode is cut off.
        cameras: names of Meta-World's cameras; with one, `pixels` is its picture, with several a dict of them.
        kwargs: `observation_width` and `observation_height` in pixels, and what LeRobot's takes.

    Raises:
        ValueError: if the task does not exist; the message lists those that do.
    """

    _env: Any
    observation_space: spaces.Dict

    def __init__(
        self,
        task: str,
        episode_length: int = 500,
        cameras: tuple[str, ...] = ("corner2",),
        goal_markers: bool = True,
        **kwargs: Any,
    ) -> None:
        name = task.removeprefix("metaworld-")
        self._simulator: Any
        self._simulator, self._known_as = one_faucet.TASKS.get(name, (None, name))
        if self._known_as not in TASK_DESCRIPTIONS:
            known = sorted([*TASK_DESCRIPTIONS, *one_faucet.TASKS])
            raise ValueError(f"no Meta-World task {task!r}; there are {', '.join(known)}")
        super().__init__(self._known_as, camera_name=cameras[0], **kwargs)
        self.task = name
        self.cameras = cameras
        self._markers = goal_markers and self._simulator is None
        if len(cameras) > 1:
            picture = self.observation_space["pixels"]
            self.observation_space = spaces.Dict(
                {**self.observation_space.spaces, "pixels": spaces.Dict(dict.fromkeys(cameras, picture))}
            )
        self._max_episode_steps = episode_length
        self._frame: np.ndarray | None = None
        self._seen: dict[str, np.ndarray | None] = {}
        self._pictures = True
        self._look_every, self._steps = 1, 0
        self._stepping = False

    def _ensure_env(self) -> None:
        # LeRobot's own set-up with another size, and quality settings that the renderer reads when it is
        # first used.
        if self._env is not None:
            return
        mt1 = MT1(self._known_as, seed=42)
        simulator = self._simulator or mt1.train_classes[self._known_as]
        env = simulator(
            render_mode=self.render_mode,
            camera_name=self.camera_name,
            width=SUPERSAMPLING * self.observation_width,
            height=SUPERSAMPLING * self.observation_height,
        )
        env.model.vis.quality.shadowsize = 0
        env.model.vis.quality.offsamples = 0
        if not self._markers:
            hide_markers(env.model)
        env.set_task(mt1.train_tasks[0])
        env.model.cam_pos[2] = [0.75, 0.075, 0.7]  # corner2, nearer to the table
        env.reset()
        env._freeze_rand_vec = False
        env.seeded_rand_vec = True
        self._env = env

    def reset(self, seed: int | None = None, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        # LeRobot's step resets a finished episode at once, and the vector environment resets it again: the
        # first of the two is a wasted picture, and would be the last one of the video.
        if self._stepping:
            return {}, {}
        self._steps = 0
        return super().reset(seed=seed, **kwargs)

    def look_every(self, steps: int) -> None:
        """From the next reset on, take a new picture only every so many steps and repeat it in between.

        For a policy that executes so many actions before it looks again; rendering is nearly all of an episode's
        time.
        """
        self._look_every = steps

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._stepping = True
        self._steps += 1
        try:
            return super().step(action)
        finally:
            self._stepping = False

    def render(self) -> np.ndarray:
        """The first camera's picture of the last observation, at the size at which it was rendered."""
        return self._picture(self.cameras[0]) if self._frame is None else self._frame

    def _picture(self, camera: str) -> np.ndarray:
        renderer = self._env.mujoco_renderer
        if renderer.viewer is not None:
            # Another simulator of this process may have rendered since, and MuJoCo draws into whichever OpenGL
            # context is current: black, once that other one is closed.
            renderer.viewer.make_context_current()
        renderer.camera_id = mujoco.mj_name2id(self._env.model, mujoco.mjtObj.mjOBJ_CAMERA, camera)
        image = renderer.render("rgb_array")
        return np.flip(image, (0, 1)) if camera in UPSIDE_DOWN else image

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
            self._seen = dict.fromkeys(self.cameras)
        elif self._steps % self._look_every == 0:
            if self._steps == 0:
                # Meta-World's reset draws places twice, and returns before the simulator carries the second ones
                # forward: the picture would show markers, and some things, where they were put first and are not, as
                # LeRobot's does. A forward step changes only what follows from the state, and so nothing to come.
                mujoco.mj_forward(self._env.model, self._env.data)
            frames = {camera: self._picture(camera) for camera in self.cameras}
            self._frame = frames[self.cameras[0]]
            self._seen = {camera: shrink(frame, SUPERSAMPLING) for camera, frame in frames.items()}
        pixels = self._seen if len(self.cameras) > 1 else self._seen[self.cameras[0]]
        observation = {"pixels": pixels, "agent_pos": raw_obs[:4]}
        return {key: observation[key] for key in self.observation_space.spaces}


def hide_markers(model: mujoco.MjModel) -> None:
    """Draw no sites, which is how Meta-World marks goals, and places on things.

    They touch nothing, so nothing that happens changes. No rule says which of them a task calls its goal: `push-v3`
    marks its own in one, `coffee-push-v3` in two of which it names the other one. So all go.
    """
    model.site_group[:] = mujoco.mjNGROUP - 1  # renderers draw the first three groups


def shrink(image: np.ndarray, factor: int) -> np.ndarray:
    """Average blocks of `factor` x `factor` pixels: uint8 (H, W, 3) -> uint8 (H / factor, W / factor, 3)."""
    height, width, channels = image.shape
    blocks = image.reshape(height // factor, factor, width // factor, factor, channels)
    return (blocks.sum((1, 3), dtype=np.uint16) // factor**2).astype(np.uint8)
