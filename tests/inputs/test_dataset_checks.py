"""What a data set's metadata knows is looked at before the first step, of the episodes that were chosen."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from lerobot.configs import NormalizationMode, PreTrainedConfig
from lerobot.configs.default import DatasetConfig
from lerobot.configs.train import TrainPipelineConfig
from lerobot.datasets.factory import make_train_eval_datasets

from lerobot_deepfusion import DeepFusionConfig
from lerobot_deepfusion.inputs.dataset_facts import DatasetFacts, dimension_names
from lerobot_deepfusion.inputs.statistics_checks import STATISTICS
from tests import small_data
from tests.small_data import columns, first_loss, load, picture, prepare, save, vector, write

LONG = "take the red cup from the left shelf and put it on the blue tray"
TASKS = [(12, "pick"), (12, "place"), (12, LONG), (12, "push")]


@pytest.mark.medium
def test_every_task_text_is_looked_at(tmp_path: Path) -> None:
    """The longest is named, before a network is built; those of episodes that nobody chose do no harm."""
    root = write(tmp_path / "data", episodes=TASKS)
    with pytest.raises(
        ValueError, match=rf"the task '{LONG}' .* 65 tokens.*is 24; 1 of 4 texts.*max_length=65 or more"
    ):
        prepare(load(root), small_data.config())
    assert first_loss(load(root, [0, 1, 3]), small_data.config()) < 100
    assert first_loss(load(root), small_data.config(tokenizer_max_length=65)) < 100
    with pytest.raises(ValueError, match="1 of 2 texts are too long"):
        prepare(load(root, [0, 2]), small_data.config())


@pytest.mark.medium
def test_the_image_token_in_a_text(tmp_path: Path) -> None:
    root = write(tmp_path / "data", episodes=[(12, "pick"), (12, "look at <image>")])
    with pytest.raises(ValueError, match="contains the image token '<image>'"):
        prepare(load(root), small_data.config())


@pytest.mark.medium
def test_texts_of_the_episodes_that_are_held_out_count(tmp_path: Path) -> None:
    """`--dataset.eval_split` makes a second data set of them, on which the loss is computed too."""
    root = write(tmp_path / "data", episodes=TASKS)
    held_out, chosen = load(root, [2]), load(root, [0, 1])
    with pytest.raises(ValueError, match="1 of 3 texts are too long"):
        prepare(chosen, small_data.config())
    assert held_out.episodes == [2]


@pytest.mark.medium
def test_texts_of_fine_tuning_are_the_base_s_prompts(tmp_path: Path) -> None:
    base = base_of(tmp_path)
    data = load(write(tmp_path / "long", episodes=[(12, "pick"), (12, LONG)]))
    with pytest.raises(ValueError, match="1 of 2 texts are too long"):
        first_loss(data, base)
    base.tokenizer_max_length = 65
    assert first_loss(data, base) < 100


FIVE = [*TASKS[:2], TASKS[0], TASKS[1], (8, "pick"), (12, LONG)]


@pytest.mark.medium
@pytest.mark.parametrize(
    ("dataset", "policy", "said"),
    [
        ({"episodes": [0, 1]}, {}, None),
        ({"episodes": [0, 5]}, {}, "1 of 2 texts"),
        ({}, {}, "1 of 3 texts"),
        ({"episodes": [0, 1, 2, 3], "eval_split": 0.5}, {}, None),
        ({"episodes": [4]}, {"chunk_size": 9}, "chunk_size=9 and the longest episode of local/small has 8 frames"),
        ({"episodes": [0, 2, 4], "eval_split": 0.3}, {"chunk_size": 9}, None),
        ({"episodes": [4]}, {"drop_n_last_frames": 8}, "--policy.drop_n_last_frames=7 or less"),
    ],
)
def test_episodes_as_the_command_chooses_them(tmp_path: Path, dataset: dict, policy: dict, said: str | None) -> None:
    """`--dataset.episodes` and `eval_split`, through LeRobot's own function."""
    root = write(tmp_path / "data", episodes=FIVE)
    options = small_data.config(**policy)
    cfg = TrainPipelineConfig(DatasetConfig("local/small", root=str(root), **dataset), policy=options)
    trained, held_out = make_train_eval_datasets(cfg)
    if said is None:
        prepare(trained, options)
    else:
        with pytest.raises(ValueError, match=said):
            prepare(trained, options)
    del held_out


