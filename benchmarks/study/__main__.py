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
import threading
from argparse import Namespace
from collections.abc import Iterable
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


def pretrain(out: Path, smoke: bool) -> None:
    """The VLM from other tasks, unless it is there."""
    if not (out / "vlms" / PRETRAINED).exists():
        record(out, PRETRAINED, smoke)
        start(Run(PRETRAINED, "late", SMOKE_MINUTES if smoke else PRETRAINING_MINUTES), out, 1)


def do_missing(args: Namespace, runs: Iterable[Run], smoke: Iterable[Run]) -> int:
    """What the table lacks of these runs, and nothing where the command line asks for the report alone.

    Returns:
        How many failed.
    """
    if args.report:
        return 0
    processes.get_ready()
    done, learning = {row["run"] for row in results.load(args.table)}, threading.Lock()

    def one(run: Run, out: Path, table: Path, smoke: bool) -> str:
        if ARMS[run.arm].pretrained:
            with learning:
                pretrain(out, smoke)
        return results.summary(results.add(table, start(run, out, 1 if smoke else EPISODES)))

    missing = [run for run in (smoke if args.smoke else runs) if run.name not in done]
    return processes.every(missing, args, needs=lambda run: run.task, record=record, start=one)


def main() -> None:
    args = processes.read_options(__doc__, RESULTS)
    failed = do_missing(args, plan(), SMOKE)
    rows = results.load(args.table)
    report.tables(rows)
    report.plots(rows, args.out if args.smoke else ROOT / "docs" / "images")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
