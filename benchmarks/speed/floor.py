"""How fast the machine itself is: a floor under a chunk, a matrix product and a copy.

The floor runs the same linear layers in the same order and the same attention calls as `fusion="kv"` does, on
tensors of the same shapes, and nothing between them: no norm, rotary embedding, activation, residual or join.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from lerobot_deepfusion.network.lockstep import DeepFusionModel

from ..clock import quartiles, race
from .arms import Arm, DeepFusion
from .shapes import Inputs, Shape


class Floor(Arm):
    """The linears and attention calls of a chunk; there is nothing to train."""

    def __init__(self, shape: Shape, inputs: Inputs) -> None:
        ours = DeepFusion(shape, inputs)
        self.model = ours.model
        self.layers: Any = ours.model.perception.language_model.layers
        self.expert_layers: Any = ours.model.expert.backbone.layers
        tokens = shape.chunk + 2  # state and time
        self.prefix = _tensors(shape, shape.prefix, shape.prefix, inputs.state.device)
        self.suffix = _tensors(shape, tokens, shape.prefix + tokens, inputs.state.device)

    @torch.no_grad()
    def act(self, steps: int) -> Tensor:
        *layers, last = self.layers
        for layer in layers:
            _layer(layer, self.prefix, causal=True)
        last.self_attn.k_proj(self.prefix[0])
        last.self_attn.v_proj(self.prefix[0])
        for _ in range(steps):
            for layer in self.expert_layers:
                _layer(layer, self.suffix, causal=False)
        return self.suffix[0]


def _tensors(shape: Shape, queries: int, keys: int, device: torch.device) -> tuple[Tensor, ...]:
    """Tokens, MLP activations, queries, keys and values of one layer."""
    sizes = (
        (shape.batch, queries, shape.width),
        (shape.batch, queries, shape.mlp),
        (shape.batch, shape.heads, queries, shape.head_dim),
        (shape.batch, shape.kv_heads, keys, shape.head_dim),
        (shape.batch, shape.kv_heads, keys, shape.head_dim),
    )
    return tuple(torch.randn(size, device=device) for size in sizes)


def _layer(layer: Any, tensors: tuple[Tensor, ...], causal: bool) -> None:
    attention, mlp = layer.self_attn, layer.mlp
    x, wide, query, key, value = tensors
    for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
        projection(x)
    F.scaled_dot_product_attention(query, key, value, is_causal=causal, enable_gqa=key.shape[1] < query.shape[1])
    attention.o_proj(x)
    mlp.gate_proj(x)
    mlp.up_proj(x)
    mlp.down_proj(wide)


def machine_peaks(device: str, dtype: torch.dtype, rounds: int) -> dict[str, float]:
    """FLOP/s of a 2048 x 2048 matrix product and bytes/s, read and written, of a 256 MiB copy."""
    a, b = (torch.randn(2048, 2048, device=device, dtype=dtype) for _ in range(2))
    source = torch.randn(64 * 2**20, device=device)
    target = torch.empty_like(source)
    seconds = race({"gemm": lambda: a @ b, "copy": lambda: target.copy_(source)}, rounds, device)
    return {
        "flops": 2 * 2048**3 / quartiles(seconds["gemm"])[1],
        "bytes": 2 * 4 * source.numel() / quartiles(seconds["copy"])[1],
    }


def count_flops(job: Callable[[], object]) -> int:
    """Floating point operations of a call, attention included."""
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    with FlopCounterMode(display=False, custom_mapping={flash: _attention_flops}) as counter:
        job()
    return counter.get_total_flops()


def _attention_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    batch, heads, queries, dim = query
    return 4 * batch * heads * queries * key[2] * dim


def bytes_read(shape: Shape, model: DeepFusionModel) -> int:
    """Least bytes a float32 `kv` chunk reads: the VLM's weights once, the expert's and the context in each step."""
    language_model: Any = model.perception.language_model
    text = sum(p.numel() for p in language_model.layers.parameters())
    expert = sum(p.numel() for p in model.expert.parameters())
    context = 2 * shape.layers * shape.batch * shape.prefix * shape.kv_heads * shape.head_dim
    return 4 * (text + shape.steps * (expert + context))
