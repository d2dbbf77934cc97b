"""A small LeRobotDataset held in memory, so that the clock of a run sees the policy and not a decoder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.utils.constants import ACTION, OBS_PREFIX
from torch import Tensor


class Demonstrations:
    """Batches that equal LeRobot's own, from columns that are read once.

    Args:
        root: folder of a data set whose pictures are images, as `deepfusion demos` writes them.
        text: in the place of every task's own.
    """

    def __init__(self, root: Path, text: str | None = None) -> None:
        data = LeRobotDataset("local/study", root=root)
        self.meta = data.meta
        rows = data.hf_dataset.with_format(None)
        pictures = [key for key, value in self.meta.features.items() if value["dtype"] == "image"]
        cameras = [key for key in pictures if self.meta.features[key]["shape"][-1] == 3]
        self.columns: dict[str, Tensor] = {
            key: torch.stack(
                [torch.from_numpy(np.array(row[key])).permute(2, 0, 1) for row in rows.select_columns(key)]
            )
            for key in cameras
        }
        for key in set(pictures) - set(cameras):  # depth, to which LeRobot gives its unit
            self.columns[key] = torch.stack([data[index][key] for index in range(len(data))])
        vectors = rows.remove_columns(pictures).with_format("torch")
        for key in self.meta.features:
            if key == ACTION or (key.startswith(OBS_PREFIX) and key not in pictures):
                self.columns[key] = vectors[key][:].float()
        names = {row.task_index: name for name, row in self.meta.tasks.iterrows()}
        self.tasks = [text or names[int(index)] for index in vectors["task_index"][:]]
        episode = vectors["episode_index"][:]
        bounds = torch.tensor([[e["dataset_from_index"], e["dataset_to_index"]] for e in self.meta.episodes])
        self.first, self.end = bounds[episode].unbind(1)

    def batch(self, rows: Tensor, config: Any) -> dict[str, Any]:
        """What LeRobot's loader gives for these frames.

        Args:
            rows: int64 [B].
            config: of the policy; its `observation_delta_indices` and `action_delta_indices` are windows around a
                frame, whose parts outside the episode repeat its ends and are marked in `<key>_is_pad`.
        """
        found: dict[str, Any] = {"task": [self.tasks[row] for row in rows.tolist()]}
        for key, column in self.columns.items():
            deltas = config.action_delta_indices if key == ACTION else config.observation_delta_indices
            wanted = rows if deltas is None else rows[:, None] + torch.tensor(deltas)
            first, end = (b[rows] if deltas is None else b[rows][:, None] for b in (self.first, self.end))
            values = column[wanted.clamp(min=first, max=end - 1)]
            found[key] = values.float() / 255 if values.dtype == torch.uint8 else values
            if deltas is not None:
                found[f"{key}_is_pad"] = (wanted < first) | (wanted >= end)
        return found

    def epochs(self, size: int, seed: int) -> Iterator[Tensor]:
        """Rows of one batch after the other, each epoch in an order of its own; a last incomplete one is left out."""
        generator = torch.Generator().manual_seed(seed)
        while True:
            order = torch.randperm(len(self.tasks), generator=generator)
            yield from order[: len(order) // size * size].split(size)
