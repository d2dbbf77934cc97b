"""Does the policy need its eyes and its ears? Success beside that of controls that lack one of them.

    python -m benchmarks.controls --policy outputs/demo/push/trained/checkpoints/last/pretrained_model \
        --data outputs/demo/push/data --tasks push-v3

Runs through LeRobot's own evaluation, on the same seeds:

- `as trained`: the policy as it is;
- `black images`: every camera black;
- `other text`: with several tasks, each is given the next one's sentence. If it fails then, the text is used, which
  does not say that it is needed: the arm `wordless` of `benchmarks.study` does;
- `blind replay`: the actions of one recorded demonstration, whatever is seen. It shows how much of a task
  needs no policy at all.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import lerobot_policy_deepfusion  # noqa: F401
from lerobot_deepfusion.looking.observations import load

from .rollouts import blind_replay, controls, successes
from .study.results import wilson


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", type=Path, required=True, help="checkpoint folder")
    parser.add_argument("--data", type=Path, required=True, help="data set with the demonstrations")
    parser.add_argument("--tasks", default="push-v3", help="comma-separated")
    parser.add_argument("--cameras", default="corner2", help="of the environment, as --env.cameras")
    parser.add_argument("--episodes", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1000, help="first environment seed, as lerobot-eval's")
    parser.add_argument("--out", type=Path, help="JSON file for the table")
    args = parser.parse_args()
    model, before, after = load(str(args.policy))
    tasks, table = args.tasks.split(","), {}
    for index, task in enumerate(tasks):
        rows = {"as trained": None, **controls(tasks, index)}
        table[task] = {
            name: successes(model, before, after, task, args.episodes, args.seed, cameras=args.cameras, change=change)
            / args.episodes
            for name, change in rows.items()
        }
        table[task]["blind replay"] = blind_replay(args.data, task, args.episodes, args.seed) / args.episodes
        for name, value in table[task].items():
            low, high = wilson(value, args.episodes)
            print(f"{task:20} {name:14} {value:6.1%}   95% interval {low:.0%} to {high:.0%}", flush=True)
    if args.out:
        args.out.write_text(json.dumps({"episodes": args.episodes, "seed": args.seed, "success": table}, indent=1))


if __name__ == "__main__":
    main()
