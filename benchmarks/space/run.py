"""One run of the ladder: train a policy on the demonstrations of a rung, let the simulator judge it.

    python -m benchmarks.space.run --rung push_wide --arm world --out outputs/space_ladder

`benchmarks.space` calls this for each run. The demonstrations are in `<out>/data/<rung>`, the result will be
`<out>/runs/<run>.json`, whole or not there.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from lerobot.datasets.compute_stats import get_feature_stats
from lerobot.policies.factory import make_policy_config, make_pre_post_processors
from lerobot.utils.feature_utils import dataset_to_policy_features

import lerobot_policy_deepfusion  # noqa: F401
from lerobot_deepfusion.inputs.calibration import before_the_cameras
from lerobot_deepfusion.modeling_deepfusion import DeepFusionPolicy

from ..rollouts import successes
from ..study import arms as study
from ..study.data import Demonstrations
from ..study.results import here, write
from ..study.run import FIRST_ENVIRONMENT, train
from .arms import ARMS, RUNGS, STATE, STEPS, Arm, Change, Run


def build(arm: Arm, data: Demonstrations) -> tuple[DeepFusionPolicy, Any, Any]:
    """A policy with random weights and its processors. All have the same room for a state, whatever is in it."""
    features, stats = dict(data.meta.features), dict(data.meta.stats)
    if arm.change is not None:
        state = arm.change(data.columns)[STATE].numpy()
        features[STATE] = {**features[STATE], "shape": state.shape[1:], "names": None}
        stats[STATE] = get_feature_stats(state, axis=0, keepdims=False)
    options = {**study.COMMON, "max_state_dim": 16, "tokenizer_max_length": 32, "vlm_path": "tiny"}
    config = make_policy_config("deepfusion", **options, position_3d=arm.position_3d)
    kinds = dataset_to_policy_features(features)
    config.input_features = {key: feature for key, feature in kinds.items() if key != "action"}
    config.output_features = {"action": kinds["action"]}
    config.set_dataset_feature_metadata(features)
    config.workspace_center = before_the_cameras(config, stats)
    policy = DeepFusionPolicy(config)
    return policy, *make_pre_post_processors(config, dataset_stats=stats)


def both(first: Change | None, second: Change | None) -> Change | None:
    """One change after the other."""
    if first is None or second is None:
        return first or second
    return lambda batch: second(first(batch))


def execute(run: Run, out: Path, episodes: int) -> list[dict[str, Any]]:
    """Train and judge one policy, which leaves its checkpoint in `<out>/checkpoints`.

    Returns:
        One row for each place that cameras stand at and each change at test.
    """
    arm, rung = ARMS[run.arm], RUNGS[run.rung]
    data = Demonstrations(out / "data" / run.rung)
    torch.manual_seed(run.seed)
    policy, before, after = build(arm, data)
    about: dict[str, Any] = {"run": run.name, "rung": run.rung, "arm": run.arm, "seed": run.seed}
    about |= {"parameters": sum(p.numel() for p in policy.parameters())}
    change = both(arm.change, before)
    about |= train(policy, change, data, study.Run(run.rung, run.arm, 0, run.seed, given_steps=run.steps))
    print(about, flush=True)
    for part in (policy, before, after):
        part.save_pretrained(out / "checkpoints" / run.name)
    rows = []
    for poses in rung.judged:
        for control, change in {"": None, **arm.at_test}.items():
            seen = both(arm.change, change)
            space = {"depth": True, "camera_poses": poses}
            won = successes(policy, before, after, rung.task, episodes, FIRST_ENVIRONMENT, change=seen, **space)
            rows.append({**about, "cameras": poses, "control": control, "successes": won, "episodes": episodes})
    return rows


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rung", choices=RUNGS, required=True)
    parser.add_argument("--arm", choices=ARMS, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--episodes", type=int, default=50, help="for each place that cameras stand at")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    run = Run(args.rung, args.arm, args.seed, args.steps)
    where = here()
    rows = [{**row, **where} for row in execute(run, args.out, args.episodes)]
    write(args.out / "runs" / f"{run.name}.json", json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
