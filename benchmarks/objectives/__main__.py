"""Flow, two steps or drift? Equal data, steps and seeds, success where one answer is right and where two are.

    python -m benchmarks.objectives             # every run that the results lack, two at a time
    python -m benchmarks.objectives --hours 2   # no new one after two hours; the same command goes on later
    python -m benchmarks.objectives --smoke     # the same road in a minute, for CI
    python -m benchmarks.objectives --report    # the table and the plot of what is there

Records the demonstrations it lacks, trains each policy in a process and on a thread of its own, and adds its rows to
`benchmarks/results/objectives.csv` when it is judged. What is compared is in `benchmarks/objectives/arms.py`, what
was found in docs/objectives.md.
"""

from __future__ import annotations

import sys
from pathlib import Path

from .. import processes
from ..study import results
from . import report
from .arms import TASKS, Run, plan

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "objectives.csv"
COLUMNS = (
    *("run", "task", "arm", "steps", "seed", "evaluations", "successes", "first_answer", "episodes"),
    *("cpu_minutes", "loss", *results.WHERE),
)
SMOKE = [Run("fork", "drift", steps=2), Run("either", "two_step", steps=2)]


def record(out: Path, name: str, smoke: bool) -> None:
    """Demonstrations of a task, unless they are there."""
    # Not above: they take as long as the processes that `main` starts first.
    from lerobot_deepfusion.sim import recording

    from . import fork

    task, root = TASKS[name], out / "data" / name
    if root.exists():
        return
    if name == "fork":
        fork.record(root, 4 if smoke else 2 * task.demonstrations)
        return
    recipe = recording.Recipe(
        simulator="metaworld",
        tasks=("push-v3",) if name == "push" else ("one-faucet-open", "one-faucet-close"),
        episodes=1 if smoke else task.demonstrations,
        size=96,
        seed=recording.FIRST_SEED,
        noise=0.1,
    )
    print(f"{name}: {recording.record(recipe, root, workers=1)}", flush=True)


def start(run: Run, out: Path, table: Path, smoke: bool) -> str:
    """One run in a process of its own, into the table; a line about it."""
    arguments = [f"--task={run.task}", f"--objective={run.objective}", f"--seed={run.seed}", f"--out={out.resolve()}"]
    arguments += ([f"--steps={run.steps}"] if run.steps else []) + ["--episodes=2"] * smoke
    processes.finish("benchmarks.objectives.run", arguments, out / "logs" / f"{run.name}.log")
    return report.summary(results.add(table, out / "runs" / f"{run.name}.json", COLUMNS))


def main() -> None:
    args = processes.read_options(__doc__, RESULTS)
    failed = 0
    if not args.report:
        processes.get_ready()
        done = {row["run"] for row in results.load(args.table)}
        missing = [run for run in (SMOKE if args.smoke else plan()) if run.name not in done]
        failed = processes.every(missing, args, needs=lambda run: run.task, record=record, start=start)
    rows = results.load(args.table)
    report.table(rows)
    report.plot(rows, args.out if args.smoke else ROOT / "docs" / "images")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
