"""robo-evals' tasks and its scripted expert as the recorder takes them.

A floating gripper of two fingers over a table, in MuJoCo: reach, push, pick_place, drawer, stack.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from .off_screen import draw_off_screen
from .scripted_expert import image_state_action_features

ROBOT_TYPE = "robo_evals_gripper"
FPS = 20  # robo-evals' 25 physics steps of 2 ms
BASE_SEED = 0  # as `robo-evals run`; its episodes count from 0, ours from `demos --seed`


def columns(observation: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """A robo-evals observation as a policy sees it: the front camera's picture, uint8 (H, W, 3), and the gripper,
    float32 (4,): x, y, z in metres and how far it is open, 0 to 1.

    Left out is where things and goals are, which robo-evals tells too: cameras are there to see that.
    """
    state = np.concatenate([observation["ee_pos"], observation["gripper"]])
    return {"observation.image": observation["image"], "observation.state": state.astype(np.float32)}


class RoboEvalsExpert:
    """robo-evals' scripted policy, which is told where things are, in one of its tasks.

    Episode n is the one that `robo-evals run --seed 0` has as its n-th. With noise, the executed action is disturbed
    and the recorded one is not, as in `MetaworldExpert`.

    Args:
        task: its name there.
        size: frame width and height, pixels.
        noise: standard deviation of the noise on the executed way, whose full scale is 1, or 3 cm.

    Raises:
        ImportError: without robo-evals.
        RuntimeError: if nothing can be rendered.
        ValueError: for a task that does not exist; the message lists those that do.
    """

    robot_type = ROBOT_TYPE
    fps = FPS

    def __init__(self, task: str, size: int, noise: float) -> None:
        draw_off_screen()
        from robo_evals import make_task
        from robo_evals.policies import scripted
        from robo_evals.video import try_make_renderer

        self.task = make_task(task)
        self.expert = scripted()
        self.noise = noise
        self._renderer: Any = try_make_renderer(self.task.model, size, size)
        if self._renderer is None:
            raise RuntimeError(
                "MuJoCo can draw nothing here; MUJOCO_GL=egl or osmesa chooses how, and needs its library"
            )
        self.features = image_state_action_features(size, ["x", "y", "z", "gripper"], ["dx", "dy", "dz", "gripper"])

    def episode(self, seed: int) -> list[dict[str, Any]] | None:
        """The frames until success, or None if there was none by robo-evals' limit of steps.

        Args:
            seed: the number of the episode.
        """
        frames = list(self._run(seed))
        return frames if self.task.is_success() else None

    def _run(self, number: int) -> Iterator[dict[str, Any]]:
        from robo_evals.policy import reset_policy
        from robo_evals.seeding import episode_seed
        from robo_evals.video import render_frame

        seed = episode_seed(BASE_SEED, self.task.name, number)
        rng = np.random.default_rng(seed)
        observation = self.task.reset(seed)
        reset_policy(self.expert, self.task.name, seed)
        for _ in range(self.task.max_steps):
            observation["image"] = render_frame(self._renderer, self.task.data)
            action = np.asarray(self.expert(observation), np.float32)
            yield {**columns(observation), "action": action, "task": self.task.instruction}
            executed = action.copy()
            executed[:3] += rng.normal(0, self.noise, 3)  # not the gripper
            step = self.task.step(executed)
            if step.success:
                return
            observation = step.observation

    def close(self) -> None:
        """Frees what draws."""
        self._renderer.close()
