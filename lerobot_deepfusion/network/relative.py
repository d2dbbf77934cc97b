"""Actions relative to the state of the robot when it looked: the same way wherever it, or its base, stands.

    relative[t] = action[t] - state,    normalised by the mean and deviation that relative actions have at step t

Everything is a line in normalised numbers, so the three numbers a step and dimension that follow from the statistics
of state, action and relative action are all that is kept: `relative = scale * action - shift * state + offset`. A
dimension that stays absolute has 1, 0 and 0. As openpi's delta actions, but for statistics of each step (as the
winners of BEHAVIOR 2025 have them, arXiv:2512.06951): behind a joint's first step relative actions lie near zero, and
far off at the end of a chunk. (On the one task where it was measured, with chunks of eight, statistics of all steps
together did better: docs/objectives.md.)

Axis letters: B batch, T actions of a chunk, R some first of them, A action dim, P state dim.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class RelativeActions(nn.Module):
    """
    Args:
        sources: for each action dimension the one of the state that it counts from, or None where it is absolute.
        chunk: T.
    """

    scale: Tensor
    shift: Tensor
    offset: Tensor

    def __init__(self, sources: Sequence[int | None], chunk: int) -> None:
        super().__init__()
        self.sources = [source or 0 for source in sources]
        shape = (chunk, len(sources))
        for name, value in (("scale", 1.0), ("shift", 0.0), ("offset", 0.0)):
            self.register_buffer(name, torch.full(shape, value))

    def fill(self, scale: Tensor, shift: Tensor, offset: Tensor) -> None:
        """Take over what a data set's statistics say, [T, A] each."""
        for kept, value in ((self.scale, scale), (self.shift, shift), (self.offset, offset)):
            kept.copy_(value)

    def require(self, scale: Tensor, shift: Tensor, offset: Tensor) -> None:
        """
        Raises:
            ValueError: if they are others than are kept, which adapters do not carry.
        """
        pairs = ((self.scale, scale), (self.shift, shift), (self.offset, offset))
        if not all(torch.allclose(kept.cpu(), value, rtol=1e-3, atol=1e-3) for kept, value in pairs):
            raise ValueError(
                "relative actions are spread otherwise in this data set than in that of the base, whose numbers the "
                "adapters would go on with; write the base on this data set (deepfusion base)"
            )

    def relative(self, actions: Tensor, state: Tensor) -> Tensor:
        """Normalised actions [B, R, A] and state [B, P] -> normalised relative actions."""
        steps = slice(actions.shape[1])
        return self.scale[steps] * actions - self.shift[steps] * self._from(state) + self.offset[steps]

    def absolute(self, relative: Tensor, state: Tensor) -> Tensor:
        """Its inverse."""
        steps = slice(relative.shape[1])
        return (relative + self.shift[steps] * self._from(state) - self.offset[steps]) / self.scale[steps]

    def _from(self, state: Tensor) -> Tensor:
        return state[:, None, self.sources]
