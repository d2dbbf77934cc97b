"""What stops a run before its first step: what a data set's metadata says, and its numbers as far as they are read.

statistics, and rows against them .... inputs/statistics_checks.py, inputs/row_checks.py
what the metadata says ............... inputs/dataset_facts.py
task texts ........................... inputs/task_checks.py
names of joints and cameras .......... inputs/identity.py
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from lerobot.utils.constants import ACTION, OBS_STATE

from .batch_checks import check_camera
from .damaged_files import check_videos
from .dataset_facts import NUMBERS, DatasetFacts, states
from .depth_keys import EXTRINSICS, INTRINSICS
from .row_checks import check_not_finite, check_rows
from .statistics_checks import STATISTICS, check_statistics, mode_of, warn_of_statistics

logger = logging.getLogger(__name__)


def check_dataset(config: Any, meta: Any) -> None:
    """What can be seen of a data set before any sample of it is drawn.

    Args:
        config: the `DeepFusionConfig` of the policy that is to be trained on it.
        meta: `LeRobotDatasetMetadata`.

    Raises:
        ValueError: naming what doesn't fit, where, and the mend.
    """
    facts = DatasetFacts(meta)
    check_columns(config, facts)
    facts.rename_statistics()
    for key in (OBS_STATE, ACTION):
        needed = STATISTICS.get(mode_of(config, key), ())
        check_not_finite(key, facts, needed)
    checked = check_statistics(config, getattr(meta, "stats", None))
    warn_of_statistics(checked)
    check_videos(facts.root)
    check_lengths(config, facts)
    for done in checked:
        check_rows(done, facts)
    if config.depth_cameras and (moving := facts.moving_transforms()):
        raise ValueError(
            f"--dataset.image_transforms has {moving}, which move what is in a picture and not the depth under it. "
            "Leave them out (--dataset.image_transforms.tfs), and shift both together with --policy.image_shift"
        )
    where = (INTRINSICS, EXTRINSICS) if config.depth_cameras else ()
    if unused := [key for key in facts.unused_vectors() if not key.startswith(where)]:
        logger.info(
            f"the policy sees {OBS_STATE} and its cameras, and learns {ACTION}: it takes nothing of {unused}. What "
            f"it should see or do besides belongs into {OBS_STATE} or {ACTION}"
        )


def check_columns(config: Any, facts: DatasetFacts) -> None:
    """State, actions and cameras of a data set, as its metadata describes them.

    Raises:
        ValueError: for a state that is missing, a column that is no numbers, or a camera of other proportions.
    """
    if facts.state_key is None:
        raise ValueError(
            f"the data set has no {OBS_STATE}, and its columns {states(facts.features)} could all be the state: "
            "LeRobot's --rename_map renames the batch and leaves the statistics, so that it must be clear which one "
            "is meant. Rename that column in the data set, or leave the others out (lerobot-edit-dataset)"
        )
    for key in (OBS_STATE, ACTION):
        column = facts.features.get(facts.column(key))
        if facts.features and column is None:
            raise ValueError(f"the data set has no {key}, which this policy needs; it has {sorted(facts.features)}")
        if column is not None and not column["dtype"].startswith(NUMBERS):
            raise ValueError(f"{key} is of dtype {column['dtype']!r} in the data set; expected numbers")
    for key in config.cameras:
        if key in facts.features and facts.features[key]["dtype"] in ("image", "video"):
            check_camera(key, _picture_shape(facts.features[key]), config.image_features[key])


def _picture_shape(feature: Mapping[str, Any]) -> tuple[int, ...]:
    """Of a batch of one, channels first, as LeRobot gives it."""
    first, second, third = feature["shape"]
    last = list(feature.get("names") or ())[2:] in (["channel"], ["channels"])
    return (1, third, first, second) if last else (1, first, second, third)


def check_lengths(config: Any, facts: DatasetFacts) -> None:
    """
    Raises:
        ValueError: if no episode that is trained on is as long as a chunk, or none has a frame left.
    """
    longest, name = max(facts.lengths()), facts.meta.repo_id
    if config.chunk_size > longest:
        raise ValueError(
            f"policy.chunk_size={config.chunk_size} and the longest episode of {name} has {longest} frames: "
            f"the last {config.chunk_size - longest} actions of a chunk would never be trained. Set "
            f"--policy.chunk_size={longest} or less, and --policy.n_action_steps no higher"
        )
    if config.drop_n_last_frames >= longest:
        raise ValueError(
            f"policy.drop_n_last_frames={config.drop_n_last_frames} and the longest episode of {name} has {longest} "
            f"frames: nothing would be left to train on. Set --policy.drop_n_last_frames={longest - 1} or less"
        )
