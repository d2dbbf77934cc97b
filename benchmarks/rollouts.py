"""Episodes in the simulator: a policy's, with its observation as it is or changed, and a recording's."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("LP_NUM_THREADS", "1")

import numpy as np
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.processor import PolicyProcessorPipeline
from lerobot.scripts.lerobot_eval import eval_policy

from lerobot_deepfusion.sim.metaworld_env import sentence
from lerobot_deepfusion.sim.metaworld_fast import MetaworldFastEnv

Change = Callable[[dict[str, Any]], dict[str, Any]]
AT_ONCE = 10  # environments of one process: they cost nothing once their episode is over


def black(observation: dict[str, Any]) -> dict[str, Any]:
    """Every camera black."""
    return {key: torch.zeros_like(v) if "image" in key else v for key, v in observation.items()}


def told(sentence: str) -> Change:
    """Another instruction than the task's."""
    return lambda observation: {**observation, "task": [sentence] * len(observation["task"])}


def controls(tasks: Sequence[str], index: int) -> dict[str, Change]:
    """What shows whether a policy of these tasks needs its eyes and ears in the one at `index`, by name."""
    found: dict[str, Change] = {"black images": black}
    if len(tasks) > 1:
        found["other text"] = told(sentence(tasks[(index + 1) % len(tasks)]))
    return found


def successes(
    model: PreTrainedPolicy,
    before: PolicyProcessorPipeline,
    after: PolicyProcessorPipeline,
    task: str,
    episodes: int,
    seed: int,
    *,
    change: Change | None = None,
    **environment: Any,
) -> int:
    """Episodes that succeed, through LeRobot's own evaluation.

    Args:
        model: the policy.
        before: its pre-processor.
        after: its post-processor.
        task: Meta-World's name of it.
        episodes: how many.
        seed: of the first environment; the others follow. Noise of the policy is drawn from it too.
        change: applied to what the policy observes.
        environment: fields of `MetaworldFastEnv`, such as `cameras`.
    """
    at_once = min(AT_ONCE, episodes)
    environments = MetaworldFastEnv(task=task, **environment).create_envs(at_once)[task][0]
    if model.config.n_obs_steps == 1:
        environments.call("look_every", model.config.n_action_steps)
    nothing = PolicyProcessorPipeline(steps=[])
    torch.manual_seed(seed)
    with torch.no_grad():
        info = eval_policy(
            environments,
            model,
            nothing,
            nothing,
            before if change is None else lambda observation: before(change(observation)),
            after,
            n_episodes=episodes,
            start_seed=seed,
        )
    environments.close()
    return round(info["aggregated"]["pc_success"] / 100 * episodes)


def blind_replay(data: Path, task: str, episodes: int, seed: int) -> int:
    """Episodes in which the actions of the task's first demonstration succeed, whatever is there."""
    demonstrations = LeRobotDataset("local/data", root=data)
    episode = next(e for e in demonstrations.meta.episodes if e["tasks"][0] == sentence(task))
    rows = range(episode["dataset_from_index"], episode["dataset_to_index"])
    actions = [np.array(a) for a in demonstrations.hf_dataset.with_format(None).select(rows)["action"]]
    env = MetaworldFastEnv().make(task)
    succeeded = 0
    with env.without_pictures():
        for index in range(episodes):
            env.reset(seed=seed + index)
            succeeded += any(env.step(action.astype(np.float32))[2] for action in actions)
    env.close()
    return succeeded
