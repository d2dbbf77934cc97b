"""The tower for points: equal to loops, blind to where the camera stands, and nothing where there is no point."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModel

from lerobot_deepfusion.llava.tiny_points import LEAST_SHARE, TinyPointsConfig, TinyPointsModel
from tests.llavas import enlarge

SIZE = 16


def tower_of(**changes: object) -> TinyPointsModel:
    torch.manual_seed(0)
    tower = TinyPointsModel(TinyPointsConfig(**{"hidden_size": 12, "num_tokens": 2, **changes}))  # type: ignore[arg-type]
    enlarge(tower)
    return tower


def some_views(cameras: int = 2) -> tuple[Tensor, Tensor]:
    """Two samples; a third of the pixels have no point, nor has a quarter of each picture."""
    generator = torch.Generator().manual_seed(1)
    points = torch.randn(2, cameras, 4, SIZE, SIZE, generator=generator)
    points[:, :, 3] = torch.rand(2, cameras, SIZE, SIZE, generator=generator) > 1 / 3
    points[:, :, 3, : SIZE // 2, : SIZE // 2] = 0
    return torch.rand(2, cameras, 3, SIZE, SIZE, generator=generator), points * points[:, :, 3:]


def by_loops(tower: TinyPointsModel, pixels: Tensor, points: Tensor) -> Tensor:
    """Every piece of every camera for itself."""
    config, found = tower.config, []
    pieces = tower.pieces(pixels.flatten(0, 1)).unflatten(0, points.shape[:2])
    width = SIZE // pieces.shape[-1]
    for sample in range(len(points)):
        clouds = []
        for camera in range(points.shape[1]):
            cloud = []
            for row in range(pieces.shape[-2]):
                for column in range(pieces.shape[-1]):
                    square = points[sample, camera, :, row * width :, column * width :][:, :width, :width].flatten(1)
                    there = square[:, square[3] > 0]
                    if there.shape[1] >= LEAST_SHARE * width**2:
                        place = (there[:3].mean(1) - torch.tensor(config.centre)) * config.scale
                        cloud.append(tower.each(torch.cat([pieces[sample, camera, :, row, column], place])))
            clouds.append(cloud)
        for own in clouds:
            cloud = [point for one in clouds for point in one] if config.one_cloud else own
            tokens = tower.to_tokens(torch.stack(cloud).amax(0)) if own else torch.zeros(24)
            found.append(tokens.view(2, 12))
    return torch.stack(found).unflatten(0, points.shape[:2])


@pytest.mark.parametrize("one_cloud", [True, False])
def test_equals_loops(one_cloud: bool) -> None:
    """With a third camera that has no depth; worst error 1e-6."""
    tower = tower_of(one_cloud=one_cloud, centre=(0.1, -0.2, 0.3))
    pixels, points = some_views(3)
    points[:, 1] = 0
    found = tower(pixels, points).last_hidden_state
    assert torch.allclose(found, by_loops(tower, pixels, points), atol=1e-5)
    assert (found[:, 1] == 0).all()
    assert torch.equal(found[:, 0], found[:, 2]) == one_cloud


def test_one_cloud_has_no_order() -> None:
    """Of cameras: their tokens are the same whichever comes first."""
    tower = tower_of()
    pixels, points = some_views()
    assert torch.equal(tower(pixels, points)[0], tower(pixels.flip(1), points.flip(1))[0])


def test_where_a_thing_is_in_the_picture_does_not_matter() -> None:
    """Moved by whole pieces, with its points where they were, as by a camera that turned: the same tokens; with its
    points moved, others.
    """
    tower = tower_of()
    pixels, points = torch.zeros(1, 1, 3, 32, 32), torch.zeros(1, 1, 4, 32, 32)
    pixels[..., 8:16, 8:16] = torch.rand(3, 8, 8)
    points[..., 8:16, 8:16] = torch.cat([torch.randn(3, 8, 8), torch.ones(1, 8, 8)])
    expected = tower(pixels, points)[0]
    turned = [x.roll((8, 4), (-2, -1)) for x in (pixels, points)]
    assert torch.allclose(tower(*turned)[0], expected, atol=1e-6)
    points[..., 0, 8:16, 8:16] += 0.05
    assert not torch.allclose(tower(pixels, points)[0], expected, atol=1e-3)


def test_every_weight_learns() -> None:
    tower = TinyPointsModel(TinyPointsConfig())
    tokens = tower(*some_views())[0]
    assert tokens.shape == (2, 2, 8, 96)
    tokens.square().sum().backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in tower.parameters())


def test_found_by_its_name(tmp_path: Path) -> None:
    """transformers builds, saves and loads it."""
    tower = tower_of(one_cloud=False, centre=(0.0, 0.0, 1.0))
    tower.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert isinstance(loaded, TinyPointsModel)
    views = some_views()
    assert torch.equal(loaded(*views)[0], tower(*views)[0])
