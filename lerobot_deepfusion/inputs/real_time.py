"""What real-time chunking gives a policy that was trained for it: the actions that are executed while it thinks."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)


def given_by_rtc(config: Any, shape: tuple[int, int, int], rtc: Mapping[str, Any]) -> tuple[Tensor, Tensor] | None:
    """Which actions of a chunk are given, and those, as `left_over` has them; None if the policy takes none.

    Args:
        config: of the policy.
        shape: [B, T, A] of the chunk.
        rtc: `inference_delay` and `prev_chunk_left_over`, as LeRobot's rollout gives them.
    """
    most = config.rtc_training_max_delay
    if not most or config.rtc_config is None or not config.rtc_config.enabled:
        return None
    delay = rtc.get("inference_delay") or 0
    if delay > most:
        _warn_once(
            f"real-time chunking expects a delay of {delay} actions and the policy learned to go on from up to "
            f"{most} (policy.rtc_training_max_delay): the seam to the next chunk may jump. Train with more, or make "
            "inference faster"
        )
    mask, actions = left_over(rtc.get("prev_chunk_left_over"), min(delay, most), shape)
    if rtc.get("prev_chunk_left_over") is not None and mask.sum() < min(delay, most):
        _warn_once(
            "real-time chunking leaves fewer actions than are executed while the policy thinks: make "
            "--inference.queue_threshold and --inference.rtc.execution_horizon at least the delay"
        )
    return mask, actions


def without_padding(left: Tensor) -> Tensor:
    """What is left over, [B, R, A], without the zeros with which LeRobot's rollout fills it up to its horizon."""
    there = (left != 0).any(-1).any(0).nonzero()
    return left[:, : int(there.max()) + 1 if len(there) else 0]


@cache
def _warn_once(text: str) -> None:
    logger.warning(text)


def left_over(previous: Tensor | None, delay: int, shape: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """What is given when acting.

    Args:
        previous: normalised actions of the chunk before that were not executed when the observation was made,
            [B, R, A] or [R, A]; None for a first chunk.
        delay: how many of them will be executed before the new chunk is there.
        shape: [B, T, A] of that.

    Returns:
        A mask [1, T] and actions [B, T, A]; of a first chunk, or without a delay, nothing is given.

    Raises:
        ValueError: if `previous` has another batch or action size, or numbers that are none.
    """
    batch, size, dim = shape
    if previous is None:
        previous = torch.zeros(batch, 0, dim)
    previous = previous if previous.ndim == 3 else previous[None]
    if previous.ndim != 3 or previous.shape[-1] != dim or len(previous) not in (1, batch):
        raise ValueError(
            f"prev_chunk_left_over has the shape {tuple(previous.shape)}; expected [{batch}, actions left, {dim}], "
            "normalised as predict_action_chunk returns them"
        )
    count = max(0, min(delay, previous.shape[1], size - 1))
    taken = previous[:, :count]
    if not torch.isfinite(taken).all():
        raise ValueError("prev_chunk_left_over has numbers that are not finite; nothing can continue them")
    actions = torch.zeros(shape, dtype=torch.float32, device=previous.device)
    actions[:, :count] = taken
    return torch.arange(size, device=previous.device)[None] < count, actions
