"""`metaworld_fast` as a benchmark of vla-eval: the tasks, seeds and episodes of `lerobot-eval`, counted by others."""

from __future__ import annotations

from typing import Any

import numpy as np
from lerobot.envs.utils import NEW_ROLLOUT_OPTION, close_envs
from vla_eval.benchmarks.base import StepBenchmark, StepResult
from vla_eval.specs import IMAGE_RGB, LANGUAGE, RAW, DimSpec

from ..sim.metaworld_fast import MetaworldFastEnv


class FastMetaworld(StepBenchmark):
    """Episode i of every task begins with seed `seed + i`, as those of `lerobot-eval --seed` do.

    One environment a task is kept for all of its episodes: a reset of Meta-World depends, in the last digits, on what
    came before. So the episodes equal those of `lerobot-eval --eval.batch_size=1`, as long as no shards divide them.

    Args:
        seed: of the first episode of each task.
        send_state: whether the policy sees the gripper's place.
        options: fields of `MetaworldFastEnv`, such as `task` and `cameras`.

    Raises:
        ValueError: for options out of range, and for `depth`, which vla-eval's LeRobot server does not hand on.
    """

    def __init__(self, seed: int = 1000, send_state: bool = True, **options: Any) -> None:
        super().__init__()
        self.config = MetaworldFastEnv(**options)
        if self.config.depth:
            raise ValueError(
                "depth=true: vla-eval's LeRobot server hands on pictures and state alone; evaluate policies that "
                "see in three dimensions by lerobot-eval"
            )
        self.seed = seed
        self.send_state = send_state
        self._envs = self.config.create_envs(n_envs=1)
        self._by_task: dict[str, Any] = {}  # vector environments of one, as in lerobot-eval
        self._tasks: list[dict[str, Any]] = []
        for group, environments in self._envs.items():
            for env in environments.values():
                (name,) = env.get_attr("task")
                self._by_task[name] = env
                self._tasks.append({"name": name, "suite": group})

    def get_tasks(self) -> list[dict[str, Any]]:
        """Of each its Meta-World name, and as `suite` what it was asked for by: its name or a difficulty."""
        return self._tasks

    def get_metadata(self) -> dict[str, Any]:
        """`max_steps`, after which an episode has failed."""
        return {"max_steps": self.config.episode_length}

    def get_action_spec(self) -> dict[str, DimSpec]:
        """Four numbers: the hand's way along x, y and z, and the gripper."""
        return {"actions": RAW}

    def get_observation_spec(self) -> dict[str, DimSpec]:
        """A picture of each camera, the instruction and, unless it is kept back, the state."""
        return {"image": IMAGE_RGB, "language": LANGUAGE} | ({"state": RAW} if self.send_state else {})

    def reset(self, task: dict[str, Any]) -> Any:
        """Begins episode `task["episode_idx"]`; the observation of a vector environment of one."""
        observation, _ = self._by_task[task["name"]].reset(
            seed=[self.seed + task["episode_idx"]], options={NEW_ROLLOUT_OPTION: True}
        )
        return observation

    def step(self, action: dict[str, Any]) -> StepResult:
        """Moves by `action["actions"]`, float32 (4,), of which Meta-World cuts what is outside [-1, 1]."""
        actions = np.asarray(action["actions"], dtype=np.float32)[None]
        observation, reward, terminated, truncated, info = self._by_task[self._task["name"]].step(actions)
        success = bool("final_info" in info and info["final_info"]["is_success"][0])
        return StepResult(observation, float(reward[0]), bool(terminated[0] or truncated[0]), {"success": success})

    def make_obs(self, raw_obs: Any, task: dict[str, Any]) -> dict[str, Any]:
        """What a model server gets: `images` by camera, uint8 (H, W, 3), `task_description`, and `state`, float64
        (4,): the hand's x, y and z in metres, and how far the gripper is open, 0 to 1.
        """
        pixels, cameras = raw_obs["pixels"], self.config.camera_names
        pictures = pixels if isinstance(pixels, dict) else {cameras[0]: pixels}
        (told,) = self._by_task[task["name"]].get_attr("task_description")
        seen = {"images": {camera: pictures[camera][0] for camera in cameras}, "task_description": told}
        return seen | ({"state": raw_obs["agent_pos"][0]} if self.send_state else {})

    def get_step_result(self, step_result: StepResult) -> dict[str, Any]:
        """`success`, as LeRobot's environment says it."""
        return {"success": bool(step_result.info.get("success", False))}

    def cleanup(self) -> None:
        """Closes the simulators."""
        close_envs(self._envs)
