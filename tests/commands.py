"""LeRobot's commands, in forks of one process that has imported LeRobot, and a data set of noise for them.

Importing LeRobot takes longer than most commands. `run` is for what they do: a fork has nothing of this package yet,
so that it finds the plugin as a command does. `finish` starts a true process, for what a fork has already or does not
do: imports from nothing, environment variables that are read on import, a launcher, the interpreter's end.
"""

from __future__ import annotations

import ctypes
import functools
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing import forkserver, resource_tracker
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
TINY_YAML = ROOT / "configs/policy/tiny.yaml"
SHORT = ["--num_workers=0", "--log_freq=1", "--save_freq=2", "--batch_size=4"]
SCRIPTS = Path(sys.executable).parent
PATIENCE = 580  # seconds

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    ["lerobot.scripts.lerobot_train", "lerobot.scripts.lerobot_eval", "peft", "tests.warm", __name__]
)
# There is one such process for all who fork, the recorder and the study too; the last word before it starts counts.
FORKS.set_forkserver_preload = lambda _: None


@functools.cache
def offer_forks() -> str:
    """Start the process that all workers' commands are forks of, and wait until it has imported; its address.

    What it imports first is compiled once, where workers that start together would each do so.
    """
    process = FORKS.Process(target=time.time)
    process.start()
    process.join()
    return forkserver._forkserver._forkserver_address


def take_forks(address: str) -> None:
    """In a worker, of that process; multiprocessing has no public way to it."""
    server = forkserver._forkserver
    server._forkserver_address, server._forkserver_alive_fd = address, os.open(os.devnull, os.O_RDONLY)
    forkserver.ensure_running = server.ensure_running = resource_tracker.ensure_running


def finish(*command: object, fails: bool = False, patience: int = PATIENCE, **environment: str) -> str:
    """Run a command in a process to its end, whether good or, with `fails`, bad, and return what it printed."""
    result = subprocess.run(
        list(map(str, command)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "passive", **environment},
        timeout=patience,
    )
    assert (result.returncode != 0) == fails, f"{result.stdout[:3000]}\n...\n{result.stdout[-6000:]}"
    return result.stdout


def run(
    *command: object, code: int = 0, inside: Callable[[], object] | None = None, kill: tuple[str, float] | None = None
) -> str:
    """Run a console script of the environment, or another script, in a fork.

    Args:
        command: the script's name, or its path, or `-c` and code, and its options.
        code: what it has to end with, minus the signal where one ends it.
        inside: is called there first, and may break what it likes.
        kill: what it prints before it is killed, and how many seconds before.

    Returns:
        What it printed.
    """
    with tempfile.NamedTemporaryFile() as log:
        script, *options = map(str, command)
        path = script if script == "-c" else str(SCRIPTS / script)
        arguments = ([path, *options], log.name, os.getcwd(), inside)
        process = FORKS.Process(target=_run, args=arguments)
        process.start()
        if kill:
            while kill[0] not in Path(log.name).read_text(errors="replace") and process.is_alive():
                time.sleep(0.002)
            time.sleep(kill[1])
            process.kill()
        process.join(PATIENCE)
        process.kill()
        process.join()
        printed = Path(log.name).read_text(errors="replace")
    assert process.exitcode == code, f"{process.exitcode}: {printed[:3000]}\n...\n{printed[-6000:]}"
    return printed


def _run(argv: list[str], log: str, folder: str, inside: Callable[[], object] | None) -> None:
    """In the fork."""
    import torch

    file = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.chdir(folder)
    torch.set_num_threads(1)
    # Forks of this one come from where it does, as multiprocessing has it in its docstring; Python 3.12 starts anew.
    forkserver.ensure_running = forkserver._forkserver.ensure_running = lambda: None
    if inside:
        inside()
    sys.argv = argv
    if argv[0] == "-c":
        exec(argv.pop(1), {"__name__": "__main__"})
    else:
        runpy.run_path(argv[0], run_name="__main__")


def give_back_at_once() -> None:
    """For `inside`: freed memory is the system's again, as with MALLOC_MMAP_THRESHOLD_, so that peaks can be read."""
    ctypes.CDLL(None).mallopt(-3, 65536)  # M_MMAP_THRESHOLD


def write_noise(
    root: Path, cameras: tuple[str, ...], state: int, action: int, tasks: tuple[str, ...] = ("", "")
) -> list[str]:
    """A data set of noise, an episode of 12 frames for each task; returns the options that name it to LeRobot."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    features = {
        f"observation.{name}": {"dtype": "image", "shape": (96, 96, 3), "names": ["height", "width", "channels"]}
        for name in cameras
    }
    features["observation.state"] = {"dtype": "float32", "shape": (state,), "names": list("abcdefg"[:state])}
    features["action"] = {"dtype": "float32", "shape": (action,), "names": list("abcdefg"[:action])}
    data = LeRobotDataset.create("local/noise", fps=10, features=features, root=root, use_videos=False)
    rng = np.random.default_rng(0)
    for task in tasks:
        for _ in range(12):
            frame = {f"observation.{name}": rng.integers(0, 255, (96, 96, 3), dtype=np.uint8) for name in cameras}
            frame["observation.state"] = rng.uniform(0, 512, state).astype(np.float32)
            frame["action"] = rng.uniform(0, 512, action).astype(np.float32)
            data.add_frame({**frame, "task": task})
        data.save_episode()
    data.finalize()
    return ["--dataset.repo_id=local/noise", f"--dataset.root={root}"]
