"""The fusion switch: which VLM states an expert layer reads, and as what.

| fusion | expert layer i, beside VLM layer l, reads |
| --- | --- |
| `kv` | the keys and values, rotated, of VLM layer l |
| `hidden` | the input of VLM layer l, through its own norm and key and value projections |
| `late` | the VLM's last hidden state, likewise, at every layer |

`fusion_layers` and `expert_num_layers` decide which l stands beside which i (`source_layers`). Behind the last l
the VLM ends.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

Fusion = Literal["kv", "hidden", "late"]
FUSIONS: tuple[Fusion, ...] = ("kv", "hidden", "late")
KeyValue = tuple[Tensor, Tensor]  # each [B, G, S, H]: batch, key/value heads, tokens, head dim

LAYERS = re.compile(r"(all|middle)|(every|first)_([1-9][0-9]{0,3})")


def source_layers(
    fusion: Fusion, depth: int, fusion_layers: str = "all", expert_num_layers: int | None = None
) -> list[int]:
    """The VLM layer that stands beside each expert layer, in order.

    Under `late` the expert reads the state behind the last of them; the others are those that run before it.
    An expert of another depth than there are layers to read spreads over them, and the deepest of a group feeds.

    Example: of 6 layers, `every_2` is `[1, 3, 5]`, as is `all` with three expert layers; `first_2` is `[0, 1]`,
    and `[0, 0, 1, 1]` with four expert layers; `middle`, the half around the centre, is `[1, 2, 3]`.

    Args:
        fusion: what is read of them.
        depth: layers of the whole VLM.
        fusion_layers: `all`, `every_<n>`, `first_<m>` or `middle`.
        expert_num_layers: None for one expert layer for each layer that is read.

    Raises:
        ValueError: if `n` or `m` is more than the VLM has.
    """
    match = LAYERS.fullmatch(fusion_layers)
    assert match is not None, fusion_layers  # by `options.check_options`
    name, count = match[1] or match[2], int(match[3] or 1)
    if count > depth:
        raise ValueError(f"policy.fusion_layers={fusion_layers}: the VLM has {depth} layers, choose at most {depth}")
    half = (depth + 1) // 2
    start = (depth - half) // 2
    chosen = {
        "all": range(depth),
        "every": range(count - 1, depth, count),
        "first": range(count),
        "middle": range(start, start + half),
    }[name]
    if fusion == "hidden" and chosen[-1] == 0 and depth > 1:
        raise ValueError(
            f"policy.fusion_layers={fusion_layers} with policy.fusion=hidden reads the input of layer 0 alone, the "
            "embeddings, and so no layer of the VLM would run; choose more layers or policy.fusion=kv"
        )
    layers = expert_num_layers or len(chosen)
    return [chosen[((index + 1) * len(chosen) - 1) // layers] for index in range(layers)]


def vlm_layers_needed(fusion: Fusion, sources: list[int]) -> tuple[int, bool]:
    """How much of the VLM the expert reads.

    Returns:
        The number of VLM layers that run whole, and whether one more gives only its keys and values.
    """
    return sources[-1] + (fusion == "late"), fusion == "kv"


@dataclass
class VlmStates:
    """What one pass of the VLM leaves for the expert.

    Attributes:
        context: one entry for each expert layer: rotated keys and values, or hidden states [B, S, D] that
            the layer projects itself.
        valid: bool [B, S], False at padding and at the tokens of absent cameras.
        position_embeddings: cosine and sine [B, S, H] at the prefix positions.
    """

    context: list[KeyValue | Tensor]
    valid: Tensor
    position_embeddings: tuple[Tensor, Tensor]

    def detach(self) -> VlmStates:
        """The same states without their graph."""
        context = [
            state.detach() if isinstance(state, Tensor) else (state[0].detach(), state[1].detach())
            for state in self.context
        ]
        return replace(self, context=context)
