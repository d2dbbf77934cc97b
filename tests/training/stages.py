"""All that is to be done by DDP and FSDP: each stage is two processes, forks of one that has imported LeRobot.

They have the environment of those that `accelerate launch` starts. Importing LeRobot takes longer than most stages.
"""

from __future__ import annotations

import os
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from unittest import mock

from accelerate.commands.launch import launch_command, launch_command_parser

from tests import commands
from tests.commands import SHORT, TINY_YAML
from tests.training import cpu_fsdp

STAGES = [("ddp", "cases"), ("fsdp", "cases"), ("fsdp", "train"), ("fsdp", "resume"), ("ddp", "resume")]


def train_options(folder: Path, strategy: str) -> list[str]:
    """Two steps of lerobot-train on the data set in `folder`."""
    data = ["--dataset.repo_id=local/noise", f"--dataset.root={folder}/data"]
    return [f"--config_path={TINY_YAML}", *data, *SHORT, "--steps=2", f"--output_dir={folder}/{strategy}"]


def command(strategy: str, task: str, folder: Path) -> list[object]:
    """A stage: every case, lerobot-train, or two more steps from its checkpoint."""
    if task == "cases":
        return [__file__, strategy, folder]
    again = f"--config_path={folder}/{strategy}/checkpoints/last/pretrained_model/train_config.json"
    options = train_options(folder, strategy) if task == "train" else [again, "--resume=true", "--steps=4"]
    return ["lerobot-train", *options]


def launched(*options: str) -> dict[str, str]:
    """The environment in which `accelerate launch` would start two processes."""
    arguments = launch_command_parser().parse_args(["--num_processes=2", "--main_process_port=0", *options, "script"])
    environments: list[dict[str, str]] = []
    with mock.patch("torch.distributed.run.run", side_effect=lambda _: environments.append({**os.environ})):
        launch_command(arguments)
    return environments[0]


def join(environment: dict[str, str], rank: int) -> None:
    """Become one of the processes."""
    os.environ.update(environment, RANK=str(rank), LOCAL_RANK=str(rank))
    cpu_fsdp.allow()


def run_all(folder: Path, *options: str) -> str:
    """Every stage, in the environment that these options of `accelerate launch` make; what the first process says."""
    environment = {**launched(*options), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    said = ""
    for strategy, task in STAGES:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            environment["MASTER_PORT"] = str(free.getsockname()[1])
        environment["ACCELERATE_USE_FSDP"] = str(strategy == "fsdp").lower()
        start = partial(commands.run, *command(strategy, task, folder))
        with ThreadPoolExecutor(2) as pool:
            ranks = [pool.submit(start, inside=partial(join, environment, rank)) for rank in range(2)]
        said += ranks[0].result()
        ranks[1].result()
    return said


if __name__ == "__main__":
    from tests.training import processes

    processes.train_all(sys.argv[1], Path(sys.argv[2]))
