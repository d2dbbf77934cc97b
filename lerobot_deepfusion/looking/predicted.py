"""Chunks that a policy predicts along recorded episodes, beside what was recorded; its motors stand still.

Axis letters: M observations, T actions of a chunk, A action dimensions.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lerobot.datasets.factory import resolve_delta_timestamps
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.utils.constants import ACTION
from torch import Tensor
from torch.utils.data import default_collate

from ..inputs.batch_shapes import fit_targets
from ..inputs.depth_keys import depth_key
from ..modeling_deepfusion import DeepFusionPolicy

AT_ONCE, TIMED = 16, 5  # observations in a pass; chunks of one observation whose time is taken
AS_GOOD = 1.02  # times the error

Change = Callable[[dict[str, Any]], dict[str, Any]]


def _as_it_is(batch: dict[str, Any]) -> dict[str, Any]:
    return batch


@dataclass
class Along:
    """
    Attributes:
        episodes, frames: where each observation is from, [M].
        recorded: normalised, [M, T, A].
        valid: bool [M, T], False behind the end of an episode.
        chunks: normalised predictions by condition, [M, T, A].
        spread: of several samples, the standard deviation [M, T, A].
        seconds: of a chunk of one observation, by number of evaluations.
    """

    episodes: list[int]
    frames: list[int]
    recorded: Tensor
    valid: Tensor
    chunks: dict[str, Tensor]
    spread: Tensor
    seconds: dict[int, float] = field(default_factory=dict)

    def squared(self, condition: str) -> Tensor:
        """Squared error [M, T], the mean over dimensions; NaN behind the end."""
        error = (self.chunks[condition] - self.recorded).square().mean(-1)
        return error.masked_fill(~self.valid, torch.nan)

    def error(self, condition: str) -> float:
        """Root mean square over all that was recorded, in the units that the policy normalises to."""
        return self.squared(condition).nanmean().sqrt().item()


class Course:
    """Observations along episodes of a data set, in batches as the policy takes them.

    Args:
        policy: whose chunks are predicted.
        before: its pre-processor.
        root: folder of the data set.
        repo_id: its name.
        episodes: which.
        stride: frames from one observation to the next.
    """

    def __init__(
        self, policy: DeepFusionPolicy, before: Any, root: Path, repo_id: str, episodes: Sequence[int], stride: int
    ) -> None:
        self.policy, self.before = policy, before
        whole = LeRobotDataset(repo_id, root=root)
        self.meta = whole.meta
        if unknown := [episode for episode in episodes if not 0 <= episode < self.meta.total_episodes]:
            raise ValueError(f"episodes {unknown}: {root} has the episodes 0 to {self.meta.total_episodes - 1}")
        steps = resolve_delta_timestamps(policy.config, self.meta)
        self.data = LeRobotDataset(repo_id, root=root, delta_timestamps=steps)
        self.places: list[tuple[int, int, int]] = []  # episode, frame, row
        for episode in episodes:
            row = self.meta.episodes[episode]
            start, stop = row["dataset_from_index"], row["dataset_to_index"]
            self.places += [(episode, index - start, index) for index in range(start, stop, stride)]
        self.tasks = [str(task) for task in self.meta.tasks.index]

    def batches(self, words: Change = _as_it_is, pictures: Change = _as_it_is) -> Iterator[dict[str, Any]]:
        """Pre-processed batches, to whose words something was done before and to whose pictures behind: the
        pre-processor knows other names of cameras.
        """
        for start in range(0, len(self.places), AT_ONCE):
            rows = [self.data[index] for _, _, index in self.places[start : start + AT_ONCE]]
            yield pictures(self.before(words(default_collate(rows))))

    def black(self, batch: dict[str, Any]) -> dict[str, Any]:
        """No picture, and no depth."""
        cameras = self.policy.config.cameras
        dark = {*cameras, *(depth_key(camera) for camera in cameras)} & batch.keys()
        return {**batch, **{key: torch.zeros_like(batch[key]) for key in dark}}

    def other_words(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Each sample with the instruction of the next task of the data set."""
        after = dict(zip(self.tasks, [*self.tasks[1:], self.tasks[0]], strict=True))
        return {**batch, "task": [after[task] for task in batch["task"]]}


def conditions(course: Course, counts: Sequence[int]) -> dict[str, tuple[int, dict[str, Change]]]:
    """By name, evaluations and what is done to the observation: nothing, or what the controls are."""
    most = counts[-1]
    found: dict[str, tuple[int, dict[str, Change]]] = {f"{count} evaluations": (count, {}) for count in counts}
    found["black pictures"] = most, {"pictures": course.black}
    if len(course.tasks) > 1:
        found["other instructions"] = most, {"words": course.other_words}
    return found


@torch.no_grad()
def predict_along(course: Course, counts: Sequence[int], samples: int) -> Along:
    """All conditions, from the same noise; and the spread of several noises.

    Args:
        course: what the policy is shown.
        counts: numbers of evaluations, the most at the end; what an objective other than `flow` needs is its own.
        samples: chunks of each observation, for the spread.
    """
    policy, config = course.policy, course.policy.config
    size = len(course.places), config.chunk_size, config.action_feature.shape[0]
    noise = torch.randn(samples, *size, generator=torch.Generator().manual_seed(0))
    targets = [tuple(value.cpu() for value in fit_targets(config, batch)) for batch in course.batches()]
    recorded, valid = (torch.cat(values) for values in zip(*targets, strict=True))

    def chunks(batches: Iterator[dict[str, Any]], evaluations: int, sample: int = 0) -> Tensor:
        config.num_inference_steps = evaluations
        found, start = [], 0
        for batch in batches:
            count = len(batch[ACTION])
            part = noise[sample, start : start + count].to(config.device)
            found.append(policy.predict_action_chunk(dict(batch), noise=part).float().cpu())
            start += count
        return torch.cat(found)

    by_condition = {
        name: chunks(course.batches(**changes), evaluations)
        for name, (evaluations, changes) in conditions(course, counts).items()
    }
    drawn = torch.stack([chunks(course.batches(), counts[-1], sample) for sample in range(samples)])
    along = Along(
        [episode for episode, _, _ in course.places],
        [frame for _, frame, _ in course.places],
        recorded,
        valid,
        by_condition,
        drawn.std(0) if samples > 1 else torch.full_like(recorded, torch.nan),
    )
    one = {key: value[:1] for key, value in next(course.batches()).items() if isinstance(value, Tensor | list)}
    for count in counts:
        config.num_inference_steps = count
        along.seconds[count] = _seconds(policy, one)
    return along


def _seconds(policy: DeepFusionPolicy, batch: dict[str, Any]) -> float:
    """Median time of a chunk of one observation."""
    times = []
    for _ in range(TIMED):
        start = time.perf_counter()
        policy.predict_action_chunk(dict(batch)).cpu()  # which waits for the device
        times.append(time.perf_counter() - start)
    return sorted(times)[len(times) // 2]


def enough(along: Along, counts: Sequence[int]) -> int:
    """The smallest number of evaluations whose error is at most `AS_GOOD` times that of the most."""
    most = along.error(f"{counts[-1]} evaluations")
    return next(count for count in counts if along.error(f"{count} evaluations") <= AS_GOOD * most)
