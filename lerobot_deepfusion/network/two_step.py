"""Two steps of regression: minimal iterative policy, MIP (Pan et al. 2025, arXiv:2512.01809).

Half of the samples of a batch stand at t = 1 without noise, half at t = t* with noise z:

    x_1 = 0,    target 0 - a;        x_* = (1 - t*) a + t* z,    target z - a

which is the flow's path and velocity at two times, with z = 0 at the first. Acting asks twice and draws nothing:

    x = -(1 - t*) v(0, 1),    chunk = x - t* v(x, t*)

Axis letters: B batch, K flow samples, T actions of a chunk, A action dim.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

T_STAR = 0.1


def two_step_training_times(samples: int) -> Tensor:
    """Flow times of an even number of samples, [K]."""
    return torch.tensor([1.0] * (samples // 2) + [T_STAR] * (samples // 2))


def without_noise_at_one(noise: Tensor, time: Tensor) -> Tensor:
    """Noise [B, K, T, A] of samples at times [B, K], zero where that is 1."""
    return noise * (time < 1)[:, :, None, None]


def two_step_chunk(velocity: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    """A chunk [B, T, A] from two velocities, at t = 1 and t = t*.

    Args:
        velocity: of noisy actions [B, T, A]; called twice.
        start: zeros [B, T, A].
    """
    first = start - (1 - T_STAR) * velocity(start)
    return first - T_STAR * velocity(first)
