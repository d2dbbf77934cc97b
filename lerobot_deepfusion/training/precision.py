"""In which type a policy keeps its weights and computes: decided here and nowhere else.

`dtype=bfloat16` is autocast over float32 weights where they are trained: in half precision AdamW loses updates
smaller than 1/256 of a weight. Frozen weights have no updates to lose.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn


def set_precision(module: nn.Module, dtype: str) -> None:
    """Trained weights are float32; frozen ones follow `dtype`, which is `float32` or `bfloat16`."""
    frozen = torch.bfloat16 if dtype == "bfloat16" else torch.float32
    for parameter in module.parameters():
        wanted = torch.float32 if parameter.requires_grad else frozen
        if parameter.dtype != wanted:
            parameter.data = parameter.data.to(wanted)


def autocast(device: torch.device, dtype: str) -> AbstractContextManager:
    """What a pass of the network runs under."""
    if dtype == "bfloat16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()
