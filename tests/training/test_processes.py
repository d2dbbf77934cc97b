"""Several processes train what one does: DDP and FSDP, on CPUs, by LeRobot's own step and by its command."""

from __future__ import annotations

import functools
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from accelerate.utils import FullyShardedDataParallelPlugin
from safetensors.torch import load_file
from torch import Tensor
from transformers.modeling_layers import GradientCheckpointingLayer

from lerobot_deepfusion import DeepFusionConfig
from lerobot_deepfusion.modeling_deepfusion import DeepFusionPolicy
from lerobot_deepfusion.network.expert import TimeModulation
from lerobot_deepfusion.network.lockstep import build_model, frozen_modules
from lerobot_deepfusion.training.fsdp import unit_classes
from tests.checkpoints import write_llava
from tests.commands import ROOT, SCRIPTS, finish, write_noise
from tests.llavas import llava_config
from tests.training.processes import AVERAGE, CASES, LLAVAS, build, config_of, padded_batch, train
from tests.training.stages import run_all, train_options

FSDP_YAML = ROOT / "configs/accelerate/fsdp.yaml"

# By dtype float32 and bfloat16: relative error of losses and gradient norms, and of the way the weights went.
# Sums in another order are all that differs. Measured: 6e-5 and 1e-2; 1.6e-3 and 2.5e-2, since AdamW makes as much of
# the smallest gradient as of the largest, also where it is rounding alone.
HISTORY = {"float32": 3e-4, "bfloat16": 3e-2}
WEIGHTS = {"float32": 5e-3, "bfloat16": 0.1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two processes have trained by DDP and by the shipped file's FSDP: every case, and by lerobot-train.

    The first run of lerobot-train is the installed command, started by the launcher.
    """
    folder = tmp_path_factory.mktemp("processes")
    for make in LLAVAS:
        write_llava(folder / make, make)
    write_noise(folder / "data", ("image",), 2, 2)
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"]
    launcher += ["--num_processes=2", "--main_process_port=0"]
    said = finish(*launcher, SCRIPTS / "lerobot-train", *train_options(folder, "ddp"))
    assert "Effective batch size: 4 x 2 = 8" in said
    said = run_all(folder, f"--config_file={FSDP_YAML}")
    assert said.count("Effective batch size: 4 x 2 = 8") == 3  # trained, and resumed by either
    return folder


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[str, dict[str, Any]]]:
    """What each of the two found, by strategy and case."""
    return [{name: torch.load(folder / f"{name}{rank}.pt") for name in ("ddp", "fsdp")} for rank in range(2)]


@pytest.fixture(autouse=True)
def own_accelerator() -> Iterator[None]:
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@functools.cache
def alone(name: str) -> dict[str, Any]:
    """What one process finds, which has the whole batch."""
    return train(CASES[name])


def types(weights: dict[str, Tensor]) -> dict[str, torch.dtype]:
    return {key: value.dtype for key, value in weights.items()}


def distance(x: dict[str, Tensor], y: dict[str, Tensor]) -> float:
    """Of all weights as one vector."""
    return sum(float((x[key].double() - y[key].double()).square().sum()) for key in x) ** 0.5


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("name", CASES)
def test_two_processes_train_as_one(
    name: str, strategy: str, folder: Path, ranks: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has half of the batch, with unequal padding: mean loss, gradient norm and weights are those of one."""
    monkeypatch.chdir(folder)
    one, (first, second) = alone(name), (rank[strategy][name] for rank in ranks)
    dtype = CASES[name].get("dtype", "float32")
    assert (first["history"] - second["history"])[:, 0].abs().min() > 0.05  # the halves do differ
    mean = (first["history"] + second["history"]) / 2
    assert mean[0, 0].item() == pytest.approx(one["history"][0, 0].item(), rel=1e-5)  # before any update
    assert torch.allclose(mean, one["history"], rtol=HISTORY[dtype], atol=0)
    assert distance(one["before"], first["before"]) == 0
    assert types(one["after"]) == types(first["after"])
    moved = distance(one["after"], one["before"])
    assert moved > 0.1
    assert distance(one["after"], first["after"]) < WEIGHTS[dtype] * moved


@pytest.mark.slow
def test_average_of_two_processes_is_that_of_one(ranks: list) -> None:
    """Of weights that have moved, and the same in both, to the bit."""
    first, second = (rank["ddp"]["average"]["average"] for rank in ranks)
    one = train(AVERAGE)
    assert distance(first, second) == 0
    moved = distance(one["average"], one["before"])
    assert moved > 0.05
    assert distance(one["average"], one["after"]) > 0.05 * moved
    assert distance(one["average"], first) < WEIGHTS["float32"] * moved


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_fsdp_shards_whole_layers(name: str, folder: Path, ranks: list, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process holds half of the parameters, and every layer, modulation and frozen part is a unit."""
    monkeypatch.chdir(folder)
    for rank in ranks:
        assert rank["fsdp"][name]["share"] == pytest.approx(0.5, abs=1e-3)  # padding is the rest
        assert rank["ddp"][name]["share"] == 1
    policy = build(config_of(CASES[name]))
    units = [m for m in policy.modules() if isinstance(m, GradientCheckpointingLayer | TimeModulation)]
    units += [policy, *frozen_modules(policy.config, policy.model)]
    assert ranks[0]["fsdp"][name]["units"] == Counter(type(unit).__name__ for unit in units)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_checkpoint_of_shards_loads_in_one_process(
    name: str, folder: Path, ranks: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights and actions are those of the gathered weights, to the bit."""
    monkeypatch.chdir(folder)
    gathered = ranks[0]["fsdp"][name]["after"]
    loaded, policy = DeepFusionPolicy.from_pretrained(folder / name), build(config_of(CASES[name]))
    policy.load_state_dict(gathered)
    assert distance(loaded.state_dict(), gathered) == 0
    batch, noise = padded_batch(policy.config), torch.randn(4, 6, 3)
    assert torch.equal(*(one.predict_action_chunk(batch, noise=noise) for one in (loaded, policy)))


@pytest.mark.parametrize("frozen", [{}, {"freeze_vision_encoder": True}, {"train_expert_only": True}])
def test_units_are_in_the_model(make: str, frozen: dict[str, bool]) -> None:
    """accelerate finds every class, which it stops without; a layer is a unit, or in a list of none."""
    config = DeepFusionConfig(**frozen)
    with torch.device("meta"):
        model = build_model(config, llava_config(make).to_dict())
    model._no_split_modules = unit_classes(model, frozen_modules(config, model))
    plugin = FullyShardedDataParallelPlugin(fsdp_version=1, auto_wrap_policy="TRANSFORMER_BASED_WRAP")
    plugin.set_auto_wrap_policy(model)
    wrapped = tuple(plugin.auto_wrap_policy.keywords["transformer_layer_cls"])
    lists = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
    assert len(lists) == 3  # vision tower, text model, expert
    assert all(isinstance(layer, wrapped) for layers in lists for layer in layers)


def momentum(checkpoint: Path) -> Tensor:
    """Norm of AdamW's averages of each parameter, in no order: by number or by name, as the optimizer has it."""
    state = load_file(checkpoint / "training_state/optimizer_state.safetensors")
    return torch.tensor([value.norm() for key, value in state.items() if key.endswith("/exp_avg")]).sort().values


@pytest.mark.slow
def test_command_resumes_and_shards_make_no_difference(folder: Path) -> None:
    """By FSDP the weights and momenta of both checkpoints, the second of a resumed run, are those of DDP."""
    by_ddp, by_fsdp = (folder / strategy / "checkpoints" for strategy in ("ddp", "fsdp"))
    ddp, fsdp = (
        {step: load_file(run / step / "pretrained_model/model.safetensors") for step in ("000002", "000004")}
        for run in (by_ddp, by_fsdp)
    )
    moved = distance(ddp["000002"], ddp["000004"])
    assert moved > 0.01  # the rate is still warming up
    for step in ddp:
        assert distance(ddp[step], fsdp[step]) < WEIGHTS["float32"] * moved
        assert torch.allclose(momentum(by_ddp / step), momentum(by_fsdp / step), rtol=1e-3, atol=1e-6)
    DeepFusionPolicy.from_pretrained(by_fsdp / "last/pretrained_model")
