"""Does seeing in three dimensions help? Equal data, steps and seeds, success in the simulator.

    python -m benchmarks.space             # every run that the results lack, two at a time
    python -m benchmarks.space --hours 2   # no new one after two hours; the same command goes on later
    python -m benchmarks.space --smoke     # the same road in a minute, for CI
    python -m benchmarks.space --report    # the tables of what is there

Records the demonstrations it lacks, trains each policy in a process and on a thread of its own, and adds its rows to
`benchmarks/results/space_ladder.csv` when it is judged: a run is in there whole or will be done again. What is
compared is in `benchmarks/space/arms.py`, what was found in docs/space.md.
"""

from __future__ import annotations

import sys
from pathlib import Path

from .. import processes
from ..study import results
from . import report
from .arms import RUNGS, Run, plan

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "space_ladder.csv"
COLUMNS = (
    *("run", "rung", "arm", "steps", "seed", "cameras", "control", "successes", "episodes"),
    *("cpu_minutes", "loss", "parameters", *results.WHERE),
)
EPISODES, NOISE, SIZE = 50, 0.1, 96
SMOKE = [Run("push_fixed", "world", steps=2)]


def record(out: Path, name: str, smoke: bool) -> None:
    """Demonstrations of a rung with depth, unless they are there."""
    # Not above: it takes as long as the processes that `main` starts first.
    from lerobot_deepfusion.sim import recording

    rung, root = RUNGS[name], out / "data" / name
    if not root.exists():
        recipe = recording.Recipe(
            simulator="metaworld",
            tasks=(rung.task,),
            episodes=2 if smoke else rung.demonstrations,
            size=SIZE,
            seed=recording.FIRST_SEED,
            noise=NOISE,
            depth=True,
            camera_poses=rung.camera_poses,
        )
        print(f"{name}: {recording.record(recipe, root, workers=1)}", flush=True)


def start(run: Run, out: Path, table: Path, smoke: bool) -> str:
    """One run in a process of its own, into the table; a line about it."""
    arguments = [f"--rung={run.rung}", f"--arm={run.arm}", f"--seed={run.seed}", f"--steps={run.steps}"]
    arguments += [f"--episodes={1 if smoke else EPISODES}", f"--out={out.resolve()}"]
    processes.finish("benchmarks.space.run", arguments, out / "logs" / f"{run.name}.log")
    return report.summary(results.add(table, out / "runs" / f"{run.name}.json", COLUMNS))


def main() -> None:
    args = processes.read_options(__doc__, RESULTS)
    failed = 0
    if not args.report:
        processes.get_ready()
        done = {row["run"] for row in results.load(args.table)}
        missing = [run for run in (SMOKE if args.smoke else plan()) if run.name not in done]
        failed = processes.every(missing, args, needs=lambda run: run.rung, record=record, start=start)
    report.table(results.load(args.table))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
