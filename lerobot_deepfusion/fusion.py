"""The fusion switch: which VLM states an expert layer reads, and as what.

| fusion | expert layer l reads |
| --- | --- |
| `kv` | the keys and values, rotated, of VLM layer l |
| `hidden` | the input of VLM layer l, through its own norm and key and value projections |
| `late` | the VLM's last hidden state, likewise, at every layer |
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

Fusion = Literal["kv", "hidden", "late"]
FUSIONS: tuple[Fusion, ...] = ("kv", "hidden", "late")

KeyValue = tuple[Tensor, Tensor]  # each [B, G, S, H]: batch, key/value heads, tokens, head dim


def vlm_layers_needed(fusion: Fusion, num_layers: int) -> tuple[int, bool]:
    """How much of the VLM the expert reads.

    Returns:
        The number of VLM layers that run whole, and whether one more gives only its keys and values.
    """
    if fusion == "kv":
        return num_layers - 1, True
    return (num_layers - 1, False) if fusion == "hidden" else (num_layers, False)


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
