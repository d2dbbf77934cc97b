"""Runs of a study in processes of their own, forked from one that has imported LeRobot."""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import forkserver
from pathlib import Path

ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "passive",
    "HF_HUB_OFFLINE": "1",
    "TQDM_DISABLE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
# Importing LeRobot takes longer than some runs. It has not touched the simulator.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["lerobot.scripts.lerobot_eval", "lerobot_policy_deepfusion"])


def read_options(about: str | None, results: Path, **flags: str) -> argparse.Namespace:
    """Options of a study's command line, with `out` and `table` where they are to be.

    Args:
        about: the command's docstring.
        results: its table in this repository, whose name that of the folder is, too.
        flags: more of them, with what each does.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=None, help="data, checkpoints and logs")
    parser.add_argument("--lanes", type=int, default=2, help="runs at a time; one for each core")
    parser.add_argument("--hours", type=float, default=float("inf"), help="start no run after so many")
    parser.add_argument("--smoke", action="store_true", help="tiny runs, results beside the data")
    parser.add_argument("--report", action="store_true", help="run nothing; report what is there")
    for name, does in flags.items():
        parser.add_argument(f"--{name}", action="store_true", help=does)
    options = parser.parse_args()
    options.out = options.out or Path("outputs") / f"{results.stem}{'_smoke' if options.smoke else ''}"
    options.table = options.out / results.name if options.smoke else results
    return options


def get_ready() -> None:
    """All processes of a run from here on have one thread each."""
    os.environ.update(ONE_THREAD)
    forkserver.ensure_running()


def finish(module: str, arguments: list[str], log: Path) -> None:
    """Call `main(arguments)` of a module in a process of its own, whose output goes into `log`.

    Raises:
        RuntimeError: if it fails.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    process = PROCESSES.Process(target=_logged, args=(module, arguments, log))
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"{log.stem} failed; see {log}")


def every[Run](
    runs: Sequence[Run],
    options: argparse.Namespace,
    *,
    needs: Callable[[Run], str],
    record: Callable[[Path, str, bool], None],
    start: Callable[[Run, Path, Path, bool], str],
) -> int:
    """Do runs, so many at a time, and say a line about each.

    Args:
        runs: the most telling first.
        options: as `read_options` gives them.
        needs: the name of the demonstrations of a run.
        record: makes those in `out`, once for all runs; told whether it is a smoke run, as `start` is.
        start: does a run, into `out` and the table, and returns the line; a `RuntimeError` is said, and the next one
            is started.

    Returns:
        How many failed.
    """
    print(f"{len(runs)} runs to do", flush=True)
    failed, deadline = [], time.monotonic() + options.hours * 3600

    def one(run: Run) -> None:
        if time.monotonic() > deadline:
            return
        try:
            print(start(run, options.out, options.table, options.smoke), flush=True)
        except RuntimeError as error:
            failed.append(run)
            print(error, flush=True)

    with ThreadPoolExecutor(options.lanes) as pool:
        names = dict.fromkeys(map(needs, runs))
        list(pool.map(lambda name: record(options.out, name, options.smoke), names))
        list(pool.map(one, runs))
    return len(failed)


def _logged(module: str, arguments: list[str], log: Path) -> None:
    with log.open("w") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    importlib.import_module(module).main(arguments)
