"""Which of Meta-World's scripted experts are worth recording: their successes, without and with noise.

    python -m benchmarks.experts                       # all 50 tasks; about 20 minutes
    python -m benchmarks.experts --tasks push-v3,reach-v3 --episodes 50

Prints a Markdown table, a row for each task.
"""

from __future__ import annotations

import argparse

from lerobot.envs.metaworld import TASK_DESCRIPTIONS

from lerobot_deepfusion.sim.metaworld_expert import MetaworldExpert
from lerobot_deepfusion.sim.recording import FIRST_SEED

NOISES = (0.0, 0.1)


def successes(task: str, noise: float, episodes: int) -> int:
    """How many of the first seeds that `deepfusion demos` would take the expert of a task succeeds from."""
    expert = MetaworldExpert(task, size=32, noise=noise, cameras="corner2")
    won = sum(expert.succeeds(FIRST_SEED + index) for index in range(episodes))
    expert.close()
    return won


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default=",".join(sorted(TASK_DESCRIPTIONS)), help="comma-separated")
    parser.add_argument("--episodes", type=int, default=10, help="for each task and noise")
    args = parser.parse_args()
    print("| task | " + " | ".join(f"noise {noise:g}" for noise in NOISES) + " |\n| --- | --- | --- |")
    for task in args.tasks.split(","):
        cells = [f"{successes(task, noise, args.episodes)} of {args.episodes}" for noise in NOISES]
        print(f"| {task} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
