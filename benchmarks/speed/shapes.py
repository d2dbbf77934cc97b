"""Shapes at which models are compared, their inputs, and the patch embedding that stands for every vision tower.

Axis letters: B batch, C cameras, N image tokens of one camera, S prefix tokens, K flow samples, T actions.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

VOCABULARY = 32064
IMAGE_TOKEN = VOCABULARY - 1
STATE_DIM = ACTION_DIM = 32
PATCH = 14  # pixels


@dataclass(frozen=True)
class Shape:
    """Geometry of VLM and expert, which are alike, and of the inputs; pi0's code says 8 heads."""

    width: int = 256
    layers: int = 8
    kv_heads: int = 8
    mlp: int = 768
    batch: int = 1
    cameras: int = 2
    image_tokens: int = 196
    text_tokens: int = 48
    chunk: int = 50
    steps: int = 10
    heads: int = 8

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    @property
    def prefix(self) -> int:
        """Tokens of images and text together."""
        return self.cameras * self.image_tokens + self.text_tokens

    def text_config(self) -> dict[str, int]:
        """The text model, in the names that transformers' configs share."""
        return {
            "hidden_size": self.width,
            "intermediate_size": self.mlp,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "vocab_size": VOCABULARY,
        }

    def wide(self, width: int) -> Shape:
        """The same shape at another width; the MLP has three times it."""
        return replace(self, width=width, mlp=3 * width)


SHAPES = {
    "tiny": Shape(width=64, layers=2, mlp=256, image_tokens=4, text_tokens=6, chunk=5, steps=2),
    "S256": Shape(),
    "M512": Shape(width=512, mlp=1536),
    "M512-GQA": Shape(width=512, mlp=1536, kv_heads=2),
    # LLaVA-OneVision 0.5B, but for its 14 heads of 64 and its vision tower.
    "OneVision": Shape(width=896, layers=24, mlp=4864, kv_heads=2, image_tokens=729),
}


def shape_of(case: str) -> Shape:
    """The shape that a case names: `<shape>[-P<prefix tokens>][-B<batch>]`, such as `S256-P1200-B4`.

    Raises:
        ValueError: if the name has another form, or the prefix is not two square images and 48 text tokens.
    """
    match = re.fullmatch(rf"({'|'.join(sorted(SHAPES, reverse=True))})(?:-P(\d+))?(?:-B(\d+))?", case)
    if match is None:
        raise ValueError(f"case {case!r}: expected <shape>[-P<prefix>][-B<batch>], shapes are {', '.join(SHAPES)}")
    shape = replace(SHAPES[match[1]], batch=int(match[3] or 1))
    if match[2]:
        tokens, rest = divmod(int(match[2]) - shape.text_tokens, shape.cameras)
        if rest or math.isqrt(max(tokens, 0)) ** 2 != tokens or tokens < 1:
            raise ValueError(
                f"case {case!r}: a prefix is {shape.cameras} square images and {shape.text_tokens} text tokens; "
                "choose 440 (14 x 14 patches) or 1200 (24 x 24)"
            )
        shape = replace(shape, image_tokens=tokens)
    return shape


@dataclass
class Inputs:
    """What every model gets; none of it is padding.

    Attributes:
        pixels: [B, C, 3, side, side].
        text: token ids [B, text tokens].
        tokens: token ids [B, S], the images' first.
        state: [B, state dim].
        actions: [B, T, action dim].
        noise: [B, K, T, action dim].
        time: [B, K].
    """

    pixels: Tensor
    text: Tensor
    tokens: Tensor
    state: Tensor
    actions: Tensor
    noise: Tensor
    time: Tensor


def make_inputs(shape: Shape, samples: int = 1, device: str = "cpu") -> Inputs:
    """Inputs of a shape; the same ones for everybody."""
    random = torch.Generator().manual_seed(0)
    side = PATCH * math.isqrt(shape.image_tokens)
    batch = shape.batch
    text = torch.randint(0, IMAGE_TOKEN, (batch, shape.text_tokens), generator=random)
    images = torch.full((batch, shape.cameras * shape.image_tokens), IMAGE_TOKEN)
    inputs = Inputs(
        pixels=torch.randn(batch, shape.cameras, 3, side, side, generator=random),
        text=text,
        tokens=torch.cat([images, text], dim=1),
        state=torch.randn(batch, STATE_DIM, generator=random),
        actions=torch.randn(batch, shape.chunk, ACTION_DIM, generator=random),
        noise=torch.randn(batch, samples, shape.chunk, ACTION_DIM, generator=random),
        time=torch.rand(batch, samples, generator=random),
    )
    return Inputs(**{name: value.to(device) for name, value in vars(inputs).items()})


class PatchEmbed(nn.Module):
    """One convolution in the place of a vision tower and its projector: [B, 3, side, side] -> [B, N, width]."""

    supports_gradient_checkpointing = False

    def __init__(self, width: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(3, width, PATCH, PATCH)

    @property
    def dtype(self) -> torch.dtype:
        return self.projection.weight.dtype

    def tokens(self, pixel_values: Tensor) -> Tensor:
        return self.projection(pixel_values).flatten(2).transpose(1, 2)

    def forward(self, pixel_values: Tensor, **_: Any) -> BaseModelOutputWithPooling:
        return BaseModelOutputWithPooling(last_hidden_state=self.tokens(pixel_values))  # type: ignore[arg-type]
