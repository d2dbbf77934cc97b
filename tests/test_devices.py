"""Other devices and other processes than the one that a policy was built on."""

from __future__ import annotations

import copy
import io
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lerobot_deepfusion.network.expert import MAX_PERIOD, MIN_PERIOD, time_features
from tests.commands import run
from tests.policies import make, make_batch

# Apple's GPUs have none of these.
LACKING = {torch.float64, torch.complex64, torch.complex128}
OPTIONS = [
    {},
    {"fusion": "hidden", "time_conditioning": "token", "num_flow_samples": 2},
    {"fusion": "late", "action_expert_type": "late_gemma", "action_attention": "causal"},
    {"dtype": "bfloat16", "train_expert_only": True, "state_dropout": 0.5, "image_shift": 0.1},
    {"empty_cameras": 1, "gradient_checkpointing": True, "knowledge_insulation": True},
]


class AppleGpu(TorchDispatchMode):
    """Fails at any tensor of a type that Apple's GPUs lack."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves((args, kwargs, out)):
            if isinstance(tensor, torch.Tensor) and tensor.dtype in LACKING:
                raise TypeError(f"{func} has a tensor of {tensor.dtype}, which the device lacks")
        return out


def test_the_device_that_stands_for_apple_s() -> None:
    for dtype in LACKING:
        with pytest.raises(TypeError, match="which the device lacks"), AppleGpu():
            torch.zeros(2, dtype=dtype)


@pytest.mark.medium
@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options) or "plain")
def test_a_step_and_a_chunk_on_a_device_without_float64(options: dict) -> None:
    """From the raw batch through loss, backward pass and optimizer; then a chunk, and an action sent back."""
    policy, _, pipelines = make(**options)
    optimizer = policy.config.get_optimizer_preset().build(policy.get_optim_params())
    raw = make_batch(policy.config)
    with AppleGpu():
        policy.train()
        loss, _ = policy.forward(pipelines["pre"](dict(raw)))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        action = pipelines["post"](policy.select_action(pipelines["pre"](dict(raw))))
    assert torch.isfinite(action).all()


def test_time_features_equal_those_in_float64() -> None:
    """Against float64 over [0, 1]. Worst error: 4.2e-7; in plain float32 it is 2e-4."""
    torch.manual_seed(0)
    time = torch.cat([torch.rand(50_000), torch.linspace(0, 1, 10_001), torch.rand(1000) * 1e-4])
    period = MIN_PERIOD * (MAX_PERIOD / MIN_PERIOD) ** torch.linspace(0, 1, 128, dtype=torch.float64)
    for part in time.split(10_000):
        angle = 2 * math.pi * part.double()[:, None] / period
        expected = torch.cat([angle.sin(), angle.cos()], dim=-1)
        assert (time_features(part).double() - expected).abs().max() < 1e-6


def copies(policy: Any) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(policy, file)
    file.seek(0)
    return {
        "pickle": pickle.loads(pickle.dumps(policy)),
        "deepcopy": copy.deepcopy(policy),
        "torch.save": torch.load(file, weights_only=False),
    }


@pytest.mark.medium
@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options) or "plain")
def test_copies_act_alike_and_stand_alone(options: dict) -> None:
    """To the bit, with what was queued and weights of their own: the first is as it was when the copy's are gone."""
    policy, batch, _ = make(**options)
    noise = torch.randn(3, 6, 3)
    policy.select_action(batch, noise=noise)
    expected = policy.predict_action_chunk(batch, noise=noise)
    for how, again in copies(policy).items():
        assert len(again._action_queue) == 2
        assert torch.equal(again.predict_action_chunk(batch, noise=noise), expected), how
        with torch.no_grad():
            for parameter in again.parameters():
                parameter.zero_()
        assert not torch.equal(again.predict_action_chunk(batch, noise=noise), expected), how
        assert torch.equal(policy.predict_action_chunk(batch, noise=noise), expected), how


def test_a_compiled_step_is_compiled_anew() -> None:
    """Nothing of it is in the copy, whose own is of its own weights."""
    policy, _, _ = make(compile_model=True)
    for again in copies(policy).values():
        assert again._denoise._torchdynamo_orig_callable.__self__ is again.model


@pytest.mark.medium
def test_another_process_unpickles_it(tmp_path: Path) -> None:
    """Which has made none of the classes yet."""
    policy, batch, _ = make()
    noise = torch.randn(3, 6, 3)
    expected = policy.predict_action_chunk(batch, noise=noise)
    (tmp_path / "policy.pkl").write_bytes(pickle.dumps((policy, batch, noise, expected)))
    code = (
        "import pickle, sys, torch\n"
        "policy, batch, noise, expected = pickle.load(open(sys.argv[1], 'rb'))\n"
        "assert torch.equal(policy.predict_action_chunk(batch, noise=noise), expected)\n"
    )
    run("-c", code, tmp_path / "policy.pkl")


@pytest.mark.parametrize(
    "cast",
    [
        lambda p: p.to(torch.bfloat16),
        lambda p: p.half(),
        lambda p: p.double(),
        lambda p: p.bfloat16(),
        lambda p: p.to("cpu", torch.float16),
        lambda p: p.to(torch.zeros(1, dtype=torch.float64)),
    ],
)
def test_a_whole_policy_is_not_cast(cast: Any) -> None:
    """It would compute neither as it was trained nor at all; `policy.dtype` is the way."""
    policy, batch, _ = make()
    with pytest.raises(ValueError, match=r"can't be cast to torch\..*--policy.dtype=bfloat16"):
        cast(policy)
    assert all(value.dtype == torch.float32 for value in policy.state_dict().values() if value.is_floating_point())
    assert policy.to("cpu") is policy
    assert policy.to(torch.float32) is policy
    assert policy.select_action(batch).shape == (3, 3)
