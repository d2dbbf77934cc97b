"""The tiny LLaVA's tower for points: small pieces of the picture at their places in space, as a few tokens.

A network for each point and the largest of each feature over all of them (PointNet, Qi et al. 2017,
arXiv:1612.00593), as in DP3 (Ze et al. 2024, arXiv:2403.03954). Otherwise than there a point has not the colour of
its pixel but what two convolutions see around it: at this size a thing is a few pixels, and what is around them tells
it from others. Where in the picture it is does not count, only its place in space.

Axis letters: B batch, C cameras, M points of a camera, N tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig
from transformers.modeling_outputs import BaseModelOutput

from .tiny import TinyTower, halved, halving_convolutions

LEAST_SHARE = 0.25  # of a square's pixels that have to have a point; fewer points are none
LOWEST = -1e4  # a feature of what is no point


class TinyPointsConfig(PreTrainedConfig):
    """Config of `TinyPointsModel`.

    Args:
        channels: of the convolutions, each of which halves the picture.
        widths: of the network for each point.
        num_tokens: of the output.
        hidden_size: of the output.
        one_cloud: whether the points of all cameras are in one frame, and so one cloud.
        centre: of the space in which things are, metres; what lies a metre off becomes `scale`. Trials
            (docs/space.md) placed things half as well where that was a workspace away, or the scale 2.
        scale: see `centre`.
    """

    model_type = "deepfusion_tiny_points"

    def __init__(
        self,
        channels: tuple[int, ...] = (16, 32),
        widths: tuple[int, ...] = (64, 128),
        num_tokens: int = 8,
        hidden_size: int = 96,
        one_cloud: bool = True,
        centre: Sequence[float] = (0.0, 0.0, 0.0),
        scale: float = 8.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.channels = list(channels)
        self.widths = list(widths)
        self.num_tokens = num_tokens
        self.hidden_size = hidden_size
        self.one_cloud = one_cloud
        self.centre = list(centre)
        self.scale = scale


def mean_points(points: Tensor, cells: int) -> tuple[Tensor, Tensor]:
    """Mean point of each of `cells` x `cells` squares of a picture, over the pixels that have one.

    Args:
        points: [M, 4, size, size]; x, y, z in metres and 1, or four zeros, or means of such.
        cells: in a row.

    Returns:
        [M, 3, cells, cells] in metres, and the share of pixels with a point [M, 1, cells, cells]; both zero where
        that is less than `LEAST_SHARE`.
    """
    sums, share = F.adaptive_avg_pool2d(points, cells).split((3, 1), dim=1)
    share = share * (share >= LEAST_SHARE)
    return sums / share.clamp(min=LEAST_SHARE) * (share > 0), share


class TinyPointsModel(TinyTower):
    """Pictures with a point under each pixel -> tokens of each camera."""

    config_class = TinyPointsConfig
    main_input_name = "pixel_values"

    def __init__(self, config: TinyPointsConfig) -> None:
        super().__init__(config)
        self.pieces = halving_convolutions(config.channels)
        layers: list[nn.Module] = []
        previous = config.channels[-1] + 3
        *inner, last = config.widths
        for width in inner:
            layers += [nn.Linear(previous, width), nn.LayerNorm(width), nn.ReLU()]
            previous = width
        # No norm before the largest is taken: in a trial of one seed a place was found as well without.
        self.each = nn.Sequential(*layers, nn.Linear(previous, last), nn.ReLU())
        self.to_tokens = nn.Linear(last, config.num_tokens * config.hidden_size)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        # The picture's tower begins its convolutions larger: here they would drown the places.
        if isinstance(module, nn.Conv2d | nn.Linear | nn.LayerNorm):
            module.reset_parameters()

    def forward(self, pixel_values: Tensor, points: Tensor, **_: Any) -> BaseModelOutput:
        """
        Args:
            pixel_values: normalised pictures [B, C, 3, size, size].
            points: under them [B, C, 4, size, size]; x, y, z in metres and 1, or four zeros, or means of such.

        Returns:
            [B, C, N, D]; zeros for a camera without any point.
        """
        batch = len(points)
        places, there = self._places(points.flatten(0, 1))
        pieces = self.pieces(pixel_values.flatten(0, 1))
        each = self.each(torch.cat([pieces, places], dim=1).flatten(2).transpose(1, 2))
        each = each.masked_fill(~there.flatten(1)[..., None], LOWEST).unflatten(0, (batch, -1))
        seen = there.flatten(1).any(1).view(batch, -1, 1)
        # [B, C, M, F] -> the largest of each feature, [B, C, F].
        largest = each.amax((1, 2), keepdim=True)[:, 0] if self.config.one_cloud else each.amax(2)
        tokens = self.to_tokens(largest.clamp(min=0)).expand(-1, seen.shape[1], -1) * seen
        tokens = tokens.unflatten(-1, (self.config.num_tokens, self.config.hidden_size))
        return BaseModelOutput(last_hidden_state=tokens, hidden_states=(tokens,))

    def _places(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Each piece's mean point, scaled, [B * C, 3, side, side], and whether it has one, [B * C, 1, side, side]."""
        mean, share = mean_points(points, halved(points.shape[-1], len(self.config.channels)))
        there = share > 0
        centre = mean.new_tensor(self.config.centre).view(3, 1, 1)
        return (mean - centre) * self.config.scale * there, there


AutoConfig.register(TinyPointsConfig.model_type, TinyPointsConfig)
AutoModel.register(TinyPointsConfig, TinyPointsModel)
