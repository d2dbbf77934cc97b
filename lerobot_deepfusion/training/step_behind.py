"""Numbers of a training step, given out with the next one."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class StepBehind:
    """LeRobot adds up the floats that `forward` returns. Read at once, they would have the host wait between forward
    and backward pass; those of the step before are there, since LeRobot has read its loss.
    """

    def __init__(self) -> None:
        self._names: list[str] = []
        self._values: Tensor | None = None

    def swap(self, found: Mapping[str, Tensor]) -> dict[str, float]:
        """Keep what this step found; what the one before it found."""
        names, values = self._names, self._values
        self._names, self._values = list(found), torch.stack([value.float() for value in found.values()])
        if values is None:
            return {}
        return dict(zip(names, values.tolist(), strict=True))
