"""What a checkpoint's processor files hold: statistics that are applied, and a tokenizer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lerobot_deepfusion.modeling_deepfusion import DeepFusionPolicy
from tests import small_data
from tests.small_data import first_loss, load, prepare, save, write

STATE, ACTION = "observation.state", "action"
PRE, POST = "policy_preprocessor", "policy_postprocessor"


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("untouched")
    return save(folder / "saved", *prepare(load(write(folder / "data")), small_data.config()))


@pytest.fixture
def checkpoint(untouched: Path, tmp_path: Path) -> Path:
    """One to be changed, beside the data."""
    shutil.copytree(untouched.parent, tmp_path, dirs_exist_ok=True)
    return tmp_path / "saved"


def edit(folder: Path, pipeline: str, step: str, change: dict | None = None, **tensors: torch.Tensor | None) -> None:
    """Change a step's config and tensors in its files."""
    file = folder / f"{pipeline}.json"
    content = json.loads(file.read_text())
    entry = next(entry for entry in content["steps"] if entry["registry_name"] == step)
    entry["config"].update(change or {})
    file.write_text(json.dumps(content))
    state = load_file(folder / entry["state_file"])
    for name, value in tensors.items():
        key = name.replace("__", ".")
        state.pop(key, None)
        if value is not None:
            state[key] = value
    save_file(state, folder / entry["state_file"])


BEFORE, AFTER = (PRE, "normalizer_processor"), (POST, "unnormalizer_processor")
NOTHING = {
    f"action__{name}": None for name in ["min", "max", "mean", "std", "count", "q01", "q10", "q50", "q90", "q99"]
}


@pytest.mark.medium
@pytest.mark.parametrize(
    ("where", "change", "tensors", "said"),
    [
        (BEFORE, {}, {"observation.state__std": None}, "no 'std'"),
        (BEFORE, {}, NOTHING, "would not normalise action by MEAN_STD.*no statistics for it"),
        (BEFORE, {"features": {}}, {}, "would not normalise observation.state.*features are"),
        (BEFORE, {"normalize_observation_keys": ["observation.other"]}, {}, "normalises .'observation.other'. only"),
        (BEFORE, {"norm_map": {"STATE": "IDENTITY", "ACTION": "MEAN_STD"}}, {}, "its mode for it is IDENTITY"),
        (BEFORE, {"norm_map": {"STATE": "MIN_MAX", "ACTION": "MEAN_STD"}}, {}, "its mode for it is MIN_MAX"),
        (BEFORE, {"no_such": 1}, {}, "can't be built: TypeError"),
        (BEFORE, {}, {"action__std": torch.tensor([1.0, torch.nan, 1.0])}, "statistic 'std' of action"),
        (BEFORE, {}, {"observation.state__mean": torch.zeros(3)}, "expected 4 finite numbers"),
        (AFTER, {}, NOTHING, "policy_postprocessor.json .* would not normalise action"),
        (AFTER, {"norm_map": {}}, {}, "its mode for it is IDENTITY"),
        (AFTER, {}, {"action__std": torch.ones(3)}, "actions would not be scaled back as they were trained"),
    ],
)
def test_a_checkpoint_whose_steps_would_not_normalise(
    checkpoint: Path, where: tuple[str, str], change: dict, tensors: dict, said: str
) -> None:
    """LeRobot loads each of them, and lets states through unchanged, or scales actions by other numbers."""
    DeepFusionPolicy.from_pretrained(checkpoint)
    edit(checkpoint, *where, change, **tensors)
    with pytest.raises(ValueError, match=said):
        DeepFusionPolicy.from_pretrained(checkpoint)


@pytest.mark.medium
def test_a_checkpoint_s_constants_are_told(checkpoint: Path, caplog: pytest.LogCaptureFixture) -> None:
    same = {f"observation.state__{name}": torch.tensor([1.0, 2.0, 3.0, 0.5]) for name in ("min", "max")}
    edit(checkpoint, *BEFORE, **same)
    DeepFusionPolicy.from_pretrained(checkpoint)
    assert "never changes in its dimensions [0, 1, 2, 3] (joint0, joint1, joint2, joint3)" in caplog.text


@pytest.mark.medium
def test_a_base_without_statistics_can_be_trained_on(checkpoint: Path, tmp_path: Path) -> None:
    """The data set's take their place."""
    edit(checkpoint, *BEFORE, **{f"{key}__std": None for key in (STATE, ACTION)})
    base = small_data.config(pretrained_path=checkpoint)
    base.vlm_config = None
    assert first_loss(load(tmp_path / "data"), base) < 100
