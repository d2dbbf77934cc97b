"""Does deep fusion beat late fusion? One code path, equal data, equal CPU minutes, success in the simulator.

    python -m benchmarks.study                # every run that the results lack, two at a time
    python -m benchmarks.study --hours 2      # no new one after two hours; the same command goes on later
    python -m benchmarks.study --smoke        # the same road in a minute and a half, for CI
    python -m benchmarks.study --report       # tables and plots of what is there

Records the demonstrations it lacks, trains each policy in a process and on a thread of its own, and adds its rows to
`benchmarks/results/fusion_study.csv` when it is judged: a run is in there whole or will be done again. What is
compared is in `benchmarks/study/arms.py`, what was found in docs/study.md.
"""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .. import processes
from . import report, results
from .arms import ARMS, PRETRAINED, PRETRAINING, SMOKE, SMOKE_MINUTES, Run, plan, task_named

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "fusion_study.csv"
PRETRAINING_MINUTES, EPISODES, NOISE = 8.0, 50, 0.1


def record(out: Path, name: str, smoke: bool) -> None:
    """Demonstrations of a task of the study, unless they are there."""
    # Not above: it takes as long as the processes that `main` starts first.
    from lerobot_deepfusion.sim import recording

    task = PRETRAINING if name == PRETRAINED else task_named(name)
    root = out / "data" / name
    if not root.exists():
        recipe = recording.Recipe(
            simulator="metaworld",
            tasks=task.environments[:1] if smoke else task.environments,
            episodes=2 if smoke else task.demonstrations,
            size=96,
            seed=recording.FIRST_SEED,
            noise=NOISE,
            cameras=task.cameras,
        )
        print(f"{name}: {recording.record(recipe, root, workers=1)}", flush=True)


def start(run: Run, out: Path, episodes: int) -> Path:
    """One run in a process of its own; where its result is.

    Raises:
        RuntimeError: if it fails; its log is named.
    """
    arguments = [f"--task={run.task}", f"--arm={run.arm}", f"--seed={run.seed}", f"--minutes={run.minutes}"]
    arguments += [f"--episodes={episodes}", f"--out={out.resolve()}"]
    arguments += ["--controls"] * run.controls + ([f"--steps={run.given_steps}"] if run.given_steps else [])
    processes.finish("benchmarks.study.run", arguments, out / "logs" / f"{run.name}.log")
    return out / "runs" / f"{run.name}.json"


def study(runs: Iterable[Run], out: Path, table: Path, lanes: int, hours: float, smoke: bool) -> int:
    """Do what is missing of these runs, `lanes` at a time; how many failed."""
    done = {row["run"] for row in results.load(table)}
    missing = [run for run in runs if run.name not in done]
    minutes = sum(run.minutes for run in missing)
    print(f"{len(missing)} runs to do, {minutes:.0f} CPU minutes of training; results in {table}", flush=True)
    names = list(dict.fromkeys(run.task for run in missing))
    if any(ARMS[run.arm].pretrained for run in missing) and not (out / "vlms" / PRETRAINED).exists():
        names.append(PRETRAINED)
    learning, failed = None, []
    deadline = time.monotonic() + hours * 3600

    def one(run: Run) -> None:
        if time.monotonic() > deadline:
            return
        try:
            if learning and ARMS[run.arm].pretrained:
                learning.result()
            rows = results.add(table, start(run, out, 1 if smoke else EPISODES))
        except RuntimeError as error:
            failed.append(run)
            print(error, flush=True)
        else:
            print(results.summary(rows), flush=True)

    with ThreadPoolExecutor(lanes) as pool:
        list(pool.map(lambda name: record(out, name, smoke), names))
        if PRETRAINED in names:
            minutes = SMOKE_MINUTES if smoke else PRETRAINING_MINUTES
            learning = pool.submit(start, Run(PRETRAINED, "late", minutes), out, 1)
        list(pool.map(one, missing))
    return len(failed)


def do_missing(args: Namespace, runs: Iterable[Run], smoke: Iterable[Run]) -> int:
    """`study` as the command line has it, nothing where that asks for the report alone; how many failed."""
    if args.report:
        return 0
    processes.get_ready()
    return study(smoke if args.smoke else runs, args.out, args.table, args.lanes, args.hours, args.smoke)


def main() -> None:
    args = processes.read_options(__doc__, RESULTS)
    failed = do_missing(args, plan(), SMOKE)
    rows = results.load(args.table)
    report.tables(rows)
    report.plots(rows, args.out if args.smoke else ROOT / "docs" / "images")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
