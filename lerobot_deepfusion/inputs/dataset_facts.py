"""What a data set says of itself, as the checks ask for it."""

from __future__ import annotations

import gc
import math
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from lerobot.utils.constants import ACTION, OBS_STATE, OBS_STR

DATASETS = ("LeRobotDataset", "StreamingLeRobotDataset")
# Of torchvision and LeRobot: what leaves every pixel where it is.
COLOURS = (
    "ColorJitter",
    "GaussianNoise",
    "Grayscale",
    "Identity",
    "JPEG",
    "RandomAdjustSharpness",
    "RandomAutocontrast",
    "RandomChannelPermutation",
    "RandomEqualize",
    "RandomErasing",
    "RandomGrayscale",
    "RandomInvert",
    "RandomPhotometricDistort",
    "RandomPosterize",
    "RandomSolarize",
    "SharpnessJitter",
)
NUMBERS = ("float", "int", "uint", "bool")  # how the dtypes of columns begin that a state may be


def dimension_names(feature: Mapping[str, Any] | None) -> list[str] | None:
    """Names of a vector's dimensions, one each, or None where a data set has none that fit its shape.

    Args:
        feature: an entry of `meta.features`; its names may be a list, or lists under headings, as older ones are.
    """
    names = (feature or {}).get("names")
    if isinstance(names, Mapping):
        names = [name for group in names.values() for name in (group if isinstance(group, list | tuple) else [group])]
    if feature is None or not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        return None
    return list(names) if len(names) == math.prod(feature["shape"]) and len(set(names)) == len(names) else None


def states(features: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Keys of the columns that a policy could be given as its state: vectors of numbers, `observation.state` alone
    where there is one.
    """
    if OBS_STATE in features:
        return [OBS_STATE]
    return [
        key
        for key, feature in features.items()
        if key.startswith(OBS_STR) and len(feature["shape"]) == 1 and feature["dtype"].startswith(NUMBERS)
    ]


class DatasetFacts:
    """Of a `LeRobotDatasetMetadata`, or of what stands in for one and has less.

    Attributes:
        meta: the metadata itself.
        features: description of each column.
        state_key: the column that is the state: where `--rename_map` gives another one that name, LeRobot renames the
            batch and not what is known of the data set. None if there is none, or several that could be meant.
    """

    def __init__(self, meta: Any) -> None:
        self.meta = meta
        self.features: Mapping[str, Mapping[str, Any]] = getattr(meta, "features", {})
        found = states(self.features)
        self.state_key = found[0] if len(found) == 1 else None if found else OBS_STATE

    @property
    def root(self) -> Path:
        return Path(self.meta.root)

    def column(self, key: str) -> str:
        """The data set's own name of what the policy calls `key`."""
        return self.state_key or key if key == OBS_STATE else key

    def names(self, key: str) -> list[str] | None:
        """See `dimension_names`; `key` is the policy's."""
        return dimension_names(self.features.get(self.column(key)))

    @cached_property
    def trained_episodes(self) -> list[int]:
        """The episodes that training draws from.

        LeRobot gives a policy the metadata of all episodes, and doesn't say which were chosen. The data set that has
        this metadata is there, though. Without one, all episodes count.
        """
        chosen = [dataset.episodes for dataset in self.datasets if dataset.meta is self.meta]
        everything = range(len(self.meta.episodes["length"]))
        return sorted(everything if not chosen or None in chosen else {index for some in chosen for index in some})

    @cached_property
    def used_episodes(self) -> list[int]:
        """These, and those held out from them for evaluation (`--dataset.eval_split`), a data set of their own."""
        trained = set(self.trained_episodes)
        others = (dataset.episodes for dataset in self.datasets if dataset.meta is not self.meta)
        held_out = [set(some) for some in others if some is not None and not trained & set(some)]
        return sorted(trained.union(*held_out))

    @cached_property
    def datasets(self) -> list[Any]:
        """LeRobot's data sets of this root that are in use."""
        found = [item for item in gc.get_objects() if type(item).__name__ in DATASETS and hasattr(item, "meta")]
        return [item for item in found if Path(item.meta.root) == self.root]

    def moving_transforms(self) -> list[str]:
        """Names of LeRobot's image transforms that may move what is in a picture."""
        used = [getattr(dataset, "image_transforms", None) for dataset in self.datasets]
        named = [getattr(transforms, "transforms", {}) for transforms in used if transforms is not None]
        return sorted({name for some in named for name, tf in some.items() if type(tf).__name__ not in COLOURS})

    def lengths(self) -> list[int]:
        """Frames of each episode that is trained on."""
        lengths = list(self.meta.episodes["length"])
        return [lengths[index] for index in self.trained_episodes]

    def tasks(self) -> list[str]:
        """Every task text of the episodes that are used."""
        table = getattr(self.meta, "tasks", None)
        if table is None:
            return []
        try:
            of_episodes = self.meta.episodes["tasks"]
        except KeyError:
            return [str(task) for task in table.index]
        return sorted({str(task) for index in self.used_episodes for task in of_episodes[index] or ()})

    def statistics(self, key: str) -> Mapping[str, Any]:
        """Statistics of what the policy calls `key`; empty if there are none."""
        return (getattr(self.meta, "stats", None) or {}).get(self.column(key)) or {}

    def rename_statistics(self) -> None:
        """Give the state's statistics the policy's name too, under which the normaliser looks for them.

        LeRobot 0.6.1 hands the very statistics of this metadata to the normaliser next.
        """
        stats = getattr(self.meta, "stats", None)
        if stats is not None and self.state_key in stats:
            stats.setdefault(OBS_STATE, stats[self.state_key])

    def unused_vectors(self) -> list[str]:
        """Columns of numbers whose names say state or action, and of which the policy takes nothing."""
        return [
            key
            for key, feature in self.features.items()
            if key.startswith((OBS_STR, ACTION))
            and key not in (self.state_key, ACTION)
            and feature["dtype"].startswith(NUMBERS)
        ]
