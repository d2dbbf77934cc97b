"""What normalisation does to states and actions: statistics that are there, are applied, and leave values near one.

LeRobot's step passes a feature without statistics through unchanged, and divides by whatever spread it is given, by
1e-8 at the least. What is asked here is therefore what comes out of that very step.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lerobot.configs import FeatureType, NormalizationMode, PolicyFeature
from lerobot.processor import NormalizerProcessorStep
from lerobot.utils.constants import ACTION, OBS_STATE
from torch import Tensor

logger = logging.getLogger(__name__)

STATISTICS = {
    NormalizationMode.MEAN_STD: ("mean", "std"),
    NormalizationMode.MIN_MAX: ("min", "max"),
    NormalizationMode.QUANTILES: ("q01", "q99"),
    NormalizationMode.QUANTILE10: ("q10", "q90"),
}
# Spread of a dimension that never changes, alone and as a share of its largest value. LeRobot's sums in float32 leave
# up to 3.5e-4 of the value as the deviation of a constant; lowest and highest value are exact.
CONSTANT, SHARE, SUMS = 1e-6, 1e-4, 5e-4
# Root mean square of normalised values: healthy ones have about one. The loss of a dimension is its square.
LARGE, TOO_LARGE = 10.0, 100.0
HOW_TO_CHANGE = '--policy.normalization_mapping=\'{"VISUAL":"IDENTITY","STATE":"%s","ACTION":"%s"}\''


@dataclass
class Normalised:
    """What the statistics and the mode make of one feature.

    Attributes:
        key, mode: of the feature.
        divisor: what each dimension is divided by, [P].
        size: root mean square of each dimension's normalised values, [P]; NaN where the statistics don't tell.
        reach: the largest of them, [P], likewise.
        constant: whether a dimension never changes, [P].
        low, high: lowest and highest value of each dimension, [P], NaN likewise.
        names: of the dimensions, if they have any.
    """

    key: str
    mode: NormalizationMode
    divisor: Tensor
    size: Tensor
    reach: Tensor
    constant: Tensor
    low: Tensor
    high: Tensor
    names: Sequence[str] | None = None

    def dimensions(self, which: Tensor) -> str:
        """The chosen dimensions, by number and, where they have names, by name."""
        index = which.nonzero().flatten().tolist()
        return str(index) + (f" ({', '.join(self.names[i] for i in index)})" if self.names else "")


def mode_of(config: Any, key: str) -> NormalizationMode:
    """How the config wants the state or the action to be normalised."""
    features = {**(config.input_features or {}), **(config.output_features or {})}
    return NormalizationMode(config.normalization_mapping.get(features[key].type.value, NormalizationMode.IDENTITY))


def check_statistics(config: Any, dataset_stats: Mapping[str, Mapping[str, Any]] | None) -> list[Normalised]:
    """Every statistic that normalising the state and the action takes, and what it does to their values.

    Args:
        config: a `DeepFusionConfig`.
        dataset_stats: statistics by feature.

    Returns:
        What `warn_of_statistics` looks at.

    Raises:
        ValueError: naming the key, the dimension, what was found and the mend.
    """
    features = {**config.input_features, **config.output_features}
    checked = []
    for key, names in ((OBS_STATE, config.state_feature_names), (ACTION, config.action_feature_names)):
        mode, size = mode_of(config, key), features[key].shape[0]
        found = _checked_values(key, mode, (dataset_stats or {}).get(key) or {}, size)
        checked.append(_normalised(key, mode, found, size, names if names and len(names) == size else None))
        _check_sizes(checked[-1])
    return checked


def _checked_values(key: str, mode: NormalizationMode, found: Mapping[str, Any], size: int) -> dict[str, Tensor]:
    """The statistics that are needed or tell more, as [size] in float64."""
    values = {
        name: torch.as_tensor(value).detach().cpu().double().flatten()
        for name, value in found.items()
        if value is not None
    }
    for name in STATISTICS.get(mode, ()):
        if name not in values:
            raise ValueError(
                f"{key} is to be normalised by {mode.value} and the data set's statistics have no '{name}' for "
                f"it (they have {sorted(found)}); recompute them with lerobot-edit-dataset, or change "
                "policy.normalization_mapping"
            )
        if len(values[name]) != size or not values[name].isfinite().all():
            raise ValueError(
                f"statistic '{name}' of {key} is {values[name].tolist()}; expected {size} finite "
                "numbers. Recompute the data set's statistics with lerobot-edit-dataset"
            )
    return {name: value for name, value in values.items() if name == "count" or len(value) == size}


def _normalised(
    key: str, mode: NormalizationMode, found: Mapping[str, Tensor], size: int, names: Sequence[str] | None
) -> Normalised:
    low, high = (found.get(name, torch.full((size,), torch.nan)) for name in ("min", "max"))
    mean, std = (found.get(name, torch.full((size,), torch.nan)) for name in ("mean", "std"))
    if mode == NormalizationMode.IDENTITY:
        center, divisor = torch.zeros(size, dtype=torch.double), torch.ones(size, dtype=torch.double)
    elif mode == NormalizationMode.MEAN_STD:
        center, divisor = mean, std
    else:
        first, second = (found[name] for name in STATISTICS[mode])
        center, divisor = (first + second) / 2, (second - first) / 2
    constant = high - low <= torch.maximum(
        torch.full_like(low, CONSTANT), SHARE * torch.maximum(low.abs(), high.abs())
    )
    unknown = (high - low).isnan()
    spread = torch.where(std.isnan(), divisor, std)
    narrow = spread <= torch.maximum(torch.full_like(spread, CONSTANT), SUMS * center.abs())
    constant = torch.where(unknown, narrow & (mode != NormalizationMode.IDENTITY), constant)
    reach = torch.stack([_applied(key, mode, found, row) for row in (low, high)]).abs().amax(0)
    rms = ((mean - center) ** 2 + std**2).sqrt() / divisor.clamp(min=1e-8)
    size_ = torch.where(constant, reach, rms)  # a constant's deviation is what the sums left
    return Normalised(key, mode, divisor, size_, reach, constant, low, high, names)


def _applied(key: str, mode: NormalizationMode, found: Mapping[str, Any], values: Tensor) -> Tensor:
    """What LeRobot's step makes of one row, or of several."""
    kind = FeatureType.ACTION if key == ACTION else FeatureType.STATE
    features = {key: PolicyFeature(kind, tuple(values.shape[-1:]))}
    step = NormalizerProcessorStep(features=features, norm_map={kind: mode}, stats={key: dict(found)})
    return step._apply_transform(values.float(), key, kind)


