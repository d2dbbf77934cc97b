"""Where the expert looks: the softmax of each of its attention calls, layer by layer, while a chunk is predicted.

Axis letters: L expert layers, N heads, T actions, S prefix tokens, X expert tokens of one chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..modeling_deepfusion import DeepFusionPolicy


@dataclass
class Attention:
    """Of one observation.

    Attributes:
        weights: [L, N, T, S + X], a softmax in each row, the mean over the evaluations of the chunk.
        tokens: ids of the prefix, [S].
        valid: bool [S], False at padding and absent cameras.
        image_token: id that stands at the places of all image tokens.
        cameras: in the order of their tokens.
    """

    weights: Tensor
    tokens: Tensor
    valid: Tensor
    image_token: int
    cameras: list[str]

    def camera_weights(self) -> dict[str, Tensor]:
        """[L, N, T, tokens of one image] by camera."""
        there = self.weights[..., : len(self.tokens)][..., self.tokens == self.image_token]
        return dict(zip(self.cameras, there.chunk(len(self.cameras), dim=-1), strict=True))

    def shares(self) -> dict[str, Tensor]:
        """How much of the actions' attention goes where, [L] each, together one: each camera, `text`, and of the
        expert's own tokens `state` (the first), `own` (time and actions).
        """
        prefix, own = self.weights.split([len(self.tokens), self.weights.shape[-1] - len(self.tokens)], dim=-1)
        parts = self.camera_weights()
        parts["text"] = prefix[..., self.tokens != self.image_token]
        parts["state"], parts["own"] = own[..., :1], own[..., 1:]
        return {name: part.sum(-1).mean((1, 2)) for name, part in parts.items()}

    def words(self, decode: Callable[[list[int]], str]) -> list[tuple[str, float]]:
        """Words of the prompt, each with its share of the attention, the mean over layers, heads and actions.

        Args:
            decode: from token ids to text.
        """
        weights = self.weights.mean((0, 1, 2))
        found: list[tuple[str, float]] = []
        places = ((self.tokens != self.image_token) & self.valid).nonzero()[:, 0]
        ids, text = self.tokens[places].tolist(), ""
        for count, index in enumerate(places.tolist(), 1):
            # A token alone has lost the space before it, or is a part of a letter.
            longer = decode(ids[:count]).rstrip("\ufffd")
            piece, weight = longer[len(text) :], weights[index].item()
            text = longer
            if not found or piece[:1].isspace() or found[-1][0][-1:].isspace():
                found.append((piece, weight))
            else:
                found[-1] = (found[-1][0] + piece, found[-1][1] + weight)
        return [(word.strip(), weight) for word, weight in found if word.strip()]


@dataclass
class Watched:
    """What `watch` has seen of one chunk."""

    policy: DeepFusionPolicy
    inputs: tuple[Any, ...] = ()
    calls: list[list[Tensor]] = field(default_factory=list)

    def attention(self, index: int = 0) -> Attention:
        """Of one observation of the batch."""
        perception, chunk = self.policy.model.perception, self.policy.config.chunk_size
        weights = torch.stack([torch.stack([layer[index] for layer in layers]) for layers in self.calls]).mean(0)
        _, tokens, valid, *_ = self.inputs
        image_token = perception.config.image_token_id
        return Attention(
            weights[:, :, -chunk:], tokens[index], valid[index], image_token, list(self.policy.config.cameras)
        )


@contextmanager
def watch(policy: DeepFusionPolicy) -> Iterator[Watched]:
    """Within it one chunk is predicted, and its attention seen; the compiled step is left aside.

    Nothing of the network knows of it: torch shows each call of its fused attention, and what went in is put through
    a softmax that is written out.
    """
    seen, quick = Watched(policy), policy._denoise

    def denoise(*arguments: Any) -> Tensor:
        with _Calls() as calls:
            answer = policy.model.denoise(*arguments)
        seen.calls.append(calls.weights)
        return answer

    def keep(_: Any, inputs: tuple[Any, ...]) -> None:
        seen.inputs = inputs

    handle = policy.model.perception.register_forward_pre_hook(keep)
    policy._denoise = denoise  # type: ignore[assignment]  # it hands on what it is given
    try:
        yield seen
    finally:
        policy._denoise = quick
        handle.remove()


class _Calls(TorchFunctionMode):
    """Weights [B, N, X, S + X] of each fused attention call."""

    def __init__(self) -> None:
        super().__init__()
        self.weights: list[Tensor] = []

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function is F.scaled_dot_product_attention:
            self.weights.append(_softmax(*args, **(kwargs or {})))
        return function(*args, **(kwargs or {}))


def _softmax(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """What the fused kernel does not give, in float32."""
    key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1).float()
    with torch.autocast(query.device.type, enabled=False):  # under which the product would be rounded
        scores = query.float() @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -torch.inf)
    return scores.softmax(-1)
