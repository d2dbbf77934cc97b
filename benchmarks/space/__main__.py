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
import time
from concurrent.futures import ThreadPoolExecutor
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


def ladder(out: Path, table: Path, lanes: int, hours: float, smoke: bool) -> int:
    """Do what is missing, `lanes` runs at a time; how many failed."""
    done = {row["run"] for row in results.load(table)}
    missing = [run for run in (SMOKE if smoke else plan()) if run.name not in done]
    print(f"{len(missing)} runs to do; results in {table}", flush=True)
    failed, deadline = [], time.monotonic() + hours * 3600

    def one(run: Run) -> None:
        if time.monotonic() > deadline:
            return
        arguments = [f"--rung={run.rung}", f"--arm={run.arm}", f"--seed={run.seed}", f"--steps={run.steps}"]
        arguments += [f"--episodes={1 if smoke else EPISODES}", f"--out={out.resolve()}"]
        try:
            processes.finish("benchmarks.space.run", arguments, out / "logs" / f"{run.name}.log")
        except RuntimeError as error:
            failed.append(run)
            print(error, flush=True)
        else:
            rows = results.add(table, out / "runs" / f"{run.name}.json", COLUMNS)
            print(report.summary(rows), flush=True)

    with ThreadPoolExecutor(lanes) as pool:
        list(pool.map(lambda name: record(out, name, smoke), dict.fromkeys(run.rung for run in missing)))
        list(pool.map(one, missing))
    return len(failed)


def main() -> None:
    args = processes.read_options(__doc__, RESULTS)
    failed = 0
    if not args.report:
        processes.get_ready()
        failed = ladder(args.out, args.table, args.lanes, args.hours, args.smoke)
    report.table(results.load(args.table))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
