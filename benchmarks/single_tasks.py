"""Tasks that nobody tuned on: the recipe as it is, in five CPU minutes each, beside LeRobot's policies.

    python -m benchmarks.single_tasks            # every run that the results lack, two at a time
    python -m benchmarks.single_tasks --hours 2  # no new one after two hours; the same command goes on later
    python -m benchmarks.single_tasks --report   # the table of what is there

Which tasks: Meta-World's fifty in the order of their names, without those on which anything was tried before
(`TRIED`), and of the rest every third from the first on: written down before any of them was run. All else is
as in the fusion study (`benchmarks/study`, docs/study.md): 80 demonstrations, minutes of one thread with the data in
memory, 50 environments from seed 1000 on. What was found is in docs/single_tasks.md.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from . import processes
from .study import results
from .study.__main__ import do_missing
from .study.arms import REPLAY, SEEDS, SMOKE_MINUTES, Run

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "single_tasks.csv"
MINUTES = 5.0  # about the 1500 steps of configs/policy/tiny.yaml
OURS = "kv"
PEERS = ("act", "pi0", "diffusion")
TRIED = (
    *("reach-v3", "push-v3", "pick-place-v3", "door-open-v3", "drawer-open-v3", "drawer-close-v3"),
    *("button-press-topdown-v3", "peg-insert-side-v3", "window-open-v3", "window-close-v3"),
    *("faucet-open-v3", "faucet-close-v3", "coffee-push-v3", "dial-turn-v3", "handle-press-v3"),
)


def tasks() -> tuple[str, ...]:
    """The twelve, by the rule."""
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    return tuple(name for name in sorted(ALL_V3_ENVIRONMENTS) if name not in TRIED)[::3]


def plan() -> Iterator[Run]:
    """Every run, the most telling first, since a study may stop anywhere."""
    names = tasks()
    yield from (Run(task, OURS, MINUTES) for task in names)
    yield from (Run(task, REPLAY, 0) for task in names)
    yield from (Run(task, arm, MINUTES) for arm in PEERS[:2] for task in names)
    yield from (Run(task, OURS, MINUTES, seed) for seed in SEEDS[1:] for task in names)
    yield from (Run(task, PEERS[2], MINUTES) for task in names)
    yield from (Run(task, arm, MINUTES, seed) for seed in SEEDS[1:] for arm in PEERS for task in names)


SMOKE = (Run("drawer-close-v3", REPLAY, 0), Run("drawer-close-v3", OURS, SMOKE_MINUTES))


def report(rows: list[results.Row]) -> None:
    """Success of each task, by policy; all seeds that are there, each of which stands behind it."""
    arms = (OURS, *PEERS, REPLAY)
    names = list(dict.fromkeys(row["task"] for row in rows))
    print(f"| task | {' | '.join(arms)} |\n| --- |{' --- |' * len(arms)}")
    for name in (*sorted(names), None):
        cells = [[row for row in rows if row["arm"] == arm and name in (row["task"], None)] for arm in arms]
        print(f"| {name or '**all**'} | {' | '.join(map(results.cell, cells))} |")


def main() -> None:
    args = processes.read_options(__doc__, RESULTS)
    failed = do_missing(args, plan(), SMOKE)
    report(results.load(args.table))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
