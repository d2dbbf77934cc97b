"""A data set's numbers against its statistics: whether they are finite, and whether they are the same data's."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch

from .dataset_facts import DatasetFacts
from .dataset_rows import Rows, read_rows
from .statistics_checks import Normalised

logger = logging.getLogger(__name__)

BEYOND = 1.0  # by how many times their whole range values may leave their statistics
WITHIN = 0.05  # of the range of the statistics that values at least move in, in some dimension


def check_not_finite(key: str, facts: DatasetFacts, needed: Sequence[str]) -> None:
    """Where the values are that made statistics NaN, if that is why they are.

    Args:
        key: the policy's name of the state or the actions.
        facts: of the data set.
        needed: names of the statistics that will be used.

    Raises:
        ValueError: naming episodes and frames.
    """
    found = facts.statistics(key)
    broken = [
        name
        for name in needed
        if found.get(name) is not None and not torch.isfinite(torch.as_tensor(found[name])).all()
    ]
    if broken:
        for rows in read_rows(facts.root, facts.column(key), range(len(facts.meta.episodes["length"])), True):
            _check_finite(key, rows)


def _check_finite(key: str, rows: Rows) -> None:
    broken = (~np.isfinite(rows.values.astype(np.float64))).any(axis=1).nonzero()[0]
    if len(broken):
        raise ValueError(
            f"{key} has values that are NaN or infinite in {rows.places(broken)}; expected finite numbers. Repair "
            "these frames or drop their episodes (lerobot-edit-dataset), and recompute the statistics after that"
        )


def check_rows(done: Normalised, facts: DatasetFacts) -> None:
    """Some rows against the lowest and highest value that the statistics have.

    Args:
        done: what the statistics make of the state or the actions.
        facts: of the data set.

    Raises:
        ValueError: for a value that is not finite, or far outside: the statistics are of other data.
    """
    low, high = done.low.numpy(), done.high.numpy()
    lowest, highest = np.full_like(low, np.inf), np.full_like(high, -np.inf)
    for rows in read_rows(facts.root, facts.column(done.key), facts.trained_episodes):
        if not len(rows.values):  # a table that none of the wanted episodes is in
            continue
        if rows.values.shape[1] != len(low):
            return
        _check_finite(done.key, rows)
        room = BEYOND * (high - low) + 1e-3 * np.maximum(np.abs(low), np.abs(high)) + 1e-6
        outside = (rows.values < low - room) | (rows.values > high + room)
        if outside.any():
            row, dimension = (int(found[0]) for found in outside.nonzero())
            which = torch.arange(len(low)) == dimension
            raise ValueError(
                f"{done.key} is {float(rows.values[row, dimension]):.6g} in dimension {done.dimensions(which)} in "
                f"{rows.places(np.array([row]))}, and the data set's statistics go from {low[dimension]:.6g} to "
                f"{high[dimension]:.6g}: they are of other data, or of other units. Recompute them with "
                "lerobot-edit-dataset"
            )
        lowest, highest = np.minimum(lowest, rows.values.min(0)), np.maximum(highest, rows.values.max(0))
    moving = ~done.constant.numpy() & (high > low) & (highest >= lowest)
    if moving.any() and ((highest - lowest)[moving] < WITHIN * (high - low)[moving]).all():
        logger.warning(
            f"no dimension of {done.key} moves within a twentieth of its statistics in the rows that were read: from "
            f"{np.round(lowest, 4).tolist()} to {np.round(highest, 4).tolist()}, and the statistics go from "
            f"{np.round(low, 4).tolist()} to {np.round(high, 4).tolist()}. If they are of other units, recompute "
            "them with lerobot-edit-dataset"
        )
