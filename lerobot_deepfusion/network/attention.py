"""Attention over two streams at once, from torch's fused kernel and transformers' Llama attention.

Axis letters: B batch, K flow samples, X expert tokens of one flow sample, S prefix tokens, D width, N query heads,
G key/value heads, H head dim.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaAttention, apply_rotary_pos_emb, repeat_kv

from .fusion import KeyValue


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, groups: int, **options: Any) -> Tensor:
    """torch's fused attention, [B, N, ..., H], for keys and values of fewer heads.

    On a GPU no fused kernel takes both fewer heads and a mask, and torch would compute, and keep, every score; so the
    heads are repeated there, as in transformers.
    """
    if groups > 1 and mask is not None and key.device.type != "cpu":
        key, value, groups = repeat_kv(key, groups), repeat_kv(value, groups), 1
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=groups > 1, **options)


def project_key_value(attention: Any, x_BSD: Tensor, position_embeddings: tuple[Tensor, Tensor]) -> KeyValue:
    """Rotated keys and values of a Llama-like attention, each [B, G, S, H], without running it."""
    shape = (*x_BSD.shape[:-1], -1, attention.head_dim)
    key = attention.k_proj(x_BSD).view(shape).transpose(1, 2)
    value = attention.v_proj(x_BSD).view(shape).transpose(1, 2)
    key, _ = apply_rotary_pos_emb(key, key, *position_embeddings)
    return key, value


class DeepFusionLlamaAttention(LlamaAttention):
    """Llama attention over `[VLM context | own tokens]` in one softmax."""

    def forward(  # type: ignore[override]  # no cache: the context takes its place
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        cross_key_value_states: KeyValue | None = None,
    ) -> Tensor:
        """
        Args:
            hidden_states: [B, K, X, D].
            position_embeddings: cosine and sine [B, K * X, H] of the own tokens.
            attention_mask: bool, broadcastable to [B, N, K * X, S + K * X], or None to see everything.
            cross_key_value_states: the VLM's rotated keys and values [B, G, S, H], put before the own ones.
        """
        shape = (len(hidden_states), math.prod(hidden_states.shape[1:-1]), -1, self.head_dim)
        query = self.q_proj(hidden_states).view(shape).transpose(1, 2)
        key = self.k_proj(hidden_states).view(shape).transpose(1, 2)
        value = self.v_proj(hidden_states).view(shape).transpose(1, 2)
        query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
        if cross_key_value_states is not None:
            key = torch.cat([cross_key_value_states[0], key], dim=2)
            value = torch.cat([cross_key_value_states[1], value], dim=2)
        out = attend(query, key, value, attention_mask, self.num_key_value_groups, scale=self.scaling)
        return self.o_proj(out.transpose(1, 2).reshape(*hidden_states.shape[:-1], -1))
