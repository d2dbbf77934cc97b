"""Chunks that a policy predicts along recorded episodes, beside what was recorded; its motors stand still.

Axis letters: M observations, T actions of a chunk, A action dimensions.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lerobot.datasets.factory import resolve_delta_timestamps
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from torch import Tensor
from torch.utils.data import default_collate

from ..inputs.batch_shapes import fit_targets
from ..inputs.depth_keys import depth_key
from ..modeling_deepfusion import DeepFusionPolicy
from .observations import known_data

AT_ONCE, TIMED = 16, 5  # observations in a pass; chunks of one observation whose time is taken
AS_GOOD = 1.02  # times the error


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
        self.meta = known_data(root, repo_id, episodes)
        steps = resolve_delta_timestamps(policy.config, self.meta)
        self.data = LeRobotDataset(repo_id, root=root, delta_timestamps=steps)
        self.places: list[tuple[int, int, int]] = []  # episode, frame, row
        for episode in episodes:
            row = self.meta.episodes[episode]
            start, stop = row["dataset_from_index"], row["dataset_to_index"]
            self.places += [(episode, index - start, index) for index in range(start, stop, stride)]
        self.tasks = [str(task) for task in self.meta.tasks.index]

    def batches(self) -> Iterator[dict[str, Any]]:
        """As the data set has them."""
        for start in range(0, len(self.places), AT_ONCE):
            yield default_collate([self.data[index] for _, _, index in self.places[start : start + AT_ONCE]])

    def black(self, batch: dict[str, Any]) -> dict[str, Any]:
        """No picture, and no depth; of a pre-processed batch, where cameras have the policy's names."""
        cameras = self.policy.config.cameras
        dark = {*cameras, *(depth_key(camera) for camera in cameras)} & batch.keys()
        return {**batch, **{key: torch.zeros_like(batch[key]) for key in dark}}

    def other_words(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Each sample with the instruction of the next task of the data set."""
        after = dict(zip(self.tasks, [*self.tasks[1:], self.tasks[0]], strict=True))
        return {**batch, "task": [after[task] for task in batch["task"]]}


@torch.no_grad()
def predict_along(course: Course, counts: Sequence[int], samples: int) -> Along:
    """By each number of evaluations, and as the controls have it, from the same noise; and the spread of several.

    Args:
        course: what the policy is shown.
        counts: numbers of evaluations, the most at the end; what an objective other than `flow` needs is its own.
        samples: chunks of each observation, for the spread.
    """
    policy, config = course.policy, course.policy.config
    size = len(course.places), config.chunk_size, config.action_feature.shape[0]
    noises = torch.randn(samples, *size, generator=torch.Generator().manual_seed(0)).split(AT_ONCE, dim=1)
    most, targets, spread, found = counts[-1], [], [], defaultdict(list)

    def ask(batch: dict[str, Any], noise: Tensor, evaluations: int = most) -> Tensor:
        config.num_inference_steps = evaluations
        return policy.predict_action_chunk(dict(batch), noise=noise.to(config.device)).float().cpu()

    for raw, noise in zip(course.batches(), noises, strict=True):
        batch = course.before(dict(raw))
        targets.append(fit_targets(config, batch))
        for count in counts:
            found[f"{count} evaluations"].append(ask(batch, noise[0], count))
        drawn = [found[f"{most} evaluations"][-1], *(ask(batch, own) for own in noise[1:])]
        spread.append(torch.stack(drawn).std(0) if samples > 1 else torch.full_like(drawn[0], torch.nan))
        found["black pictures"].append(ask(course.black(batch), noise[0]))
        if len(course.tasks) > 1:
            found["other instructions"].append(ask(course.before(course.other_words(raw)), noise[0]))
    one = {key: value[:1] for key, value in batch.items() if isinstance(value, Tensor | list)}
    recorded, valid = (torch.cat(parts).cpu() for parts in zip(*targets, strict=True))
    return Along(
        [episode for episode, _, _ in course.places],
        [frame for _, frame, _ in course.places],
        recorded,
        valid,
        {name: torch.cat(parts) for name, parts in found.items()},
        torch.cat(spread),
        {count: _seconds(policy, one, count) for count in counts},
    )


def _seconds(policy: DeepFusionPolicy, batch: dict[str, Any], evaluations: int) -> float:
    """Median time of a chunk of one observation."""
    policy.config.num_inference_steps = evaluations
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
