"""What version 0.1.0 wrote loads for ever: every weight, what the policy does with it, and where its run was.

`write_0_1.py` says what the files are. Their digests stand here, so that nobody writes them anew without a thought.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from lerobot.common.train_utils import load_training_state
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from safetensors.torch import load_file
from torch import Tensor

import lerobot_policy_deepfusion  # noqa: F401  # as LeRobot's commands import it

ROOT = Path(__file__).parent / "0.1"
SEED, STEPS = 7, 3  # as `write_0_1.py` has them
DIGESTS = {
    "expected.safetensors": "2c70ef015e90276d94abc0b074e280ce0f66d03d008f4e1aa635c2b54780df92",
    "llava/pretrained_model/model.safetensors": "78f0df89712c9734de74f305f23952240721619e3c91b943f131f379b15adb4a",
    "tiny/pretrained_model/model.safetensors": "022dbd88942008156ef9495656dd00aebd1dcc7cafe4045a536613922e6fa78c",
    "tiny/training_state/optimizer_state.safetensors": (
        "ce171a14784ed82734f7b36bc154ad9ba5ae64af5ead620f5748fd6300e013d4"
    ),
}
# Of the names of the parameters in the order in which 0.1.0's optimizer had them: AdamW's state knows only numbers.
ORDER = "bdaaa8f00758bc0f3bf340a06f4841fc9567e545205565da0314516912532934"
TASKS = ["push", "pull", "turn the tap"]


def load(name: str) -> tuple[Any, dict[str, Any], Any]:
    """As LeRobot's commands load it: policy, the pre-processed batch, and the step behind the policy."""
    folder = str(ROOT / name / "pretrained_model")
    policy = get_policy_class("deepfusion").from_pretrained(folder)
    pre, post = make_pre_post_processors(policy.config, pretrained_path=folder)
    batch = {key: value for key, value in expected().items() if "." not in key or key.startswith("observation.")}
    return policy.eval(), pre({**batch, "task": TASKS}), post


def expected() -> dict[str, Tensor]:
    return load_file(ROOT / "expected.safetensors")


def test_nobody_wrote_them_anew() -> None:
    found = {
        path.relative_to(ROOT).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(ROOT.rglob("*.safetensors"))
        if "processor" not in path.name and "rng" not in path.name
    }
    assert found == DIGESTS


@pytest.mark.parametrize("name", ["llava", "tiny"])
def test_every_weight_loads_to_the_bit(name: str) -> None:
    policy, _, _ = load(name)
    stored = load_file(ROOT / name / "pretrained_model/model.safetensors")
    loaded = policy.state_dict()
    assert loaded.keys() == stored.keys()
    assert all(key.startswith(("model.perception.", "model.expert.")) for key in loaded)
    assert [key for key in stored if not torch.equal(loaded[key], stored[key])] == []


@pytest.mark.parametrize("name", ["llava", "tiny"])
def test_acts_and_scores_as_it_did(name: str) -> None:
    """Within 1e-5 of the largest value, since processors differ in the last digits; 0 where they were written.

    The chunk starts at the noise that was kept. The loss draws its own from a seed: another number of draws, or
    another order of them, is another loss.
    """
    policy, batch, post = load(name)
    known = expected()
    chunk = policy.predict_action_chunk(batch, noise=known["noise"])
    torch.manual_seed(SEED)
    with torch.no_grad():
        losses = policy.forward(batch, reduction="none")[0]
    for key, value in {"chunk": chunk, "executed": post(chunk), "losses": losses}.items():
        worst = (value - known[f"{name}.{key}"]).abs().max() / known[f"{name}.{key}"].abs().max()
        assert worst <= 1e-5, f"{key}: {worst}"
    moved = policy.predict_action_chunk(batch, noise=known["noise"] + 0.01)
    assert (moved - chunk).abs().max() > 1e-3  # the chunk does depend on what it is given


def test_run_goes_on_where_it_was() -> None:
    """Optimizer, schedule and step of a run that 0.1.0 had stopped: AdamW's moments belong to the same weights."""
    policy, batch, _ = load("tiny")
    config = policy.config
    optimizer = config.get_optimizer_preset().build(policy.get_optim_params())
    scheduler = config.get_scheduler_preset().build(optimizer, 10)
    step, optimizer, scheduler = load_training_state(ROOT / "tiny", optimizer, scheduler)
    assert step == STEPS
    assert scheduler.last_epoch == STEPS
    moments = load_file(ROOT / "tiny/training_state/optimizer_state.safetensors")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    names = {parameter: name for name, parameter in policy.named_parameters()}
    assert len(parameters) == len(names)
    assert hashlib.sha256("\n".join(names[parameter] for parameter in parameters).encode()).hexdigest() == ORDER
    for index, parameter in enumerate(parameters):
        state = optimizer.state[parameter]
        assert torch.equal(state["exp_avg"], moments[f"state/{index}/exp_avg"])
        assert state["exp_avg"].shape == parameter.shape
    policy.train()
    policy.forward(batch)[0].backward()
    optimizer.step()
    scheduler.step()
    assert scheduler.last_epoch == STEPS + 1
