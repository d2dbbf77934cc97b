"""A sample of a data set with pictures in its tables decodes one of each camera, whatever the length of a chunk."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from lerobot.datasets.dataset_reader import DatasetReader
from lerobot.datasets.io_utils import hf_transform_to_torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset

from lerobot_deepfusion.inputs.action_windows import ColumnReader, read_actions_alone
from tests.small_data import CHUNK, columns, load, picture, write


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with each picture that is decoded."""
    original, count = datasets.Image.decode_example, []

    def counting(self: datasets.Image, *args: Any, **kwargs: Any) -> Any:
        count.append(1)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(datasets.Image, "decode_example", counting)
    return count


def equal(one: dict[str, Any], other: dict[str, Any]) -> bool:
    same = [
        torch.equal(one[key], value) if torch.is_tensor(value) else one[key] == value for key, value in other.items()
    ]
    return one.keys() == other.keys() and all(same)


@pytest.mark.parametrize("episodes", [None, [1, 2]], ids=["all", "chosen"])
def test_one_picture_of_each_camera_is_decoded(
    tmp_path: Path, decoded: list[int], episodes: list[int] | None
) -> None:
    features = columns(observation__images__wrist=picture(), observation__images__depth=picture(channels=1))
    root = write(tmp_path / "data", features, episodes=[(12, "pick"), (9, "place"), (12, "push")])
    data = load(root, episodes)
    places = range(0, len(data), 4)
    before = [data[index] for index in places]
    of_lerobot = len(decoded) // len(places)
    assert of_lerobot == 3 + 3 * CHUNK  # as long as this holds, the reader is of use

    read_actions_alone(data.meta)
    decoded.clear()
    after = [data[index] for index in places]
    assert len(decoded) == 3 * len(places)
    assert all(map(equal, before, after))

    copied: LeRobotDataset = pickle.loads(pickle.dumps(data))  # to a worker that was not forked
    decoded.clear()
    assert all(equal(old, copied[index]) for index, old in zip(places, before, strict=True))
    assert len(decoded) == 3 * len(places)


def test_columns_are_of_the_table_that_is_there_now(tmp_path: Path) -> None:
    data = load(write(tmp_path / "data"))
    read_actions_alone(data.meta)
    actions = data[0]["action"]

    def doubled(rows: dict[str, Any]) -> dict[str, Any]:
        rows = hf_transform_to_torch(rows)
        return {**rows, "action": [2 * action for action in rows["action"]]}

    data.reader.hf_dataset = data.reader.hf_dataset.with_transform(doubled)
    assert torch.equal(data[0]["action"], 2 * actions)


def test_other_readers_are_left_alone(tmp_path: Path) -> None:
    class Own(DatasetReader):
        pass

    data, other = load(write(tmp_path / "one")), load(write(tmp_path / "other"))
    data.reader.__class__ = Own
    read_actions_alone(data.meta)
    assert type(data.reader) is Own
    assert type(other.reader) is DatasetReader
    read_actions_alone(other.meta)
    assert type(other.reader) is ColumnReader
