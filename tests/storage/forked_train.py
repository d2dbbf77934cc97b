"""Runs `lerobot-train` many times from one import of LeRobot, and breaks runs as it is told.

Reads one JSON object a line (see `Order`), forks, and answers with the child's exit status as a line. The child
calls the function that the console script calls. `kill` and `tear` end it by SIGKILL.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import TypedDict

import lerobot.scripts.lerobot_train as lerobot_train
import safetensors.torch
import torch
from torch.utils.data import DataLoader

from lerobot_deepfusion.modeling_deepfusion import DeepFusionPolicy


class Order(TypedDict, total=False):
    """One run: what to pass to `lerobot-train`, where its output and losses go, and how it is broken."""

    argv: list[str]
    log: str
    losses: str  # one repr of a float a step
    kill: tuple[int, float]  # seconds after this step is in the log
    tear: tuple[str, float]  # end of a path, and the share of that file that is written before the kill
    largest_file: int  # bytes, as `ulimit -f`


def tear_at(end: str, share: float) -> None:
    """Die inside the write of the file whose path ends so; `last` is the link, which has no inside."""
    serialize, dump, symlink = safetensors.torch.serialize_file, json.dump, Path.symlink_to

    def die(path: str | os.PathLike, whole: bytes) -> None:
        Path(path).write_bytes(whole[: int(len(whole) * share)])
        os.kill(os.getpid(), signal.SIGKILL)

    def torn_serialize(tensors: dict, path: str | os.PathLike, *args: object, **kwargs: object) -> None:
        serialize(tensors, path, *args, **kwargs)
        if str(path).endswith(end):
            die(path, Path(path).read_bytes())

    def torn_dump(value: object, file: object, **kwargs: object) -> None:
        if str(getattr(file, "name", "")).endswith(end):
            die(file.name, json.dumps(value, **kwargs).encode())
        dump(value, file, **kwargs)

    def torn_symlink(self: Path, target: str | os.PathLike, **kwargs: object) -> None:
        if f"{self.name}->{target}".endswith(end):
            os.kill(os.getpid(), signal.SIGKILL)
        symlink(self, target, **kwargs)

    safetensors.torch.serialize_file, json.dump, Path.symlink_to = torn_serialize, torn_dump, torn_symlink


def record_losses(path: str) -> None:
    forward = DeepFusionPolicy.forward

    def recorded(self: DeepFusionPolicy, *args: object, **kwargs: object) -> tuple:
        result = forward(self, *args, **kwargs)
        with open(path, "a") as file:
            file.write(f"{result[0].item()!r}\n")
        return result

    DeepFusionPolicy.forward = recorded


def own_generator_for_loaders() -> None:
    """A loader draws one seed as it starts, so also when a run resumes; not from the noise's generator here.

    Otherwise the noise of a resumed run on a CPU is that of an undisturbed run shifted by this draw.
    """
    init = DataLoader.__init__

    def with_generator(self: DataLoader, *args: object, **kwargs: object) -> None:
        kwargs["generator"] = kwargs.get("generator") or torch.Generator()
        init(self, *args, **kwargs)

    DataLoader.__init__ = with_generator


def child(order: Order) -> None:
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    own_generator_for_loaders()
    if "losses" in order:
        record_losses(order["losses"])
    if "tear" in order:
        tear_at(*order["tear"])
    if "largest_file" in order:  # Python ignores SIGXFSZ, so that a write fails in place of the process
        resource.setrlimit(resource.RLIMIT_FSIZE, (order["largest_file"], resource.RLIM_INFINITY))
    sys.argv = ["lerobot-train", *order["argv"]]
    lerobot_train.main()


def run(order: Order) -> int:
    """Exit code of a run, minus the signal for one that was killed."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            child(order)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    if "kill" in order:
        step, delay = order["kill"]
        log = Path(order["log"])
        while f"step:{step} " not in log.read_text(errors="replace"):
            if os.waitpid(pid, os.WNOHANG) != (0, 0):
                return 1
            time.sleep(0.002)
        time.sleep(delay)
        os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


if __name__ == "__main__":
    torch.set_num_threads(1)
    for line in sys.stdin:
        order = json.loads(line)
        Path(order["log"]).write_text("")  # or `kill` would wait for a step of the run before
        print(run(order), flush=True)
