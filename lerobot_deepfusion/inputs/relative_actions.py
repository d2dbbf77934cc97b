"""What a data set says of actions relative to the state: which joints, and how they are spread at each step.

LeRobot has steps of its own for relative actions (`relative_actions_processor`), which are not taken. They make a
queued action absolute against the state at its execution and not at its prediction, so that `lerobot-eval` drifts,
and LeRobot's synchronous rollout refuses them; they pair numbers of action and state by their order; and statistics
have to be recomputed by hand, of all steps together, into a copy of the data set.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from lerobot.configs import FeatureType, NormalizationMode, PolicyFeature
from lerobot.processor import NormalizerProcessorStep
from lerobot.utils.constants import ACTION, OBS_STATE
from torch import Tensor
from tqdm import tqdm

from .dataset_facts import DatasetFacts
from .dataset_rows import Rows, read_rows
from .statistics_checks import mode_of

logger = logging.getLogger(__name__)

LEAST_SPREAD = (
    1e-2  # of relative actions, as a share of the absolute ones': a joint that follows at once stays finite
)


def relative_sources(config: Any) -> list[int | None]:
    """For each action dimension that of the state it counts from, or None where it stays absolute.

    By name; where the data set has no names, by place, if state and action are of one size.

    Raises:
        ValueError: for an action that no dimension of the state goes with.
    """
    size, names = config.action_feature.shape[0], config.action_feature_names
    state_size, state_names = config.robot_state_feature.shape[0], config.state_feature_names
    if names is None or state_names is None:
        if size != state_size:
            raise ValueError(
                f"policy.relative_actions=true needs the joint of the state that each action counts from: the data "
                f"set has no names for both, and {size} actions for {state_size} numbers of the state. Write names "
                f"into its meta/info.json, features, for {ACTION} and {OBS_STATE}"
            )
        if config.relative_exclude_joints:
            logger.warning(
                f"the data set has no names of joints, so that all {size} actions are relative, and none is kept "
                f"absolute by policy.relative_exclude_joints={config.relative_exclude_joints}"
            )
        return list(range(size))
    said = [word.lower() for word in config.relative_exclude_joints]
    found: list[int | None] = []
    for name in names:
        kept = any(word in name.lower() for word in said)
        if not kept and name not in state_names:
            raise ValueError(
                f"policy.relative_actions=true and the action {name!r} is no dimension of the state, which are "
                f"{state_names}. Keep it absolute with "
                f"--policy.relative_exclude_joints='{[*config.relative_exclude_joints, name]}'"
            )
        found.append(None if kept else state_names.index(name))
    if not any(source is not None for source in found):
        raise ValueError(
            f"policy.relative_exclude_joints={config.relative_exclude_joints} keeps every action {names} absolute; "
            "leave policy.relative_actions out"
        )
    return found


def relative_lines(config: Any, meta: Any, sources: Sequence[int | None]) -> tuple[Tensor, Tensor, Tensor]:
    """The numbers of `network.relative`, from the rows of a data set.

    Args:
        config: of the policy.
        meta: the data set's metadata; its tables are read, episode by episode.
        sources: see `relative_sources`.

    Returns:
        Scale, shift and offset, [T, A] each.

    Raises:
        ValueError: without tables (a streamed data set) or statistics.
    """
    facts, chunk = DatasetFacts(meta), config.chunk_size
    relative = [index for index, source in enumerate(sources) if source is not None]
    count, mean, square = np.zeros((chunk, 1)), np.zeros((chunk, len(relative))), np.zeros((chunk, len(relative)))
    for states, actions in _episodes(facts):
        there = states[:, [sources[index] for index in relative]]
        for step in range(min(chunk, len(actions))):
            moved = actions[step:, relative] - there[: len(actions) - step]
            count[step] += len(moved)
            mean[step] += moved.sum(0)
            square[step] += (moved**2).sum(0)
    if not count[0]:
        raise ValueError(
            f"policy.relative_actions=true needs the tables of the data set {facts.root}, whose relative actions it "
            "measures, and there are none. Train from a local copy, without --dataset.streaming"
        )
    mean, square = mean / count.clip(1), square / count.clip(1)
    spread = np.sqrt((square - mean**2).clip(0))
    for table in (mean, spread):  # steps that no episode is long enough for are like the last that one is
        table[:] = table[np.minimum(np.arange(chunk), int((count > 0).sum()) - 1)]
    return _lines(config, facts, sources, mean, spread)


def _lines(
    config: Any, facts: DatasetFacts, sources: Sequence[int | None], mean: np.ndarray, spread: np.ndarray
) -> tuple[Tensor, Tensor, Tensor]:
    """Of `mean` and `spread` [T, relative dimensions] of relative actions, in their own units."""
    (zero, unit), (state_zero, state_unit) = (_zero_and_unit(config, facts, key) for key in (ACTION, OBS_STATE))
    scale = torch.ones(config.chunk_size, len(sources), dtype=torch.float64)
    shift, offset = torch.zeros_like(scale), torch.zeros_like(scale)
    for column, index in enumerate(i for i, source in enumerate(sources) if source is not None):
        source = sources[index]
        wide = torch.from_numpy(spread[:, column]).clamp(min=LEAST_SPREAD * float(unit[index]))
        scale[:, index] = unit[index] / wide
        shift[:, index] = state_unit[source] / wide
        offset[:, index] = (zero[index] - state_zero[source] - torch.from_numpy(mean[:, column])) / wide
    return scale.float(), shift.float(), offset.float()


def _zero_and_unit(config: Any, facts: DatasetFacts, key: str) -> tuple[Tensor, Tensor]:
    """What LeRobot's normaliser makes 0, and how far off is 1, for each dimension."""
    size = (config.action_feature if key == ACTION else config.robot_state_feature).shape[0]
    kind = FeatureType.ACTION if key == ACTION else FeatureType.STATE
    mode = mode_of(config, key)
    if mode is not NormalizationMode.IDENTITY and not facts.statistics(key):
        raise ValueError(f"policy.relative_actions=true needs the statistics of {key}, and the data set has none")
    step = NormalizerProcessorStep(
        features={key: PolicyFeature(kind, (size,))}, norm_map={kind: mode}, stats={key: dict(facts.statistics(key))}
    )
    said = {name: torch.as_tensor(value).flatten() for name, value in facts.statistics(key).items()}
    # Two values far apart, since the normaliser rounds to float32.
    low = said.get("min", torch.zeros(size)).float()
    high = torch.maximum(said.get("max", torch.ones(size)).float(), low + 1e-3)
    first, second = (step._apply_transform(value, key, kind).double() for value in (low, high))
    unit = (high.double() - low.double()) / (second - first)
    return low.double() - first * unit, unit


def _episodes(facts: DatasetFacts) -> Any:
    """State and action of each episode that is trained on, [frames, P] and [frames, A] in float64."""
    columns = [facts.column(OBS_STATE), ACTION]
    tables = (read_rows(facts.root, column, facts.trained_episodes, everything=True) for column in columns)
    for states, actions in tqdm(zip(*tables, strict=True), desc="relative actions", unit="table", leave=False):
        for episode in np.unique(states.episode):
            yield tuple(_in_order(rows, episode).astype(np.float64) for rows in (states, actions))


def _in_order(rows: Rows, episode: int) -> np.ndarray:
    some = rows[np.flatnonzero(rows.episode == episode)]
    return some.values[np.argsort(some.frame)]