@pytest.mark.medium
def test_the_data_set_that_is_trained_on_is_told_from_others(tmp_path: Path) -> None:
    """Of the same folder or not, alive at the same time or not."""
    root, other = (write(tmp_path / name, episodes=TASKS) for name in ("data", "other"))
    whole, some, elsewhere = load(root), load(root, [1]), load(other, [0, 3])
    assert DatasetFacts(some.meta).trained_episodes == [1]
    assert DatasetFacts(whole.meta).trained_episodes == [0, 1, 2, 3]
    assert DatasetFacts(elsewhere.meta).used_episodes == [0, 3]
    assert DatasetFacts(some.meta).tasks() == ["place"]  # the whole one is no held-out part of it
    meta = some.meta
    del some
    gc.collect()
    assert DatasetFacts(meta).trained_episodes == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["a", "b"], ["a", "b"]),
        ({"motors": ["a", "b"]}, ["a", "b"]),
        ({"arm": ["a"], "hand": ["b"]}, ["a", "b"]),
        ({"a": 0, "b": 1}, None),
        (["a"], None),
        (["a", "a"], None),
        (["motors"], None),
        (None, None),
        ("ab", None),
    ],
)
def test_names_of_dimensions(names: object, found: list[str] | None) -> None:
    assert dimension_names({"dtype": "float32", "shape": (2,), "names": names}) == found


@pytest.mark.parametrize(
    ("features", "said"),
    [
        (columns(observation__state=None), "observation.state is not among the features of the data set, which are"),
        (columns(action=None), "action is not among the features"),
        (columns(observation__image=None), "no camera among the input features"),
        (
            columns(observation__state={"dtype": "string", "shape": (1,), "names": None}),
            "observation.state is of dtype 'string' in the data set; expected numbers",
        ),
        (columns(action={"dtype": "float32", "shape": (2, 3), "names": None}), "expected a vector"),
    ],
)
def test_columns_that_the_policy_needs(tmp_path: Path, features: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        prepare(load(write(tmp_path / "data", features)), small_data.config())


@pytest.mark.medium
def test_a_camera_of_other_proportions_than_the_base_s(tmp_path: Path) -> None:
    """The metadata has them: not in the first batch."""
    base = base_of(tmp_path)
    other = load(write(tmp_path / "b", columns(observation__image=picture(64, 64))))
    with pytest.raises(ValueError, match="64 x 64 pixels and the policy was trained on 48 x 64"):
        prepare(other, base)


RENAME = {"observation.joints": "observation.state"}


@pytest.mark.medium
@pytest.mark.parametrize("mode", ["MEAN_STD", "MIN_MAX", "QUANTILES", "QUANTILE10"])
def test_fine_tuning_on_a_renamed_state(tmp_path: Path, mode: str) -> None:
    """LeRobot renames the batch and not the statistics; they are applied all the same, to the bit."""
    base = base_of(tmp_path, normalization_mapping=chosen(mode))
    features = columns(observation__state=None, observation__joints=vector(4))
    data = load(write(tmp_path / "renamed", features))
    _, pre, _ = prepare(data, base, RENAME)
    batch = next(iter(torch.utils.data.DataLoader(data, batch_size=8)))
    stats = data.meta.stats["observation.joints"]
    low, high = (torch.tensor(stats[name]).float() for name in STATISTICS[NormalizationMode[mode]])
    x = batch["observation.joints"]
    expected = (x - low) / (high + 1e-8) if mode == "MEAN_STD" else 2 * (x - low) / (high - low) - 1
    assert torch.equal(pre(batch)["observation.state"], expected)


@pytest.mark.medium
def test_fine_tuning_where_several_columns_could_be_the_state(tmp_path: Path) -> None:
    base = base_of(tmp_path)
    features = columns(observation__state=None, observation__joints=vector(4), observation__effort=vector(4))
    with pytest.raises(ValueError, match=r"\['observation.joints', 'observation.effort'\] could all be the state"):
        prepare(load(write(tmp_path / "several", features)), base, RENAME)
    features = columns(observation__state=None)
    with pytest.raises(ValueError, match=r"the data set has no observation.state"):
        prepare(load(write(tmp_path / "none", features)), base)


def base_of(folder: Path, **options: Any) -> DeepFusionConfig:
    """The config of a checkpoint that is to be trained on, as `--policy.path` gives it."""
    base = save(folder / "base", *prepare(load(write(folder / "first")), small_data.config(**options)))
    loaded = PreTrainedConfig.from_pretrained(base)
    loaded.pretrained_path = base
    return loaded


def chosen(mode: str) -> dict[str, NormalizationMode]:
    return {"VISUAL": NormalizationMode.IDENTITY, "STATE": NormalizationMode[mode], "ACTION": NormalizationMode[mode]}
