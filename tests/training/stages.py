"""One of several processes that train: all that is to be done by DDP and FSDP, each in a fork of its own.

Importing LeRobot takes longer than most of it.

accelerate launch --config_file=configs/accelerate/fsdp.yaml --num_processes=2 --module tests.training.stages <folder>
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
from pathlib import Path

from lerobot.scripts import lerobot_train
from torch.distributed import TCPStore

from tests.commands import SHORT, TINY_YAML
from tests.training import cpu_fsdp, processes

STAGES = [("ddp", "cases"), ("fsdp", "cases"), ("fsdp", "train"), ("fsdp", "resume"), ("ddp", "resume")]


def train_options(folder: Path, strategy: str) -> list[str]:
    """Two steps of lerobot-train on the data set in `folder`."""
    data = ["--dataset.repo_id=local/noise", f"--dataset.root={folder}/data"]
    return [f"--config_path={TINY_YAML}", *data, *SHORT, "--steps=2", f"--output_dir={folder}/{strategy}"]


def run(strategy: str, task: str, folder: Path) -> None:
    """A stage: every case, lerobot-train, or two more steps from its checkpoint."""
    if task == "cases":
        return processes.train_all(strategy, folder)
    again = f"--config_path={folder}/{strategy}/checkpoints/last/pretrained_model/train_config.json"
    options = train_options(folder, strategy) if task == "train" else [again, "--resume=true", "--steps=4"]
    sys.argv = ["lerobot-train", *options]
    lerobot_train.main()


def own_port(number: int, launcher: TCPStore) -> None:
    """Where the processes of a stage find each other: a free port that the first one tells through the launcher."""
    if os.environ["RANK"] == "0":
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            launcher.set(f"stage {number}", str(free.getsockname()[1]))
    os.environ["MASTER_PORT"] = launcher.get(f"stage {number}").decode()
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"


def main(folder: Path) -> None:
    cpu_fsdp.allow()
    launcher = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
    for number, (strategy, task) in enumerate(STAGES):
        own_port(number, launcher)
        os.environ["ACCELERATE_USE_FSDP"] = str(strategy == "fsdp").lower()
        stage = multiprocessing.get_context("fork").Process(target=run, args=(strategy, task, folder))
        stage.start()
        stage.join()
        if stage.exitcode:
            sys.exit(f"{strategy}, {task}: exit code {stage.exitcode}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
