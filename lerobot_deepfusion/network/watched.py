"""What of a training step is worth watching, as tensors, since whoever reads them waits for the device.

Axis letters: B batch, K flow samples, T actions of a chunk, A action dim.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

THIRDS = ("low", "middle", "high")
PARTS = ("early", "middle", "late")


@torch.no_grad()
def watch(error: Tensor, valid: Tensor, time: Tensor | None, names: Sequence[str]) -> dict[str, Tensor]:
    """Where the error is.

    Args:
        error: squared, [B, K, T, A].
        valid: bool [B, T], whether an action counts.
        time: flow times [B, K], for an objective that is asked at several.
        names: of the action's dimensions, A.

    Returns:
        Mean errors: `loss_time_<third>` of samples by their flow time, where 1 is noise; `loss_<part>` of the chunk;
        `loss_dim_<name>` of each dimension. Where there was nothing, the mean of all: processes add up what they
        found by place, so that each has to have the same.
    """
    counts = valid[:, None, :, None].to(error.dtype)
    error = error * counts
    found, samples = {}, error.shape[1]
    every = error.mean(3).sum() / (samples * valid.sum()).clamp(min=1)

    def mean(total: Tensor, count: Tensor) -> Tensor:
        return torch.where(count > 0, total / count.clamp(min=1), every)

    if time is not None:
        by_sample, weight = error.mean(3).sum(2), valid.sum(1)[:, None].to(error.dtype)
        third = (time * 3).long().clamp(max=2)
        for index, name in enumerate(THIRDS):
            chosen = (third == index).to(error.dtype)
            found[f"loss_time_{name}"] = mean((by_sample * chosen).sum(), (weight * chosen).sum())
    by_step = error.mean(3).sum((0, 1))
    for name, steps, there in zip(PARTS, by_step.tensor_split(3), valid.sum(0).tensor_split(3), strict=True):
        found[f"loss_{name}"] = mean(steps.sum(), samples * there.sum())
    by_dimension = error.sum((0, 1, 2)) / (samples * valid.sum()).clamp(min=1)
    return found | {f"loss_dim_{name}": value for name, value in zip(names, by_dimension.unbind(), strict=True)}
