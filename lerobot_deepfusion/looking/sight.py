"""One observation, what the policy made of it, and where in the pictures that came from.

Axis letters: L expert layers, N heads, T actions, G cells in a row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from lerobot.policies.common.flow_matching import sample_noise
from lerobot.utils.constants import OBS_STATE
from torch import Tensor

from ..modeling_deepfusion import DeepFusionPolicy
from ..processor_deepfusion import DeepFusionPromptProcessorStep
from .attention_seen import Attention, watch
from .hiding import Hider, faithfulness, occlusion
from .picture_cells import Grid, coarse_grid, patch_grid, without_places

ACTIONS = ("first", "middle", "last", "all")  # of a chunk, for which there are maps


@dataclass
class Sight:
    """
    Attributes:
        pictures: [H, W, 3] in [0, 1] by camera.
        state: as the robot gives it, or normalised where it has another name there.
        chunk: [T, A], as the robot gets it.
        grid: of the cells.
        cells: worth of each cell by camera, [L, N, len(ACTIONS), G, G]; of one layer and head by occlusion.
        shares: of the actions' attention, [L]; see `Attention.shares`.
        words: of the prompt, with their share.
        moved: see `faithfulness`.
    """

    pictures: dict[str, np.ndarray]
    state: np.ndarray
    chunk: np.ndarray
    grid: Grid
    cells: dict[str, Tensor]
    shares: dict[str, list[float]]
    words: list[tuple[str, float]]
    moved: dict[str, float]

    def heat(self, camera: str, layer: int | None = None, head: int | None = None, action: str = "all") -> np.ndarray:
        """[H, W]; the mean over all layers, or heads, where none is named."""
        cells = self.cells[camera][:, :, ACTIONS.index(action)]
        cells = cells.mean(0) if layer is None else cells[layer]
        cells = cells.mean(0) if head is None else cells[head]
        return self.grid.heat(cells, *self.pictures[camera].shape[:2]).numpy()


@dataclass
class Looker:
    """Predicts chunks in the place of a policy, and looks at each.

    Args:
        policy: which predicts.
        before: its pre-processor.
        after: its post-processor.
        by_occlusion: whether heat is what a chunk loses by a hidden cell, in the place of attention; a vision tower
            whose tokens have no places knows no other.
        percent: of the cells, hidden by `faithfulness`.
        most: of observations to look at; later ones are only acted on.
    """

    policy: DeepFusionPolicy
    before: Any
    after: Callable[[Tensor], Tensor]
    by_occlusion: bool
    percent: float
    most: int
    sights: list[Sight] = field(default_factory=list)
    seen: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        vision = self.policy.model.perception.config.vision_config
        self.by_occlusion |= not hasattr(vision, "patch_size") or not self.policy.model.perception.pictures

    def prepare(self, batch: dict[str, Any]) -> dict[str, Any]:
        """What the pre-processor does; the state is kept as it came."""
        self.seen = batch
        return self.before(dict(batch))

    @torch.no_grad()
    def __call__(self, batch: Mapping[str, Any]) -> Tensor:
        """The normalised chunk [1, T, A] of one pre-processed observation."""
        policy, config = self.policy, self.policy.config
        shape = (1, config.chunk_size, config.action_feature.shape[0])
        noise = sample_noise(shape, batch[OBS_STATE].device)
        if len(self.sights) >= self.most:
            return DeepFusionPolicy.predict_action_chunk(policy, dict(batch), noise=noise)
        with watch(policy) as watched:
            chunk = DeepFusionPolicy.predict_action_chunk(policy, dict(batch), noise=noise)
        attention = watched.attention()
        grid = self._grid()
        hider = Hider(policy, batch, noise, grid)
        cells = self._occluded(hider) if self.by_occlusion else self._attended(attention, hider.cameras)
        heat = {camera: values[:, :, -1].mean((0, 1)) for camera, values in cells.items()}
        self.sights.append(
            Sight(
                {camera: batch[camera][0].permute(1, 2, 0).float().cpu().numpy() for camera in hider.cameras},
                self.seen.get(OBS_STATE, batch[OBS_STATE])[0].float().cpu().numpy(),
                self.after(chunk[0]).float().cpu().numpy(),
                grid,
                cells,
                {name: share.tolist() for name, share in attention.shares().items()},
                attention.words(self._decode),
                faithfulness(hider, heat, self.percent),
            )
        )
        return chunk

    def _grid(self) -> Grid:
        perception = self.policy.model.perception
        if not self.by_occlusion:
            return patch_grid(perception.config, perception.pooling)
        vision = perception.config.vision_config
        return coarse_grid(vision.image_size, getattr(vision, "patch_size", 1) * perception.pooling)

    def _attended(self, attention: Attention, cameras: list[str]) -> dict[str, Tensor]:
        config, found = self.policy.model.perception.config, {}
        for camera in cameras:
            weights = _of_actions(attention.camera_weights()[camera].movedim(2, 0)).movedim(0, 2)
            found[camera] = without_places(weights, config).float().cpu()
        return found

    def _occluded(self, hider: Hider) -> dict[str, Tensor]:
        return {camera: _of_actions(worth)[None, None].float().cpu() for camera, worth in occlusion(hider).items()}

    def _decode(self, ids: list[int]) -> str:
        [prompt] = [step for step in self.before.steps if isinstance(step, DeepFusionPromptProcessorStep)]
        assert prompt.tokenizer is not None
        return prompt.tokenizer.decode(ids, skip_special_tokens=False)


def _of_actions(values: Tensor) -> Tensor:
    """[T, ...] -> [len(ACTIONS), ...]."""
    return torch.stack([values[0], values[(len(values) - 1) // 2], values[-1], values.mean(0)])
