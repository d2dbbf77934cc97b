"""Flow matching: t = 1 is noise and t = 0 the action (openpi's and LeRobot's convention).

    x_t = t * noise + (1 - t) * action,    u_t = dx_t / dt = noise - action

Sampling of time and noise, and Euler integration, are LeRobot's (`lerobot.policies.common.flow_matching`).
Axis letters: B batch, K flow samples, T actions of a chunk, A action dim.
"""

from __future__ import annotations

import torch
from torch import Tensor


def euler_times(steps: int, device: torch.device) -> Tensor:
    """Times at which `euler_integrate` asks for a velocity: [1, steps], from 1 down."""
    return 1 - torch.arange(steps, device=device)[None] / steps


def interpolate(action: Tensor, noise: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
    """A point on the straight path and its velocity (Lipman et al. 2023).

    Args:
        action: [B, T, A].
        noise: [B, K, T, A].
        time: [B, K].

    Returns:
        `x_t` and `u_t`, both [B, K, T, A].
    """
    t = time[:, :, None, None]
    return t * noise + (1 - t) * action[:, None], noise - action[:, None]


def flow_error(velocity: Tensor, target: Tensor) -> Tensor:
    """Squared error of each action of the chunk, mean over flow samples and action dimensions.

    Args:
        velocity: [B, K, T, A].
        target: [B, K, T, A].

    Returns:
        [B, T].
    """
    return ((velocity - target) ** 2).mean(dim=(1, 3))
