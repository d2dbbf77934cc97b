"""What a chunk hangs on: parts of the pictures are hidden, and how far it moves is what they were worth.

Occlusion as Zeiler and Fergus (2014) have it, and the check of a heat map as Samek et al. (2017) do: what it calls
hot, taken away, has to matter more than what it calls cold.

Axis letters: T actions, G cells in a row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..inputs.depth_keys import depth_key
from ..modeling_deepfusion import DeepFusionPolicy
from .picture_cells import Grid

AT_ONCE = 36  # observations in a pass

Cells = Mapping[str, Tensor]  # by camera, [G, G]


class Hider:
    """One observation, of which parts can be hidden, and the noise that its chunks are predicted from.

    Args:
        policy: which is asked.
        batch: pre-processed, of one observation.
        noise: [1, T, A].
        grid: of what can be hidden.
    """

    def __init__(self, policy: DeepFusionPolicy, batch: Mapping[str, Any], noise: Tensor, grid: Grid) -> None:
        self.policy, self.batch, self.noise, self.grid = policy, batch, noise, grid
        self.cameras = [camera for camera in policy.config.cameras if camera in batch]

    def visible(self) -> dict[str, Tensor]:
        """Which cells have a pixel of the picture, bool [G, G]."""
        return {camera: self.grid.pixels(*self.batch[camera].shape[-2:]) > 0 for camera in self.cameras}

    def moved(self, hidden: Sequence[Cells]) -> Tensor:
        """How far each action moves, [len(hidden), T]: root mean square over its dimensions, in normalised units.

        Args:
            hidden: bool [G, G] by camera, once for each question; a camera that is left out stays whole.
        """
        found = []
        for start in range(0, len(hidden), AT_ONCE):
            # Beside the whole observation, since a batch of another size is rounded in another way.
            whole, *moved = self._predict([{}, *hidden[start : start + AT_ONCE]])
            found += [(chunk - whole).square().mean(-1).sqrt() for chunk in moved]
        return torch.stack(found)

    def _predict(self, hidden: Sequence[Cells]) -> Tensor:
        size = len(hidden)
        batch: dict[str, Any] = {
            key: value.expand(size, *value.shape[1:]).clone() if isinstance(value, Tensor) else list(value) * size
            for key, value in self.batch.items()
            if isinstance(value, Tensor | list)
        }
        for index, cells in enumerate(hidden):
            for camera, chosen in cells.items():
                self._hide(batch[camera][index], chosen)
                if camera in self.policy.config.depth_cameras:
                    batch[depth_key(camera)][index].masked_fill_(self._mask(batch[depth_key(camera)], chosen), 0)
        # The class's own: a policy that is looked at has another in its place.
        return DeepFusionPolicy.predict_action_chunk(
            self.policy, batch, noise=self.noise.expand(size, -1, -1).contiguous()
        )

    def _hide(self, picture: Tensor, chosen: Tensor) -> None:
        """Paint cells in the picture's mean colour."""
        colour = picture.mean((1, 2), keepdim=True)
        picture.copy_(torch.where(self._mask(picture, chosen), colour, picture))

    def _mask(self, picture: Tensor, chosen: Tensor) -> Tensor:
        return self.grid.spread(chosen, *picture.shape[-2:]).bool().to(picture.device)


def occlusion(hider: Hider) -> dict[str, Tensor]:
    """How far each action moves when a cell is hidden, [T, G, G] by camera; zero where there is none."""
    found = {}
    for camera, visible in hider.visible().items():
        places = visible.nonzero().tolist()
        alone = [torch.zeros_like(visible) for _ in places]
        for cells, (row, column) in zip(alone, places, strict=True):
            cells[row, column] = True
        moved = hider.moved([{camera: cells} for cells in alone])
        worth = moved.new_zeros(moved.shape[1], *visible.shape)
        rows, columns = visible.nonzero().T.to(worth.device)
        worth[:, rows, columns] = moved.T
        found[camera] = worth
    return found


def faithfulness(hider: Hider, heat: Cells, percent: float) -> dict[str, float]:
    """How far the chunk moves when so many percent of the cells are hidden: the hottest, the coldest, and some that
    are drawn; in normalised units.

    Args:
        hider: of the observation.
        heat: of each cell, [G, G] by camera.
        percent: of all cells of all cameras.
    """
    visible = hider.visible()
    places = [(camera, *place) for camera in hider.cameras for place in visible[camera].nonzero().tolist()]
    values = torch.tensor([float(heat[camera][row, column]) for camera, row, column in places])
    count = max(1, round(len(places) * percent / 100))
    order = values.argsort(descending=True, stable=True)
    drawn = torch.randperm(len(places), generator=torch.Generator().manual_seed(0))
    chosen = {"most": order[:count], "least": order[-count:], "random": drawn[:count]}
    questions = []
    for indices in chosen.values():
        cells = {camera: torch.zeros_like(mask) for camera, mask in visible.items()}
        for index in indices.tolist():
            camera, row, column = places[index]
            cells[camera][row, column] = True
        questions.append(cells)
    moved = hider.moved(questions).square().mean(1).sqrt()
    return dict(zip(chosen, moved.tolist(), strict=True))
