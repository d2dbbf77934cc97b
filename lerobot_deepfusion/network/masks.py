"""Masks and positions: free functions.

Axis letters: B batch, S prefix tokens, X expert tokens of one flow sample, K flow samples.
A mask is boolean and True where a query may look at a key, as `scaled_dot_product_attention` reads it.
None stands for a mask that would be all True, so that attention runs its fastest kernel.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def positions_from_valid(valid_BS: Tensor) -> Tensor:
    """Rotary positions that count valid tokens only: bool [B, S] -> int64 [B, S].

    Example: `[0, 0, 1, 1, 1] -> [0, 0, 0, 1, 2]`, so padding at either end, or a camera that is missing in
    the middle, leaves the positions of the other tokens as if it were not there.
    """
    return (valid_BS.long().cumsum(1) - 1).clamp(min=0)


def causal_mask(valid_BS: Tensor) -> Tensor:
    """Mask of the VLM over a prefix with gaps: bool [B, S] -> bool [B, 1, S, S].

    A prefix whose only padding is at its right end does not need it: causal attention alone keeps the valid
    tokens from seeing what stands behind them.

    Rows of padding tokens keep themselves as a key; a softmax over no key at all would be NaN.
    """
    size = valid_BS.shape[1]
    triangle = torch.ones(size, size, dtype=torch.bool, device=valid_BS.device).tril()
    itself = torch.eye(size, dtype=torch.bool, device=valid_BS.device)
    return (triangle & valid_BS[:, None, None, :]) | itself


def expert_mask(valid_BS: Tensor, tokens: int, samples: int, causal: bool = False) -> Tensor:
    """Mask of the expert over `[prefix | its own tokens]`: bool [B, 1, K * X, S + K * X].

    With one flow sample all its tokens see the same, and one row stands for them: [B, 1, 1, S + X]. Not if causal.

    Its tokens see every valid prefix token and, in both directions or causally, those of the same flow sample.
    For S = 2 with one padding token, X = 2, K = 2:

        [[1 0 | 1 1 0 0]           [[1 0 | 1 0 0 0]
         [1 0 | 1 1 0 0]   causal   [1 0 | 1 1 0 0]
         [1 0 | 0 0 1 1]            [1 0 | 0 0 1 0]
         [1 0 | 0 0 1 1]]           [1 0 | 0 0 1 1]]
    """
    batch, prefix = valid_BS.shape
    if samples == 1 and not causal:
        return F.pad(valid_BS, (0, tokens), value=True)[:, None, None, :]
    sample = torch.arange(samples, device=valid_BS.device).repeat_interleave(tokens)
    own = sample[:, None] == sample[None, :]
    own = (own.tril() if causal else own).expand(batch, 1, -1, -1)
    seen = valid_BS[:, None, None, :].expand(batch, 1, tokens * samples, prefix)
    return torch.cat([seen, own], dim=-1)


def expert_positions(valid_BS: Tensor, tokens: int, samples: int) -> Tensor:
    """Rotary positions of the expert's tokens: int64 [B, K * X].

    They go on from the prefix of their own row, and every flow sample has the same ones.
    """
    start = valid_BS.long().sum(1, keepdim=True)
    return start + torch.arange(tokens, device=valid_BS.device).repeat(samples)
