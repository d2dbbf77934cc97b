"""One run: train a policy with one objective, let the task judge it with each number of evaluations.

    python -m benchmarks.objectives.run --task fork --objective drift --out outputs/objectives

`benchmarks.objectives` calls this for each run. The demonstrations are in `<out>/data/<task>`, the result will be
`<out>/runs/<run>.json`, whole or not there.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from lerobot.policies.factory import make_policy, make_policy_config, make_pre_post_processors
from lerobot.utils.feature_utils import dataset_to_policy_features

import lerobot_policy_deepfusion  # noqa: F401

from .. import rollouts
from ..study import arms as study
from ..study.data import Demonstrations
from ..study.results import here, write
from ..study.run import FIRST_ENVIRONMENT, train
from . import either, fork
from .arms import EVALUATIONS, SAMPLES, TASKS, Run


def build(objective: str, demonstrations: Demonstrations, **options: Any) -> tuple[Any, Any, Any]:
    """A policy with random weights and its processors: the recipe of the study with another objective."""
    options = {**study.COMMON, "num_flow_samples": SAMPLES, "tokenizer_max_length": 48, "vlm_path": "tiny", **options}
    config = make_policy_config("deepfusion", objective=objective, **options)
    kinds = dataset_to_policy_features(demonstrations.meta.features)
    config.input_features = {key: feature for key, feature in kinds.items() if key != "action"}
    policy = make_policy(config, ds_meta=demonstrations.meta)
    return policy, *make_pre_post_processors(config, dataset_stats=demonstrations.meta.stats)


def judge(task: str, policy: Any, before: Any, after: Any, episodes: int) -> tuple[int, int]:
    """Episodes that succeed, and how many of those with the first of two answers."""
    if task == "push":
        return rollouts.successes(policy, before, after, "push-v3", episodes, FIRST_ENVIRONMENT), 0
    return {"fork": fork, "either": either}[task].judge(policy, before, after, episodes, FIRST_ENVIRONMENT)


def execute(run: Run, out: Path, episodes: int) -> list[dict[str, Any]]:
    """Train and judge one policy, which leaves its checkpoint in `<out>/checkpoints`.

    Returns:
        One row for each number of evaluations.
    """
    data = Demonstrations(out / "data" / run.task, study.NO_WORDS if run.task == "either" else None)
    torch.manual_seed(run.seed)
    policy, before, after = build(run.objective, data)
    about: dict[str, Any] = {"run": run.name, "task": run.task, "arm": run.objective, "seed": run.seed}
    steps = run.steps or TASKS[run.task].steps
    about |= train(policy, before, data, study.Run(run.task, run.objective, 0, run.seed, given_steps=steps))
    print(about, flush=True)
    for part in (policy, before, after):
        part.save_pretrained(out / "checkpoints" / run.name)
    rows = []
    for evaluations in EVALUATIONS[run.objective]:
        policy.config.num_inference_steps = evaluations
        won, first = judge(run.task, policy, before, after, episodes)
        rows.append(
            {**about, "evaluations": evaluations, "successes": won, "first_answer": first, "episodes": episodes}
        )
        print(rows[-1], flush=True)
    return rows


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=TASKS, required=True)
    parser.add_argument("--objective", choices=EVALUATIONS, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=None, help="by default the task's")
    parser.add_argument("--episodes", type=int, default=None, help="by default the task's")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    run = Run(args.task, args.objective, args.seed, args.steps)
    where = here()
    rows = execute(run, args.out, args.episodes or TASKS[args.task].episodes)
    write(args.out / "runs" / f"{run.name}.json", json.dumps([{**row, **where} for row in rows], indent=1))


if __name__ == "__main__":
    main()
