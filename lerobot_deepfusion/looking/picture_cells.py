"""Cells of a camera's picture: which of its pixels a patch of the vision tower covers. Letterbox bars belong to none.

Axis letters: G cells in a row of the square that the tower takes, H and W the picture's own pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from ..inputs.images import letterbox_geometry
from ..llava.geometry import patches_in_a_row, tokens_nowhere

FEWEST = 12  # cells in a row of a grid to hide things in


@dataclass(frozen=True)
class Grid:
    """Square cells over the square picture that a vision tower takes.

    Attributes:
        size: of that picture, pixels.
        cell: side of a cell, pixels.
        count: cells in a row; pixels beyond them belong to none.
    """

    size: int
    cell: int
    count: int

    def of_picture(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Row of cells of each pixel row [H], column of cells of each pixel column [W]; -1 for none."""
        (new_height, new_width), (left, _, top, _) = letterbox_geometry(height, width, self.size)
        found = []
        for pixels, new, start in ((height, new_height, top), (width, new_width, left)):
            middles = start + (torch.arange(pixels) + 0.5) * new / pixels
            index = (middles // self.cell).long()
            found.append(torch.where(index < self.count, index, -1))
        return found[0], found[1]

    def spread(self, cells: Tensor, height: int, width: int) -> Tensor:
        """Values of cells [..., G, G] at a picture's pixels [..., H, W]; zero where there is no cell."""
        rows, columns = self.of_picture(height, width)
        there = (rows >= 0)[:, None] & (columns >= 0)[None]
        return cells[..., rows.clamp(min=0)[:, None], columns.clamp(min=0)[None]] * there.to(cells.device)

    def heat(self, cells: Tensor, height: int, width: int) -> Tensor:
        """The same, of which the pixels of a whole cell share its value. Of a cell that reaches into a bar, the bar's
        part is not there: else its few pixels would look hot.
        """
        new_height, new_width = letterbox_geometry(height, width, self.size)[0]
        whole = (self.cell * height / new_height) * (self.cell * width / new_width)  # the picture's own pixels
        return self.spread(cells, height, width) / whole

    def pixels(self, height: int, width: int) -> Tensor:
        """How many pixels of a picture each cell covers, [G, G]."""
        rows, columns = (
            torch.bincount(index[index >= 0], minlength=self.count) for index in self.of_picture(height, width)
        )
        return rows[:, None] * columns[None]


def patch_grid(config: PreTrainedConfig, pooling: int) -> Grid:
    """Cells of the patches, or blocks of patches, that are a token each."""
    side = patches_in_a_row(config)
    return Grid(config.vision_config.image_size, config.vision_config.patch_size * pooling, side // pooling)


def coarse_grid(size: int, finest: int = 1) -> Grid:
    """Few cells, each of whole blocks of `finest` pixels; the last may reach beyond the picture."""
    cell = finest * max(1, size // (FEWEST * finest))
    return Grid(size, cell, -(-size // cell))


def without_places(weights: Tensor, config: PreTrainedConfig) -> Tensor:
    """Weights of an image's tokens [..., tokens] as [..., G, G], without those of a class token or a newline."""
    before, behind = tokens_nowhere(config)
    patches = weights[..., before : weights.shape[-1] - behind]
    side = round(patches.shape[-1] ** 0.5)
    return patches.unflatten(-1, (side, side))
