"""Positions of patches: equal to loops over pixels, worth nothing where there is no depth, and zero at the start."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lerobot_deepfusion.llava.tiny import tiny_llava_config
from lerobot_deepfusion.llava.tiny_points import LEAST_SHARE
from lerobot_deepfusion.network import positions
from lerobot_deepfusion.network.lockstep import DeepFusionModel
from lerobot_deepfusion.network.positions import PatchPositions, cell_means, sine_features
from tests.llavas import IMAGE_TOKEN_ID, enlarge, llava_config


def some_points(count: int, size: int, seed: int = 0) -> Tensor:
    """A third of the pixels without a point, and a quarter of the picture."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(count, 4, size, size, generator=generator)
    points[:, 3] = torch.rand(count, size, size, generator=generator) > 1 / 3
    points[:, 3, : size // 2, : size // 2] = 0
    return points * points[:, 3:]


def cells_by_loops(points: Tensor, patches: int, patch_size: int, cells: int) -> tuple[Tensor, Tensor]:
    side = patches * patch_size // cells
    mean, share = torch.zeros(len(points), 3, cells, cells), torch.zeros(len(points), 1, cells, cells)
    for item in range(len(points)):
        for row in range(cells):
            for column in range(cells):
                seen = [
                    points[item, :3, y, x]
                    for y in range(row * side, (row + 1) * side)
                    for x in range(column * side, (column + 1) * side)
                    if points[item, 3, y, x]
                ]
                if len(seen) >= LEAST_SHARE * side**2:
                    mean[item, :, row, column] = torch.stack(seen).mean(0)
                    share[item, 0, row, column] = len(seen) / side**2
    return mean, share


@pytest.mark.parametrize(("patches", "patch_size", "size", "pooling"), [(4, 8, 32, 1), (4, 8, 32, 2), (3, 14, 50, 1)])
def test_cells_equal_loops(patches: int, patch_size: int, size: int, pooling: int) -> None:
    """Pooling, and a tower that leaves a border out (SigLIP: 27 patches of 14 in 384); worst error 3e-7 m."""
    points, cells = some_points(2, size), 2 * patches // pooling
    found = cell_means(points, patches, patch_size, cells)
    for value, expected in zip(found, cells_by_loops(points, patches, patch_size, cells), strict=True):
        assert (value - expected).abs().max() < 1e-6
    assert (found[1][..., : cells // 2, : cells // 2] == 0).all()
    assert (found[1] > 0).any()


def test_sine_features_equal_loops() -> None:
    """Of SpatialVLA's kind: the place, then sine and cosine of each wavelength; worst error 2e-5 (angles of 200)."""
    place = torch.tensor([0.3, -1.2, 0.05])
    expected = [float(value) / 2 for value in place]
    for function in (math.sin, math.cos):
        for octave in range(8):
            expected += [function(2 * math.pi * float(value) / (4.0 / 2**octave)) for value in place]
    assert (sine_features(place) - torch.tensor(expected)).abs().max() < 5e-5


@pytest.mark.parametrize("pooling", [1, 2])
def test_each_token_gets_its_own_cells(make: str, pooling: int) -> None:
    """A point moved under one patch changes that patch's token alone; class token and newline get nothing."""
    config = llava_config(make)
    if make == "clip_mistral" and pooling == 1:
        config.vision_feature_select_strategy = "full"
    module = PatchPositions(config, pooling, (0.0, 0.0, 1.0))
    enlarge(module)
    points = some_points(1, 32)
    moved = points.clone()
    moved[0, 0, 20:24, 28:32] += 0.3 * moved[0, 3, 20:24, 28:32]  # the cell in row 5, column 7 of 8
    changed = (module(moved[None]) - module(points[None]))[0].abs().amax(-1) > 1e-6
    row, column = (2, 3) if pooling == 1 else (1, 1)
    class_token = int(make == "clip_mistral" and pooling == 1)
    assert changed.nonzero().flatten().tolist() == [class_token + row * module.tokens_in_a_row + column]
    tokens = module(points[None])[0]
    assert (tokens[:class_token] == 0).all()
    if make in ("next_mistral", "onevision"):
        assert (tokens[-1] == 0).all()
    assert (tokens[class_token] == 0).all()  # the corner without a point
    assert (tokens[-1 - (make in ("next_mistral", "onevision"))] != 0).any()


def test_a_cell_without_points_says_nothing() -> None:
    """Beside three that have some: its place, sines, cosines and share are zero, not those of the camera's own."""
    module = PatchPositions(llava_config("clip_llama"), 1, (0.0, 0.0, 0.0))
    seen: list[Tensor] = []
    module.mlp.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    points = torch.ones(1, 4, 32, 32)
    points[..., 20:24, 12:16] = 0  # row 5, column 3 of 8: the lower right cell of token (2, 1)
    module(points[None])
    cells = seen[0][0].unflatten(-1, (4, -1))
    empty = (cells == 0).all(-1)
    assert empty.nonzero().tolist() == [[2 * 4 + 1, 3]]


@pytest.mark.parametrize("make", ["clip_llama", "tiny"])
@pytest.mark.parametrize(
    ("frame", "centre", "expected"),
    [("camera", None, (0, 0, 1)), ("world", None, (0, 0, 0)), ("world", (0.3, -0.2, 0.5), (0.3, -0.2, 0.5))],
)
def test_places_count_from_the_centre(make: str, frame: str, centre: Any, expected: tuple[float, ...]) -> None:
    """A metre before the camera, the base, or what is given: with the points moved by as much, the tokens are those
    of a centre of zeros.
    """
    torch.manual_seed(0)
    config = tiny_llava_config() if make == "tiny" else llava_config(make)
    size = config.vision_config.image_size
    some = positions.build_positions(config, frame, 1, centre)
    plain = positions.build_positions(config, frame, 1, (1e-9, 0.0, 0.0))
    enlarge(some)
    plain.load_state_dict(some.state_dict())
    points, pixels = some_points(1, size), torch.randn(1, 1, 3, size, size)
    moved = points.clone()
    moved[:, :3] += torch.tensor(expected, dtype=torch.float32).view(3, 1, 1) * moved[:, 3:]
    assert torch.allclose(some(moved[None], pixels), plain(points[None], pixels), atol=2e-3)
    if any(expected):
        assert not torch.allclose(some(points[None], pixels), plain(points[None], pixels), atol=0.1)


def both_models(make: str, fusion: Any) -> tuple[DeepFusionModel, DeepFusionModel, int]:
    """Flat and in space, of one seed, and where the random numbers stand behind each."""
    config = tiny_llava_config() if make == "tiny" else llava_config(make)
    models, states = [], []
    for frame in ("none", "world"):
        torch.manual_seed(3)
        models.append(DeepFusionModel(config, fusion, 1.0, "adarms", 4, 3, position_3d=frame))
        states.append(torch.get_rng_state())
    models[1].position_3d = positions.build_positions(config, "world", 1, flat=True)
    assert torch.equal(*states)
    return models[0], models[1], config.vision_config.image_size


def velocity(model: DeepFusionModel, size: int, points: Tensor | None) -> Tensor:
    torch.manual_seed(4)
    image_id = model.perception.config.image_token_id
    tokens = torch.full((2, 2 * model.perception.image_tokens + 5), image_id)
    tokens[:, -5:] = torch.randint(0, min(80, IMAGE_TOKEN_ID), (2, 5))
    pixels, time = torch.rand(2, 2, 3, size, size), torch.rand(2, 1)
    states = model.prefill(pixels, tokens, torch.ones_like(tokens, dtype=torch.bool), points=points)
    return model.denoise(states, torch.randn(2, 4), torch.randn(2, 1, 6, 3), model.embed_time(time))


@pytest.mark.parametrize("make", ["tiny", "clip_llama", "siglip_qwen2", "onevision"])
def test_space_begins_flat(make: str, fusion: str) -> None:
    """Of one seed: velocity and the gradient of every weight are those of the flat network to the bit; then the new
    weights get a gradient, and what they learn counts.
    """
    flat, space, size = both_models(make, fusion)
    points = some_points(4, size).view(2, 2, 4, size, size)
    one, other = velocity(flat, size, None), velocity(space, size, points)
    assert torch.equal(one, other)
    one.square().sum().backward()
    other.square().sum().backward()
    weights = dict(space.named_parameters())
    for name, parameter in flat.named_parameters():
        assert torch.equal(weights[name], parameter)
        assert (parameter.grad is None) == (weights[name].grad is None)
        assert parameter.grad is None or torch.equal(weights[name].grad, parameter.grad)
    new = {name: value for name, value in weights.items() if name.startswith("position_3d.")}
    assert len(weights) == len(list(flat.parameters())) + len(new)
    assert any(value.grad.any() for value in new.values())
    enlarge(space.position_3d)
    assert not torch.allclose(velocity(space, size, points), one, atol=1e-3)
    # Without a single point it is flat whatever was learned.
    assert torch.equal(velocity(space, size, torch.zeros_like(points)), one)


# --- beside the two that it comes from --------------------------------------------------------------------


def ego3d_features(points: Tensor, patches: int, patch_size: int) -> Tensor:
    """SpatialVLA's: the mean depth of a cell times the ray through its middle, (P - (0, 0, 2)) / 2, sines and cosines
    of 2 ** k times that; before the projector, and whether or not there was a return.
    """
    cells = 2 * patches
    middle = F.adaptive_avg_pool2d(points[:, :3], cells)  # of what has depth everywhere it is the same
    place = (middle - torch.tensor([0.0, 0.0, 2.0])[:, None, None]) / 2
    angles = torch.cat([2.0**k * place for k in range(8)], dim=1)
    return torch.cat([place, angles.sin(), angles.cos()], dim=1)


def llava_3d_points(points: Tensor, patches: int, patch_size: int) -> Tensor:
    """LLaVA-3D's: raw metres of the pixel in the middle of a patch."""
    at = torch.arange(patches) * patch_size + patch_size // 2
    return points[:, :3, at][..., at]


def test_holes_do_not_move_ours() -> None:
    """A wall with half of its pixels without a return is where the whole wall is. SpatialVLA's mean lies halfway to
    the camera (it has no holes: its depth is a network's); LLaVA-3D's pixel is lost with the one that it looks at.
    """
    wall = torch.zeros(1, 4, 32, 32)
    wall[:, 2], wall[:, 3] = 1.4, 1.0
    holes = wall.clone()
    holes[..., ::2] = 0  # every other column, those in the middle of a patch too
    ours, theirs = cell_means(holes, 4, 8, 8)[0], ego3d_features(holes, 4, 8)
    assert torch.allclose(ours, cell_means(wall, 4, 8, 8)[0])
    assert torch.allclose(theirs[:, 2], torch.tensor((0.7 - 2) / 2))
    assert (llava_3d_points(holes, 4, 8) == 0).all()
    assert (llava_3d_points(wall, 4, 8)[:, 2] == 1.4).all()


def test_whole_walls_are_the_same_to_all_three() -> None:
    """Without holes the cells of the two that average agree, and the pixel lies within a cell of them."""
    right, down = torch.meshgrid(torch.arange(32) / 32, torch.arange(32) / 32, indexing="xy")
    plane = torch.stack([right - 0.5, down - 0.5, 1 + 0.3 * right, torch.ones(32, 32)])[None]
    ours, theirs = cell_means(plane, 4, 8, 8)[0], ego3d_features(plane, 4, 8)[:, :3]
    assert torch.allclose((ours - torch.tensor([0.0, 0.0, 2.0])[:, None, None]) / 2, theirs, atol=1e-6)
    pixel = llava_3d_points(plane, 4, 8)
    assert (pixel - F.adaptive_avg_pool2d(ours, 4)).abs().max() < 1 / 32
