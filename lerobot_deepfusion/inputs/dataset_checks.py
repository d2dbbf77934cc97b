"""What stops a run before its first step: what can be seen of a data set without reading a sample of it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lerobot.configs import NormalizationMode
from lerobot.utils.constants import ACTION, OBS_STATE

from .damaged_files import check_videos

logger = logging.getLogger(__name__)

STATISTICS = {
    NormalizationMode.MEAN_STD: ("mean", "std"),
    NormalizationMode.MIN_MAX: ("min", "max"),
    NormalizationMode.QUANTILES: ("q01", "q99"),
    NormalizationMode.QUANTILE10: ("q10", "q90"),
}
CONSTANT = 1e-6  # spread of a state dimension that never changes


def check_dataset(config: Any, meta: Any) -> None:
    """What can be seen of a data set before any sample of it is read.

    Args:
        config: the `DeepFusionConfig` of the policy that is to be trained on it.
        meta: `LeRobotDatasetMetadata`.

    Raises:
        ValueError: if a statistic is missing or wrong, no episode is as long as a chunk, or a video is cut short.
    """
    check_statistics(config, meta.stats)
    warn_of_constants(config, meta.stats)
    check_videos(Path(meta.root))
    longest = max(meta.episodes["length"])
    if config.chunk_size > longest:
        raise ValueError(
            f"policy.chunk_size={config.chunk_size} and the longest episode of {meta.repo_id} has {longest} frames: "
            f"the last {config.chunk_size - longest} actions of a chunk would never be trained. Set "
            f"--policy.chunk_size={longest} or less, and --policy.n_action_steps no higher"
        )


def check_statistics(config: Any, dataset_stats: Mapping[str, Mapping[str, Any]] | None) -> None:
    """LeRobot passes a feature without statistics through unchanged; here it stops the run.

    Raises:
        ValueError: naming the key, what was found and what is needed.
    """
    features = {**config.input_features, **config.output_features}
    for key in (OBS_STATE, ACTION):
        mode = config.normalization_mapping.get(features[key].type.value, NormalizationMode.IDENTITY)
        found = (dataset_stats or {}).get(key, {})
        for name in STATISTICS.get(mode, ()):
            if found.get(name) is None:
                raise ValueError(
                    f"{key} is to be normalised by {mode.value} and the data set's statistics have no '{name}' for "
                    f"it (they have {sorted(found)}); recompute them with lerobot-edit-dataset, or change "
                    "policy.normalization_mapping"
                )
            value = torch.as_tensor(found[name])
            if not torch.isfinite(value).all() or tuple(value.shape) != tuple(features[key].shape):
                raise ValueError(
                    f"statistic '{name}' of {key} is {value.tolist()}; expected {features[key].shape[0]} finite "
                    "numbers. Recompute the data set's statistics with lerobot-edit-dataset"
                )


def warn_of_constants(config: Any, dataset_stats: Mapping[str, Mapping[str, Any]]) -> None:
    """State dimensions that never change in the data: LeRobot divides by their spread, however small."""
    mode = config.normalization_mapping.get(config.robot_state_feature.type.value, NormalizationMode.IDENTITY)
    if mode in STATISTICS:
        low, high = (torch.as_tensor(dataset_stats[OBS_STATE][name]) for name in STATISTICS[mode])
        spread = high if mode == NormalizationMode.MEAN_STD else high - low
        constant = (spread < CONSTANT).nonzero().flatten().tolist()
        if constant:
            logger.warning(
                f"{OBS_STATE} never changes in its dimensions {constant}: on a robot, where it differs by a "
                "thousandth, it would be hundreds of times larger than anything that was trained. Leave these "
                "dimensions out of the data set"
            )
