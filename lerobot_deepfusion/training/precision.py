"""In which type a policy keeps its weights and computes: decided here and nowhere else.

`dtype=bfloat16` is autocast over float32 weights where they are trained: in half precision AdamW loses updates
smaller than 1/256 of a weight. Frozen weights have no updates to lose.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Self

import torch
from torch import nn


def set_precision(module: nn.Module, dtype: str) -> None:
    """Trained weights are float32; frozen ones follow `dtype`, which is `float32` or `bfloat16`."""
    frozen = torch.bfloat16 if dtype == "bfloat16" else torch.float32
    for parameter in module.parameters():
        wanted = torch.float32 if parameter.requires_grad else frozen
        if parameter.dtype != wanted:
            parameter.data = parameter.data.to(wanted)


class TypesOfTheConfig(nn.Module):
    """A module that moves to other devices, and is cast by its config alone."""

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """
        Raises:
            ValueError: for another type than float32: normalisation, rotary positions and trained weights stay in it.
        """
        dtype = torch._C._nn._parse_to(*args, **kwargs)[1]
        if dtype not in (None, torch.float32):
            raise ValueError(
                f"a policy can't be cast to {dtype}: in which type each part computes is policy.dtype's to say. "
                "Build or load it with --policy.dtype=bfloat16 (and --policy.train_expert_only for a VLM kept in it)"
            )
        return super().to(*args, **kwargs)

    def half(self) -> Self:
        return self.to(torch.float16)

    def bfloat16(self) -> Self:
        return self.to(torch.bfloat16)

    def double(self) -> Self:
        return self.to(torch.float64)


def autocast(device: torch.device, dtype: str) -> AbstractContextManager:
    """What a pass of the network runs under."""
    if dtype == "bfloat16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()
