"""The average of weights: against a loop, through checkpoints and LeRobot's hook."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata
from lerobot.utils.constants import PRETRAINED_MODEL_DIR
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.fsdp import FullyShardedDataParallel

from lerobot_deepfusion.modeling_deepfusion import DeepFusionPolicy
from lerobot_deepfusion.storage.averaged_weights import FILE
from tests.policies import make, make_config
from tests.small_data import columns, picture, write

NAME = "model.expert.action_out_proj.weight"
DECAY = 0.9


def step(policy: DeepFusionPolicy, optimizer: torch.optim.Optimizer, batch: dict, seed: int) -> Tensor:
    """As LeRobot's `update_policy` does it."""
    policy.train()
    torch.manual_seed(seed)
    policy.forward(batch)[0].backward()
    optimizer.step()
    optimizer.zero_grad()
    policy.update()
    return policy.get_parameter(NAME).detach().clone()


def sgd(policy: DeepFusionPolicy) -> torch.optim.Optimizer:
    return torch.optim.SGD(policy.parameters(), 0.01)


def test_average_equals_a_loop() -> None:
    """Of the first updates it keeps 1/11, 2/12, ... and later the decay; worst error 3e-8."""
    policy, batch, _ = make(ema_decay=0.4)
    optimizer, expected = sgd(policy), None
    for index in range(10):
        weight = step(policy, optimizer, batch, index)
        keep = min(0.4, (index + 1) / (11 + index))
        expected = weight if expected is None else keep * expected + (1 - keep) * weight
    assert policy.average is not None
    assert expected is not None
    assert torch.allclose(policy.average.values[NAME], expected, atol=1e-6)


def test_acts_with_the_average_and_trains_on_without() -> None:
    policy, batch, _ = make(ema_decay=DECAY)
    optimizer = sgd(policy)
    for index in range(3):
        trained = step(policy, optimizer, batch, index)
    noise = torch.randn(3, 6, 3)
    acting = policy.predict_action_chunk(batch, noise=noise)  # which puts it into evaluation mode
    assert policy.average is not None
    assert torch.equal(policy.average.values[NAME], trained)
    average = policy.get_parameter(NAME).detach().clone()
    assert not torch.equal(average, trained)
    policy.train()
    assert torch.equal(policy.get_parameter(NAME), trained)
    policy.config.ema_decay = 0.0
    plain, _, _ = make()
    plain.load_state_dict({**policy.state_dict(), **policy.average.values})
    assert torch.equal(plain.predict_action_chunk(batch, noise=noise), acting)


def test_is_off_by_default() -> None:
    policy, batch, _ = make()
    step(policy, sgd(policy), batch, 0)
    assert policy.average is None


def test_resumed_run_equals_one_that_went_on(tmp_path: Path) -> None:
    """Weights and average to the bit; the checkpoint acts with the average, and a plain save is that alone."""
    policy, batch, _ = make(ema_decay=DECAY)
    optimizer = sgd(policy)
    for index in range(3):
        step(policy, optimizer, batch, index)
    checkpoint = tmp_path / PRETRAINED_MODEL_DIR
    policy.save_pretrained(checkpoint)
    policy.save_pretrained(tmp_path / "plain")
    assert not (tmp_path / "plain" / FILE).exists()
    meta = LeRobotDatasetMetadata(
        "local/small", root=write(tmp_path / "data", columns(observation__image=picture(64, 80)))
    )
    resumed = DeepFusionPolicy.from_pretrained(checkpoint, dataset_meta=meta)
    for index in range(3, 6):
        step(policy, optimizer, batch, index)
        step(resumed, sgd(resumed), batch, index)
    assert policy.average is not None
    assert resumed.average is not None
    assert resumed.average.updates == 6
    assert all(torch.equal(a, b) for a, b in zip(policy.parameters(), resumed.parameters(), strict=True))
    assert all(torch.equal(value, resumed.average.values[name]) for name, value in policy.average.values.items())

    acting, plain = (DeepFusionPolicy.from_pretrained(path) for path in (checkpoint, tmp_path / "plain"))
    noise = torch.randn(3, 6, 3)
    chunks = [one.predict_action_chunk(batch, noise=noise) for one in (acting, plain)]
    assert torch.equal(*chunks)
    live = DeepFusionPolicy.from_pretrained(checkpoint, config=make_config(ema_decay=0.0))
    assert not torch.equal(live.predict_action_chunk(batch, noise=noise), chunks[0])


