"""Where in space the patches of a picture are, added to their tokens: zero at the start, so that 3D begins as 2D.

From SpatialVLA's Ego3D (Qu et al. 2025, arXiv:2501.15830): several points a patch, sine features. From LLaVA-3D (Zhu
et al. 2024, arXiv:2409.18125): a picture without depth keeps its 2D tokens. Ours: what has no depth counts for
nothing instead of lying at the camera, wavelengths are in metres, the sum stands behind the projector, where a
pretrained LLaVA's own pooling and freezing don't reach, and its last layer starts at zero.

Axis letters: B batch, C cameras, N image tokens of one camera, D text width, G tokens in a row of the picture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.models.auto.modeling_auto import AutoModel

from ..llava.geometry import patches_in_a_row, tokens_nowhere
from ..llava.tiny import TinyVisionConfig
from ..llava.tiny_points import TinyPointsConfig, mean_points

POSITIONS = ("none", "camera", "world", "cloud")
IN_WORLD = ("world", "cloud")  # in whose frame points are the robot's
CELLS = 2  # in a row and a column of each token
OCTAVES = 8
LONGEST = 4.0  # metres; the shortest wavelength is then 31 mm, and finer ones alias inside a patch
HIDDEN = 256


def cell_means(points: Tensor, patches: int, patch_size: int, cells: int) -> tuple[Tensor, Tensor]:
    """`mean_points` of what a tower of patches sees.

    Args:
        points: [M, 4, size, size].
        patches: in a row; what lies beyond them is cut off, as its convolution does.
        patch_size: in pixels.
        cells: in a row of the picture.
    """
    return mean_points(points[..., : patches * patch_size, : patches * patch_size], cells)


def sine_features(places: Tensor) -> Tensor:
    """Places [..., 3] in metres from the centre -> themselves by halves, and sines and cosines of `OCTAVES`
    wavelengths of each: [..., 3 + 6 * OCTAVES].
    """
    waves = 2 * math.pi / LONGEST * 2.0 ** torch.arange(OCTAVES, device=places.device, dtype=places.dtype)
    angles = (places[..., None, :] * waves[:, None]).flatten(-2)
    return torch.cat([places / 2, angles.sin(), angles.cos()], dim=-1)


class PatchPositions(nn.Module):
    """For a tower of patches: what is added to the tokens behind the projector.

    Args:
        vlm_config: config of the whole LLaVA.
        pooling: see `Perception`.
        centre: of the space in which things are, metres.
    """

    centre: Tensor

    def __init__(self, vlm_config: PreTrainedConfig, pooling: int, centre: Sequence[float]) -> None:
        super().__init__()
        vision, width = vlm_config.vision_config, vlm_config.text_config.hidden_size
        self.patches, self.patch_size = patches_in_a_row(vlm_config), vision.patch_size
        self.tokens_in_a_row = self.patches // pooling
        self.around = tokens_nowhere(vlm_config)
        self.mlp = nn.Sequential(
            nn.Linear(CELLS**2 * (3 + 6 * OCTAVES + 1), HIDDEN),
            nn.LayerNorm(HIDDEN),
            nn.SiLU(),
            nn.Linear(HIDDEN, width),
        )
        self.register_buffer("centre", torch.tensor(centre), persistent=False)
        _zero(self.mlp[-1])

    def forward(self, points: Tensor, pixels: Tensor | None = None) -> Tensor:
        """Points [B, C, 4, size, size] -> [B * C, N, D] in float32; of the pictures it needs nothing."""
        with torch.autocast(points.device.type, enabled=False):
            mean, share = cell_means(
                points.flatten(0, 1).float(), self.patches, self.patch_size, CELLS * self.tokens_in_a_row
            )
            place, there = mean.movedim(1, -1) - self.centre, share.movedim(1, -1)
            cells = torch.cat([sine_features(place) * (there > 0), there], dim=-1)
            # The cells of a token side by side: [M, G, cells, G, cells, F] -> [M, G * G, cells * cells * F].
            grid = cells.unflatten(2, (-1, CELLS)).unflatten(1, (-1, CELLS)).transpose(2, 3)
            tokens = grid.flatten(3).flatten(1, 2)
            shares = tokens.unflatten(-1, (CELLS**2, -1))[..., -1]
            out = self.mlp(tokens) * (shares.amax(-1, keepdim=True) > 0)
        return F.pad(out, (0, 0, *self.around))


class CloudPositions(nn.Module):
    """For the tiny LLaVA, whose tokens have no place: its tower for points, the tokens of which are added.

    Args:
        vlm_config: config of the tiny LLaVA.
        one_cloud: whether the points of all cameras are in one frame.
        centre: of the space in which things are, metres.
        flat: see `build_positions`.
    """

    def __init__(
        self, vlm_config: PreTrainedConfig, one_cloud: bool, centre: Sequence[float], flat: bool = False
    ) -> None:
        super().__init__()
        config = TinyPointsConfig(
            num_tokens=vlm_config.vision_config.num_tokens,
            hidden_size=vlm_config.text_config.hidden_size,
            one_cloud=one_cloud,
            centre=centre,
        )
        self.tower = AutoModel.from_config(config)
        if flat:
            _zero(self.tower.to_tokens)

    def forward(self, points: Tensor, pixels: Tensor) -> Tensor:
        """Points [B, C, 4, size, size] and pictures [B, C, 3, size, size] -> [B * C, N, D] in float32."""
        with torch.autocast(points.device.type, enabled=False):
            return self.tower(pixels.float(), points.float()).last_hidden_state.flatten(0, 1)


def build_positions(
    vlm_config: PreTrainedConfig,
    position_3d: str,
    pooling: int,
    centre: Sequence[float] | None = None,
    flat: bool = False,
) -> nn.Module | None:
    """The module for a LLaVA, or none for a policy that sees flat. The generator of random numbers stays as it is, so
    that one seed gives the same other weights and the same batches.

    Args:
        vlm_config: config of the whole LLaVA.
        position_3d: one of `POSITIONS`.
        pooling: see `Perception`.
        centre: of the space in which things are, metres; by default a metre before each camera, or the robot's base.
        flat: whether it adds nothing at the start, for weights that were trained without. To a pretrained LLaVA it
            never does; with a tiny one from scratch there is nothing to keep, and zeros learn late
            (docs/space.md).

    Raises:
        ValueError: for `cloud` with another LLaVA than the tiny one.
    """
    if position_3d == "none":
        return None
    centre = centre or (0.0, 0.0, 1.0 if position_3d == "camera" else 0.0)
    tiny = isinstance(vlm_config.vision_config, TinyVisionConfig)
    if position_3d == "cloud" and not tiny:
        raise ValueError(
            "policy.position_3d=cloud leaves the pictures' tokens out, which are all that a pretrained LLaVA knows; "
            "it is for policy.vlm_path=tiny. Use camera or world"
        )
    with torch.random.fork_rng(devices=[]):
        if tiny:
            return CloudPositions(vlm_config, position_3d in IN_WORLD, centre, flat)
        return PatchPositions(vlm_config, pooling, centre)


def _zero(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