def _check_sizes(done: Normalised) -> None:
    """
    Raises:
        ValueError: for a dimension that drowns all others, or whose statistics can't be those of its values.
    """
    key, mode = done.key, done.mode
    if (done.divisor < 0).any():
        low, high = STATISTICS[mode]
        raise ValueError(
            f"the statistics of {key} in its dimensions {done.dimensions(done.divisor < 0)}: "
            f"{'std is below zero' if mode == NormalizationMode.MEAN_STD else f'{high} is below {low}'}. Recompute "
            "the data set's statistics with lerobot-edit-dataset"
        )
    if mode == NormalizationMode.IDENTITY:
        return
    # Of numbers whose deviation is one, none is further out than the root of their count.
    apart = ~done.constant & (done.reach > 1e4) & (mode == NormalizationMode.MEAN_STD)
    if (done.size > TOO_LARGE).any() or apart.any():
        worst = torch.where(apart, done.reach, done.size).nan_to_num()
        which = apart | (done.size > TOO_LARGE)
        raise ValueError(f"{_said(done, which, worst)}, beside which nothing else would be learned. {_mend(done)}")


def _said(done: Normalised, which: Tensor, worst: Tensor) -> str:
    index = int(torch.where(which, worst, -1).argmax())
    spread = " - ".join(reversed(STATISTICS[done.mode])) if done.mode != NormalizationMode.MEAN_STD else "std"
    share = 1 if done.mode == NormalizationMode.MEAN_STD else 2
    return (
        f"{done.key} changes rarely in its dimensions {done.dimensions(which)}: {done.mode.value} divides dimension "
        f"{index} by its spread of {share * float(done.divisor[index]):.3g} ({spread}), and its values become "
        f"{float(worst[index]):.3g} where they should be about 1"
    )


def _mend(done: Normalised) -> str:
    other = "MIN_MAX" if done.mode == NormalizationMode.MEAN_STD else "MEAN_STD"
    modes = ("MEAN_STD", other) if done.key == ACTION else (other, "MEAN_STD")
    return (
        f"Normalise it otherwise, {HOW_TO_CHANGE % modes}, recompute the data set's statistics with "
        "lerobot-edit-dataset, or leave these dimensions out of the data set"
    )


def warn_of_statistics(checked: Sequence[Normalised]) -> None:
    """What may be meant, and rarely is: constants in the state, and values far from one."""
    for done in checked:
        state = done.key == OBS_STATE
        if done.mode == NormalizationMode.IDENTITY:
            _warn_of_identity(done)
            continue
        if state and done.constant.any():
            logger.warning(
                f"{done.key} never changes in its dimensions {done.dimensions(done.constant)}, or by less than a "
                "ten-thousandth: on a robot, where it differs by a thousandth, it would be hundreds of times larger "
                "than anything that was trained. Leave these dimensions out of the data set"
            )
        worst = torch.where(done.size > LARGE, done.size, done.reach).nan_to_num()
        large = ((done.size > LARGE) | (done.reach > TOO_LARGE)) & ~(done.constant & state)
        if large.any():
            logger.warning(f"{_said(done, large, worst)}. {_mend(done)}")


def _warn_of_identity(done: Normalised) -> None:
    far = (done.size > LARGE) | ((done.size < 1 / TOO_LARGE) & ~done.constant)
    if far.any():
        sizes = ", ".join(f"{size:.3g}" for size in done.size[far].tolist())
        logger.warning(
            f"{done.key} is not normalised (IDENTITY) and has values of about {sizes} in its dimensions "
            f"{done.dimensions(far)}, where 1 is expected. {_mend(done)}"
        )
