"""Several processes train what one does: DDP and FSDP, on CPUs, by LeRobot's own step and by its command."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from accelerate.utils import FullyShardedDataParallelPlugin
from checkpoints import write_llava
from conftest import llava_config
from processes import CASES, LLAVAS, STRATEGIES, build, config_of, padded_batch, train
from safetensors.torch import load_file
from test_plugin import SHORT, TINY_YAML, write_noise
from torch import Tensor
from transformers.modeling_layers import GradientCheckpointingLayer

from lerobot_deepfusion import DeepFusionConfig
from lerobot_deepfusion.expert import TimeModulation
from lerobot_deepfusion.lockstep import build_model, frozen_modules
from lerobot_deepfusion.modeling_deepfusion import DeepFusionPolicy
from lerobot_deepfusion.sharding import unit_classes

HERE = Path(__file__).parent
FSDP_YAML = HERE.parent / "configs/accelerate/fsdp.yaml"


def launch(*arguments: object) -> str:
    """`accelerate launch` two processes."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes=2", "--main_process_port=0"]
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [*command, *map(str, arguments)], capture_output=True, text=True, env=environment, timeout=290
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-6000:]
    return result.stdout + result.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two processes have trained every case, by DDP and then by FSDP as the shipped file has it."""
    folder = tmp_path_factory.mktemp("processes")
    for make in LLAVAS:
        write_llava(folder / make, make)
    launch(f"--config_file={FSDP_YAML}", HERE / "processes.py", folder)
    return folder


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[tuple[str, str], dict[str, Any]]]:
    """What each of the two found."""
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.fixture(autouse=True)
def own_accelerator() -> Iterator[None]:
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@functools.cache
def alone(name: str) -> dict[str, Any]:
    """What one process finds, which has the whole batch."""
    return train(CASES[name])


def distance(x: dict[str, Tensor], y: dict[str, Tensor]) -> float:
    """Of all weights as one vector."""
    return sum(float((x[key].double() - y[key].double()).square().sum()) for key in x) ** 0.5


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", CASES)
def test_two_processes_train_as_one(
    name: str, strategy: str, folder: Path, ranks: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has half of the batch, with unequal padding: mean loss, gradient norm and weights are those of one."""
    monkeypatch.chdir(folder)
    one, (first, second) = alone(name), (rank[strategy, name] for rank in ranks)
    half = CASES[name].get("dtype") == "bfloat16"
    assert (first["history"] - second["history"])[:, 0].abs().min() > 0.05  # the halves do differ
    mean = (first["history"] + second["history"]) / 2
    assert torch.allclose(mean, one["history"], rtol=LOSS[half], atol=0)
    assert all(torch.equal(one["before"][key], value) for key, value in first["before"].items())
    assert {key: value.dtype for key, value in one["after"].items()} == {
        key: value.dtype for key, value in first["after"].items()
    }
    moved = distance(one["after"], one["before"])
    assert moved > 0.1
    assert distance(one["after"], first["after"]) < WEIGHTS[half] * moved
