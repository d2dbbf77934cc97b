"""Runs of a study in processes of their own, forked from one that has imported LeRobot."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import sys
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


def _logged(module: str, arguments: list[str], log: Path) -> None:
    with log.open("w") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    importlib.import_module(module).main(arguments)
