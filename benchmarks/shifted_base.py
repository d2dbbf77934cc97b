"""A robot whose base, or whose zero, is elsewhere than in training: absolute actions beside relative ones.

    python -m benchmarks.shifted_base --out outputs/shifted_base   # trains what it lacks, judges, prints the table
    python -m benchmarks.shifted_base --report                     # the table of what is there

The path of `benchmarks.objectives.fork`, always past the left, with actions that say where to be next. When it is
judged, state and actions count from somewhere else by so much of the picture's width, and the picture is as ever.
Relative actions are normalised by what they are at each step of the chunk, and beside it by what they are at all of
them together. Rows go into `benchmarks/results/shifted_base.csv`.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lerobot_deepfusion.network.relative import RelativeActions

from .objectives.fork import FEATURES, STEP, TEXT, Fork, walk
from .objectives.run import build
from .study import arms as study
from .study.data import Demonstrations
from .study.results import WHERE, here, load, rate, save
from .study.run import FIRST_ENVIRONMENT, train

RESULTS = Path(__file__).parent / "results" / "shifted_base.csv"
SHIFTS, EPISODES, SEEDS = (0.0, 0.05, 0.1, 0.3), 100, (0, 1, 2)
TOGETHER = "relative, all steps together"
ARMS: dict[str, dict[str, Any]] = {
    "absolute": {},
    "relative": {"relative_actions": True},
    TOGETHER: {"relative_actions": True},
}
# The two relative ones fewer steps, too, since neither has anything to gain from the last of 500.
PLAN = ((500, tuple(ARMS)), (250, ("relative", TOGETHER)), (125, ("relative", TOGETHER)))
COLUMNS = ("run", "arm", "seed", "shift", "steps", "loss", "cpu_minutes", "successes", "episodes", *WHERE)
NAMES = ["x", "y"]  # of state and action alike, which is how they are paired


def record(root: Path, episodes: int = 60) -> None:
    """Demonstrations past the left; an action is the place to be at next."""
    features = {**FEATURES, "action": {**FEATURES["action"], "names": NAMES}}
    walk(root, features, [-1] * episodes, lambda fork, action: fork.place + STEP * action)


@torch.no_grad()
def judge(policy: Any, before: Any, after: Any, shift: float, episodes: int) -> int:
    """Episodes that succeed where state and actions count from `shift` further left."""
    torch.manual_seed(FIRST_ENVIRONMENT)
    policy.reset()
    forks, base = [Fork(FIRST_ENVIRONMENT + index) for index in range(episodes)], np.array([shift, 0.0])
    while not all(fork.over for fork in forks):
        seen = np.stack([fork.picture() for fork in forks])
        batch = {
            "observation.image": torch.from_numpy(seen).permute(0, 3, 1, 2) / 255,
            "observation.state": torch.tensor(np.stack([f.place + base for f in forks]), dtype=torch.float32),
            "task": [TEXT] * episodes,
        }
        for fork, action in zip(forks, after(policy.select_action(before(batch))).numpy(), strict=True):
            fork.step((action - base - fork.place) / STEP)
    return sum(fork.won for fork in forks)


def put_together(lines: RelativeActions) -> None:
    """One mean and deviation of relative actions for all steps of the chunk, in the place of one for each."""
    mean, spread = -lines.offset / lines.scale, 1 / lines.scale  # in deviations of absolute actions
    centre = mean.mean(0)
    wide = ((spread**2 + mean**2).mean(0) - centre**2).sqrt().expand_as(mean)
    lines.fill(1 / wide, lines.shift / lines.scale / wide, -centre / wide)


def run(arm: str, steps: int, seed: int, out: Path) -> list[dict[str, Any]]:
    """One policy, trained and judged at each shift."""
    data = Demonstrations(out / "data")
    torch.manual_seed(seed)
    policy, before, after = build("flow", data, num_flow_samples=4, **ARMS[arm])
    if arm == TOGETHER:
        put_together(policy.relative)
    name = name_of(arm, steps, seed)
    found = train(policy, before, data, study.Run("fork", arm, 0, seed, given_steps=steps))
    about = {"run": name, "arm": arm, "seed": seed, "episodes": EPISODES, **found, **here()}
    return [{**about, "shift": shift, "successes": judge(policy, before, after, shift, EPISODES)} for shift in SHIFTS]


def name_of(arm: str, steps: int, seed: int) -> str:
    return f"{arm}-{steps}s-{seed}"


def report(rows: list[dict[str, Any]]) -> None:
    shifts = " | ".join(f"zero off by {shift:g}" for shift in SHIFTS)
    print(f"| steps | actions | {shifts} |\n|{' --- |' * (len(SHIFTS) + 2)}")
    for steps, arms in PLAN:
        for arm in arms:
            cells = []
            for shift in SHIFTS:
                group = [row for row in rows if (row["arm"], row["steps"], row["shift"]) == (arm, steps, shift)]
                each = ", ".join(f"{row['successes'] / row['episodes']:.0%}" for row in group)
                cells.append(f"**{rate(group)[0]:.0%}** ({each})" if group else "")
            print(f"| {steps} | {arm} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("outputs/shifted_base"))
    parser.add_argument("--table", type=Path, default=RESULTS)
    parser.add_argument("--report", action="store_true", help="run nothing; report what is there")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if not args.report:
        if not (args.out / "data").exists():
            record(args.out / "data")
        for seed, (steps, arms) in itertools.product(SEEDS, PLAN):
            for arm in arms:
                rows = load(args.table)
                if name_of(arm, steps, seed) not in {row["run"] for row in rows}:
                    save(args.table, [*rows, *run(arm, steps, seed, args.out)], COLUMNS)
    report(load(args.table))


if __name__ == "__main__":
    main()
