"""Does the policy need its eyes and its ears? Success beside that of controls that lack one of them.

    python -m benchmarks.controls --policy outputs/demo/push/trained/checkpoints/last/pretrained_model \
        --data outputs/demo/push/data --tasks push-v3

Runs through LeRobot's own evaluation, on the same seeds:

- `as trained`: the policy as it is;
- `black images`: every camera black;
- `other text`: with several tasks, each is given the next one's sentence;
- `blind replay`: the actions of one recorded demonstration, whatever is seen. It shows how much of a task
  needs no policy at all.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("MUJOCO_GL", "egl")
os.environ.setdefault("LP_NUM_THREADS", "1")

import numpy as np
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.envs.metaworld import TASK_DESCRIPTIONS
from lerobot.policies.factory import make_pre_post_processors
from lerobot.processor import PolicyProcessorPipeline
from lerobot.scripts.lerobot_eval import eval_policy

import lerobot_policy_deepfusion  # noqa: F401
from lerobot_deepfusion.modeling_deepfusion import DeepFusionPolicy
from lerobot_deepfusion.sim.metaworld_fast import MetaworldFastEnv


def black(observation: dict[str, Any]) -> dict[str, Any]:
    return {key: torch.zeros_like(v) if "image" in key else v for key, v in observation.items()}


def told(sentence: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda observation: {**observation, "task": [sentence] * len(observation["task"])}


def success(policy: Path, task: str, episodes: int, seed: int, change: Callable | None = None) -> float:
    """Share of episodes that succeed, with `change` applied to what the policy observes."""
    model = DeepFusionPolicy.from_pretrained(policy)
    before, after = make_pre_post_processors(model.config, pretrained_path=str(policy))
    environments = MetaworldFastEnv(task=task).create_envs(2, use_async_envs=True)[task][0]
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
    return info["aggregated"]["pc_success"] / 100


def blind_replay(data: Path, task: str, episodes: int, seed: int) -> float:
    """Share of episodes in which the actions of the task's first demonstration succeed."""
    demonstrations = LeRobotDataset("local/data", root=data)
    sentence = TASK_DESCRIPTIONS[task]
    episode = next(e for e in demonstrations.meta.episodes if e["tasks"][0] == sentence)
    rows = range(episode["dataset_from_index"], episode["dataset_to_index"])
    actions = [demonstrations[row]["action"].numpy() for row in rows]
    env = MetaworldFastEnv().make(task)
    succeeded = 0
    with env.without_pictures():
        for index in range(episodes):
            env.reset(seed=seed + index)
            succeeded += any(env.step(action)[2] for action in actions)
    return succeeded / episodes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", type=Path, required=True, help="checkpoint folder")
    parser.add_argument("--data", type=Path, required=True, help="data set with the demonstrations")
    parser.add_argument("--tasks", default="push-v3", help="comma-separated")
    parser.add_argument("--episodes", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1000, help="first environment seed, as lerobot-eval's")
    parser.add_argument("--out", type=Path, help="JSON file for the table")
    args = parser.parse_args()
    tasks, table = args.tasks.split(","), {}
    for index, task in enumerate(tasks):
        rows = {"as trained": None, "black images": black}
        if len(tasks) > 1:
            rows["other text"] = told(TASK_DESCRIPTIONS[tasks[(index + 1) % len(tasks)]])
        table[task] = {
            name: success(args.policy, task, args.episodes, args.seed, change) for name, change in rows.items()
        }
        table[task]["blind replay"] = blind_replay(args.data, task, args.episodes, args.seed)
        for name, value in table[task].items():
            low, high = wilson(value, args.episodes)
            print(f"{task:20} {name:14} {value:6.1%}   95% interval {low:.0%} to {high:.0%}", flush=True)
    if args.out:
        args.out.write_text(json.dumps({"episodes": args.episodes, "seed": args.seed, "success": table}, indent=1))


def wilson(share: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """95% confidence interval of a share (Wilson 1927)."""
    centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z * np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2)) / (1 + z**2 / count)
    return float(max(0, centre - half)), float(min(1, centre + half))


if __name__ == "__main__":
    main()