def test_frozen_weights_are_not_averaged() -> None:
    policy, batch, _ = make(ema_decay=DECAY, train_expert_only=True)
    step(policy, sgd(policy), batch, 0)
    assert policy.average is not None
    assert policy.average.values
    assert all(name.startswith("model.expert.") for name in policy.average.values)


def test_an_average_of_other_weights_is_refused(tmp_path: Path) -> None:
    policy, batch, _ = make(ema_decay=DECAY)
    step(policy, sgd(policy), batch, 0)
    checkpoint = tmp_path / PRETRAINED_MODEL_DIR
    policy.save_pretrained(checkpoint)
    values = load_file(checkpoint / FILE)
    save_file({**values, "model.other": torch.zeros(1)}, checkpoint / FILE)
    with pytest.raises(RuntimeError, match=r"averaged.safetensors does not fit this policy: model.other; remove it"):
        DeepFusionPolicy.from_pretrained(checkpoint)
    (checkpoint / FILE).write_bytes(b"half")
    with pytest.raises(ValueError, match="not a complete safetensors file"):
        DeepFusionPolicy.from_pretrained(checkpoint)


@pytest.mark.parametrize("decay", [1.0, -0.1])
def test_what_is_no_decay(decay: float) -> None:
    with pytest.raises(ValueError, match=r"policy.ema_decay=.*choose a share in \[0, 1\)"):
        make_config(ema_decay=decay)


def test_weights_in_shards_are_refused() -> None:
    """As FSDP has it, which puts itself around each layer."""
    policy, *_ = make(ema_decay=DECAY)
    around = FullyShardedDataParallel.__new__(FullyShardedDataParallel)
    torch.nn.Module.__init__(around)
    policy.model.expert.around = around
    with pytest.raises(ValueError, match="spread over processes"):
        policy.update()


def test_adapters_are_refused() -> None:
    policy, *_ = make(ema_decay=DECAY)
    with pytest.raises(ValueError, match=r"with --peft give --policy\.ema_decay=0"):
        policy.wrap_with_peft()
    policy.register_parameter("lora_A", torch.nn.Parameter(torch.zeros(1)))
    with pytest.raises(ValueError, match=r"with --peft give --policy\.ema_decay=0"):
        policy.update()


def test_a_checkpoint_of_evaluation_mode_is_the_same(tmp_path: Path) -> None:
    """Whichever weights are in place, the run's are `model.safetensors`, and the average is beside them."""
    policy, batch, _ = make(ema_decay=DECAY)
    step(policy, sgd(policy), batch, 0)
    step(policy, sgd(policy), batch, 1)
    trained = policy.get_parameter(NAME).detach().clone()
    for mode in (True, False):
        policy.train(mode)
        policy.save_pretrained(tmp_path / str(mode) / PRETRAINED_MODEL_DIR)
        files = [
            load_file(tmp_path / str(mode) / PRETRAINED_MODEL_DIR / name) for name in ("model.safetensors", FILE)
        ]
        assert torch.equal(files[0][NAME], trained)
        assert not torch.equal(files[1][NAME], trained)


def test_what_was_frozen_begins_its_average_where_it_is(tmp_path: Path) -> None:
    policy, batch, _ = make(ema_decay=DECAY, freeze_vision_encoder=True)
    step(policy, sgd(policy), batch, 0)
    checkpoint = tmp_path / PRETRAINED_MODEL_DIR
    policy.save_pretrained(checkpoint)
    meta = LeRobotDatasetMetadata(
        "local/small", root=write(tmp_path / "data", columns(observation__image=picture(64, 80)))
    )
    config = make_config(ema_decay=DECAY)
    whole = DeepFusionPolicy.from_pretrained(checkpoint, config=config, dataset_meta=meta)
    assert whole.average is not None
    new = [name for name in whole.average.values if "vision_tower" in name]
    assert new
    assert all(torch.equal(whole.average.values[name], whole.get_parameter(name)) for name in new)
