"""The environment behind `metaworld_fast`; imports Meta-World, which the config beside it does not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import metaworld
import mujoco
import numpy as np
from gymnasium import spaces
from lerobot.envs.metaworld import TASK_DESCRIPTIONS, MetaworldEnv
from metaworld import MT1, Task

from ..inputs.depth_keys import depth_key, extrinsics_key, intrinsics_key
from . import depth_camera, one_faucet
from .camera_names import CAMERAS, ON_THE_HAND, UPSIDE_DOWN, batch_keys
from .camera_poses import CAMERA_POSES

# Frames are rendered twice as large and averaged: on a software renderer, which spends its time on the
# robot's 67,000 faces and not on pixels, this costs less than multisampling (27 against 39 ms a frame).
SUPERSAMPLING = 2


def sentence(task: str) -> str:
    """The instruction of a task; KeyError if there is none of that name."""
    _, known_as = one_faucet.TASKS.get(task, (None, task))
    return TASK_DESCRIPTIONS[known_as]


def first_task(name: str) -> tuple[type, Task]:
    """The simulator of Meta-World's name, and the task that LeRobot takes: the first of fifty of the seed 42.

    Meta-World makes all fifty, a second's work; alone the first is the same, since the seed is set right before it.
    """
    with mock.patch.object(metaworld, "_N_GOALS", 1):
        mt1 = MT1(name, seed=42)
    return mt1.train_classes[name], mt1.train_tasks[0]


class FastMetaworld(MetaworldEnv):
    """LeRobot's `MetaworldEnv` with a small picture without shadows, rendered once a step.

    Args:
        task: a Meta-World v3 task such as `push-v3`, or one of `one_faucet`.
        goal_markers: whether the picture shows what Meta-World marks: goals, and places on things. `one_faucet`'s
            tasks have no markers.
        episode_length: steps until an episode is cut off.
        cameras: names of Meta-World's cameras; with one, `pixels` is its picture, with several a dict of them.
        depth: whether observations have each camera's depth, intrinsics and pose: the entries of `depth_keys` without
            `observation.`, depth as float32 (1, height, width) in millimetres.
        camera_poses: one of `CAMERA_POSES`: whether the cameras in the room stand elsewhere in each episode.
        instruction: what a policy is told, if not the task's own sentence.
        kwargs: `observation_width` and `observation_height` in pixels, and what LeRobot's takes.

    Raises:
        ValueError: if the task does not exist; the message lists those that do.
    """

    _env: Any
    task_description: str
    observation_space: spaces.Dict

    def __init__(
        self,
        task: str,
        episode_length: int = 500,
        cameras: tuple[str, ...] = ("corner2",),
        goal_markers: bool = True,
        depth: bool = False,
        camera_poses: str = "fixed",
        instruction: str = "",
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
        self.task_description = instruction or self.task_description
        self.cameras = cameras
        self._markers = goal_markers and self._simulator is None
        if len(cameras) > 1:
            picture = self.observation_space["pixels"]
            self.observation_space = spaces.Dict(
                {**self.observation_space.spaces, "pixels": spaces.Dict(dict.fromkeys(cameras, picture))}
            )
        self.depth = depth
        self._poses = CAMERA_POSES[camera_poses]
        self.moved = tuple(name for name in cameras if self._poses and name not in ON_THE_HAND)
        self._keys = batch_keys(cameras)
        if depth:
            size = (1, self.observation_height, self.observation_width)
            boxes = [spaces.Box(-np.inf, np.inf, shape, np.float32) for shape in (size, (4,), (12,))]
            for key in self._keys.values():
                self.observation_space = spaces.Dict({**self.observation_space.spaces, **_beside(key, *boxes)})
        self._max_episode_steps = episode_length
        self._frame: np.ndarray | None = None
        self._seen: dict[str, np.ndarray | None] = {}
        self._depth_seen: dict[str, np.ndarray] = {}
        self._pictures = True
        self._look_every, self._steps = 1, 0
        self._stepping = False

    def _ensure_env(self) -> None:
        # LeRobot's own set-up with another size, and quality settings that the renderer reads when it is
        # first used.
        if self._env is not None:
            return
        known, task = first_task(self._known_as)
        simulator = self._simulator or known
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
        env.set_task(task)
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
        if self.moved:
            self._ensure_env()
            self._move_cameras(int(self.np_random.integers(2**31)) if seed is None else seed)
        return super().reset(seed=seed, **kwargs)

    def _move_cameras(self, seed: int) -> None:
        """Each by draws of its own, which neither other cameras nor the noise of a recorded action share."""
        assert self._poses is not None
        for name in self.moved:
            rng = np.random.default_rng([seed, CAMERAS.index(name)])
            camera = self._env.model.camera(name)
            camera.pos[:], axes = self._poses.draw(rng)
            mujoco.mju_mat2Quat(camera.quat, axes.reshape(9))

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
        return self._look(camera)[0]

    def _look(self, camera: str) -> tuple[np.ndarray, np.ndarray | None]:
        """Picture and depth buffer of a camera as rendered, the right way up; without `depth` the picture alone."""
        renderer = self._env.mujoco_renderer
        if renderer.viewer is not None:
            # Another simulator of this process may have rendered since, and MuJoCo draws into whichever OpenGL
            # context is current: black, once that other one is closed.
            renderer.viewer.make_context_current()
        renderer.camera_id = mujoco.mj_name2id(self._env.model, mujoco.mjtObj.mjOBJ_CAMERA, camera)
        image, buffer = renderer.render("rgbd_tuple") if self.depth else (renderer.render("rgb_array"), None)
        if self._upside_down(camera):
            return np.flip(image, (0, 1)), None if buffer is None else np.flip(buffer, (0, 1))
        return image, buffer

    def _upside_down(self, camera: str) -> bool:
        return camera in UPSIDE_DOWN and camera not in self.moved

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
            self._seen, self._depth_seen = dict.fromkeys(self.cameras), {}
        elif self._steps % self._look_every == 0:
            if self._steps == 0:
                # Meta-World's reset draws places twice, and returns before the simulator carries the second ones
                # forward: the picture would show markers, and some things, where they were put first and are not, as
                # LeRobot's does. A forward step changes only what follows from the state, and so nothing to come.
                mujoco.mj_forward(self._env.model, self._env.data)
            looks = {camera: self._look(camera) for camera in self.cameras}
            self._frame = looks[self.cameras[0]][0]
            self._seen = {camera: shrink(image, SUPERSAMPLING) for camera, (image, _) in looks.items()}
            self._depth_seen = {}
            for camera, (_, buffer) in looks.items():
                if buffer is not None:
                    self._depth_seen |= self._depth_of(camera, buffer)
        pixels = self._seen if len(self.cameras) > 1 else self._seen[self.cameras[0]]
        observation = {"pixels": pixels, "agent_pos": raw_obs[:4], **self._depth_seen}
        return {key: observation[key] for key in self.observation_space.spaces if key in observation}

    def _depth_of(self, camera: str, buffer: np.ndarray) -> dict[str, np.ndarray]:
        depth = depth_camera.metric_depth(buffer, self._env.model, SUPERSAMPLING)
        return _beside(self._keys[camera], depth_camera.millimetres(depth), *self._intrinsics_and_pose(camera))

    def _intrinsics_and_pose(self, camera: str) -> tuple[np.ndarray, np.ndarray]:
        fovy, seen = float(self._env.model.camera(camera).fovy[0]), self._env.data.camera(camera)
        return (
            depth_camera.intrinsics(fovy, self.observation_width, self.observation_height, SUPERSAMPLING),
            depth_camera.extrinsics(seen.xpos, seen.xmat.reshape(3, 3), self._upside_down(camera)),
        )

    def calibration(self) -> dict[str, dict[str, list[float]]]:
        """What is the same in all frames, by a camera's batch key: `intrinsics`, and `pose` if it stands still."""
        self._ensure_env()
        still: dict[str, dict[str, list[float]]] = {}
        for camera, key in self._keys.items():
            intrinsics, pose = self._intrinsics_and_pose(camera)
            still[key] = {"intrinsics": intrinsics.tolist()}
            if camera not in self.moved and camera not in ON_THE_HAND:
                still[key]["pose"] = pose.tolist()
        return still


def _beside(camera: str, depth: Any, intrinsics: Any, extrinsics: Any) -> dict[str, Any]:
    """Entries of a gym observation, before whose names LeRobot puts `observation.`, of a camera by its batch key."""
    entries = {depth_key(camera): depth, intrinsics_key(camera): intrinsics, extrinsics_key(camera): extrinsics}
    return {key.removeprefix("observation."): value for key, value in entries.items()}


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
