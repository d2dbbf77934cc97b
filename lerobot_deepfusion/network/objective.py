"""The objective switch: what the expert is asked in training, and how its answers become a chunk.

| objective | asked at | its answer is | evaluations when acting | file |
| --- | --- | --- | --- | --- |
| `flow` | times that are drawn | a velocity | `num_inference_steps` | `network.flow` |
| `two_step` | t = 1 without noise, and t = 0.1 | a velocity | 2, nothing is drawn | `network.two_step` |
| `drift` | t = 1 | the chunk | 1 | `network.drift` |

Axis letters: B batch, K flow samples, T actions of a chunk, A action dim.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .drift import drift_losses
from .flow import euler_times, flow_error, interpolate
from .two_step import T_STAR, two_step_chunk, two_step_training_times, without_noise_at_one
from .watched import watch

OBJECTIVES = ("flow", "two_step", "drift")


def training_times(objective: str, samples: int) -> Tensor | None:
    """Flow times [K] of an observation's samples; None where they are drawn."""
    return {"flow": None, "two_step": two_step_training_times(samples), "drift": torch.ones(samples)}[objective]


def ask(objective: str, action: Tensor, noise: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
    """Noisy actions, and the velocity there, [B, K, T, A] each; see `flow.interpolate`."""
    return interpolate(action, without_noise_at_one(noise, time) if objective == "two_step" else noise, time)


def losses(
    objective: str,
    answer: Tensor,
    velocity: Tensor,
    action: Tensor,
    valid: Tensor,
    time: Tensor,
    names: Sequence[str],
) -> tuple[Tensor, dict[str, Tensor]]:
    """
    Args:
        objective: one of `OBJECTIVES`.
        answer: the expert's [B, K, T, A].
        velocity: as `ask` gives it.
        action: demonstrations [B, T, A].
        valid: bool [B, T], whether an action counts.
        time: [B, K].
        names: of the action's dimensions, A.

    Returns:
        Loss of each observation [B], the mean over its valid actions, and what else to watch: see `watch`, and for
        `drift`, whose error is the distance from the demonstration, `drift_losses`.
    """
    if objective == "drift":
        each, found = drift_losses(answer, action, valid)
        return each, found | watch((answer.detach().float() - action[:, None]) ** 2, valid, None, names)
    counts = valid.to(velocity.dtype)
    error = flow_error(answer.float(), velocity)
    times = time if objective == "flow" else None  # of the other there are two
    found = watch((answer.detach().float() - velocity) ** 2, valid, times, names)
    return (error * counts).sum(1) / counts.sum(1).clamp(min=1), found


def evaluation_times(objective: str, steps: int, device: torch.device) -> Tensor:
    """Flow times at which acting asks, in order, [1, N]; `steps` is of `flow` alone."""
    if objective == "flow":
        return euler_times(steps, device)
    return torch.tensor([[1.0, T_STAR] if objective == "two_step" else [1.0]], device=device)


def few_step_chunk(objective: str, answer: Callable[[Tensor], Tensor], noise: Tensor) -> Tensor:
    """The chunk [B, T, A] of an objective that is not integrated.

    Args:
        objective: `two_step` or `drift`.
        answer: the expert's, to noisy actions [B, T, A], at the next of `evaluation_times`.
        noise: [B, T, A]; `two_step` has no use for it.
    """
    if objective == "two_step":
        return two_step_chunk(answer, torch.zeros_like(noise))
    return answer(noise).clone()  # a captured CUDA graph writes its next answer into the same memory
