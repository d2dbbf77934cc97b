"""Depth to points: against loops, on a plane, through letterbox and shift, and what is no depth."""

from __future__ import annotations

import re
import textwrap
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lerobot_deepfusion.inputs.calibration import check_calibration
from lerobot_deepfusion.inputs.depth_checks import check_depth_shape, check_depth_unit
from lerobot_deepfusion.inputs.images import letterbox
from lerobot_deepfusion.inputs.points import back_project, letterbox_points, to_base
from tests.commands import ROOT

INTRINSICS = [0.9, 1.2, 0.52, 0.47]
TURN = torch.linalg.qr(torch.tensor([[1.0, 0.2, -0.3], [0.1, -1.0, 0.4], [0.3, 0.2, 1.0]], dtype=torch.float64))[0]
TURN = TURN * torch.linalg.det(TURN)
PLACE = torch.tensor([0.4, -0.2, 0.7], dtype=torch.float64)
POSE = torch.cat([TURN, PLACE[:, None]], dim=1).flatten()


def project(depth: Tensor, pose: Tensor | None = None, intrinsics: Any = INTRINSICS) -> Tensor:
    points = back_project(depth, torch.tensor(intrinsics)[None].expand(len(depth), 4), 0.02, 5.0)
    return points if pose is None else to_base(points, pose.float()[None].expand(len(depth), 12))


def test_a_mean_moves_as_its_points_do() -> None:
    """Before the letterbox or after it, holes or none; worst error 3e-7 m."""
    depth = 0.5 + torch.rand(1, 1, 24, 32)
    depth[..., ::3] = 0
    pose = POSE.float()[None]
    before, after = letterbox_points(project(depth, POSE), 8), to_base(letterbox_points(project(depth), 8), pose)
    assert (before - after).abs().max() < 1e-6


def test_points_equal_loops() -> None:
    """Pinhole and pose of each pixel, written out; worst error 2e-7 m."""
    depth = 0.5 + torch.rand(1, 1, 5, 7)
    depth[0, 0, 0, :4] = torch.tensor([0.0, float("nan"), float("inf"), 80.0])
    found = project(depth, POSE)[0]
    fx, fy, cx, cy = INTRINSICS[0] * 7, INTRINSICS[1] * 5, INTRINSICS[2] * 7, INTRINSICS[3] * 5
    for y in range(5):
        for x in range(7):
            z = float(depth[0, 0, y, x])
            if not 0.02 <= z <= 5.0:
                assert found[:, y, x].tolist() == [0, 0, 0, 0]
                continue
            seen = torch.tensor([(x + 0.5 - cx) / fx * z, (y + 0.5 - cy) / fy * z, z], dtype=torch.float64)
            assert (found[:3, y, x] - (TURN @ seen + PLACE)).abs().max() < 1e-6
            assert found[3, y, x] == 1


def test_another_resolution_sees_the_same_points() -> None:
    """Intrinsics are shares: each pixel of half the size has the mean of four, on a plane; worst error 4e-7 m."""
    right, down = (torch.arange(8) + 0.5) / 8, ((torch.arange(8) + 0.5) / 8)[:, None]
    fx, fy, cx, cy = INTRINSICS
    # The plane z = 1 + 0.3 x - 0.2 y in the camera's frame.
    plane = 1 / (1 - 0.3 * (right - cx) / fx + 0.2 * (down - cy) / fy)
    half = (plane[0::2, 0::2] + plane[1::2, 1::2]) / 2
    whole, small = project(plane[None, None]), project(half[None, None])
    for points in (whole, small, letterbox_points(whole, 4)):
        x, y, z, valid = points[0]
        assert (z - (1 + 0.3 * x - 0.2 * y)).abs().max() < (2e-6 if points is not small else 2e-3)
        assert (valid == 1).all()


def test_a_turned_picture_sees_the_same_points() -> None:
    """A picture turned by 180 degrees, as simulators' are, with R diag(-1, -1, 1) and the centre turned alike."""
    depth = 0.5 + torch.rand(1, 1, 6, 8)
    fx, fy, cx, cy = INTRINSICS
    turned = torch.cat([TURN @ torch.diag(torch.tensor([-1.0, -1, 1], dtype=torch.float64)), PLACE[:, None]], dim=1)
    other = project(depth.flip(2, 3), turned.flatten(), (fx, fy, 1 - cx, 1 - cy))
    assert torch.allclose(other.flip(2, 3), project(depth, POSE), atol=1e-6)


@pytest.mark.parametrize("shape", [(48, 64), (50, 64), (64, 48), (40, 40), (13, 17)])
def test_points_lie_under_their_pixels(shape: tuple[int, int]) -> None:
    """Points that are the picture's own columns and rows go where the letterbox puts those; bars have none.

    Sampling differs (antialiased there, means here): by 0.03 of the picture at its edges, where either sees less.
    """
    height, width = shape
    column, row = torch.meshgrid(torch.arange(width) / width, torch.arange(height) / height, indexing="xy")
    picture = torch.stack([column, row, torch.ones(height, width)])[None]
    points = letterbox_points(torch.cat([picture, torch.ones(1, 1, height, width)], dim=1), 32)
    boxed = letterbox(picture, 32)
    assert torch.equal(points[:, 3] > 0, boxed[:, 2] > 0)
    assert (points[:, :3] - boxed).abs().max() < 0.03


def test_no_return_does_not_pull_a_mean() -> None:
    """Half of the pixels without a return: the mean is of those that have one."""
    depth = torch.full((1, 1, 8, 8), 1.5)
    depth[..., ::2] = 0
    points = letterbox_points(project(depth), 4)
    assert torch.allclose(points[:, 2] / points[:, 3], torch.tensor(1.5))
    assert (points[:, 3] == 0.5).all()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.float64, torch.float32])
def test_units_that_are_none_stop(dtype: torch.dtype) -> None:
    depth = torch.tensor([0.0, 2.0, 1.0, 2.0]).expand(1, 1, 4, 4)
    with pytest.raises(ValueError, match=r"top_depth has 2 in the middle.*millimetres.*metres, multiply by 1000"):
        check_depth_unit("top_depth", depth.to(dtype))
    check_depth_unit("top_depth", (depth.double() * 100).to(dtype))


def test_micrometres_stop_and_no_returns_do_not() -> None:
    with pytest.raises(ValueError, match=r"in the middle of its values.*micrometres, divide by 1000"):
        check_depth_unit("top_depth", torch.full((1, 1, 4, 4), 1.5e6))
    for nothing in (torch.zeros(1, 1, 4, 4), torch.full((1, 1, 4, 4), torch.nan), torch.zeros(0, 1, 4, 4), None):
        check_depth_unit("top_depth", nothing)
    check_depth_unit("top_depth", torch.full((1, 1, 4, 4), 1500).to(torch.uint16))
    check_depth_unit("top_depth", torch.full((1, 1, 4, 4), 9.3))  # a video's no return


@pytest.mark.parametrize(
    ("depth", "message"),
    [
        (torch.zeros(1, 3, 48, 64), r"float32 of the shape (1, 3, 48, 64); expected [batch, 1, height, width]"),
        (torch.zeros(48, 64), "of the shape (48, 64)"),
        (torch.zeros(1, 1, 48, 64, dtype=torch.bool), "is torch.bool"),
        (torch.zeros(1, 1, 48, 48), "is 48 x 48 pixels and observation.image 48 x 64: other proportions"),
    ],
)
def test_shapes_that_are_none_stop(depth: Tensor, message: str) -> None:
    batch = {"observation.image": torch.zeros(1, 3, 48, 64), "observation.image_depth": depth}
    with pytest.raises(ValueError, match=re.escape(message)):
        check_depth_shape("observation.image", batch)


def test_depth_of_another_resolution_is_fine() -> None:
    batch = {"observation.image": torch.zeros(1, 3, 48, 64), "observation.image_depth": torch.zeros(1, 1, 24, 32)}
    check_depth_shape("observation.image", batch)


TURNED = POSE.tolist()
MIRRORED = [*(-POSE[:4]).tolist(), *POSE[4:].tolist()]


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (
            {"intrinsics": [600.0, 600.0, 320.0, 240.0]},
            r"are in pixels; expected shares.*Divide fx and cx by the width",
        ),
        ({"intrinsics": [0.1, 0.9, 0.5, 0.5]}, r"between 0\.2 and 10"),
        ({"intrinsics": [0.9, 0.9, 1.5, 0.5]}, r"between 0 and 1"),
        ({"intrinsics": [0.9, 0.9, 0.5]}, r"expected 4 finite numbers"),
        ({"intrinsics": [0.9, 0.9, 0.5, float("nan")]}, r"expected 4 finite numbers"),
        ({"intrinsics": [0.9, 0.9, 0.5, True]}, r"expected 4 finite numbers"),
        ({"intrinsics": "0.9"}, r"expected 4 finite numbers"),
        ({"pose": [*TURNED, 0, 0, 0, 1]}, r"expected 12 finite numbers"),
        ({"pose": [2 * value for value in TURNED]}, r"is no rotation \(off by 3"),
        ({"pose": MIRRORED}, r"determinant -1"),
        ({"pose": [0.0] * 12}, r"is no rotation"),
        ({"pose": [*TURNED[:3], 400.0, *TURNED[4:]]}, r"stands 400 m from.*Divide millimetres by 1000"),
        ({"extrinsics": TURNED}, r"expected `intrinsics` of 4 numbers and `pose` of 12"),
        (3, r"expected `intrinsics` of 4 numbers"),
    ],
)
def test_calibrations_that_are_none_stop(said: Any, message: str) -> None:
    with pytest.raises(ValueError, match=rf"camera_calibration of 'observation\.image'.*{message}"):
        check_calibration({"observation.image": said})


def test_calibrations_that_are_right_pass() -> None:
    check_calibration({"observation.image": {"intrinsics": INTRINSICS, "pose": TURNED}}, ["observation.image"])
    with pytest.raises(ValueError, match=r"has 'observation\.wrist', which is no camera of this policy"):
        check_calibration({"observation.wrist": {}}, ["observation.image"])
    with pytest.raises(ValueError, match="is a list; expected cameras by key"):
        check_calibration([])


def test_calibration_by_opencv_as_the_docs_say() -> None:
    """The lines of docs/space.md, with a board whose corners are seen: intrinsics and pose that put a pixel's depth
    where it is; worst error 1e-6 m. Without the half pixel it would be off by 0.7 mm.
    """
    cv2 = pytest.importorskip("cv2")
    code = re.search(r"```python\n(.*?)```", (ROOT / "docs/space.md").read_text(), re.DOTALL)
    assert code is not None
    width, height, focal, centre = 640, 480, np.array([580.0, 575.0]), np.array([310.0, 250.0])
    board = np.array([[0.4 + 0.04 * x, -0.1 + 0.04 * y, 0.02] for x in range(5) for y in range(4)])
    down, place = np.array([[0.0, -1, 0], [-1, 0, 0], [0, 0, -1]]), np.array([0.5, -0.05, 0.8])  # over the table
    seen = (board - place) @ down
    known = {
        "camera_matrix": np.array([[focal[0], 0, centre[0]], [0, focal[1], centre[1]], [0, 0, 1]]),
        "corners_in_the_base_frame": board,
        "corners_in_the_picture": seen[:, :2] / seen[:, 2:] * focal + centre,
        "distortion": None,
    }
    found: dict[str, Any] = {"cv2": cv2, "np": np, "width": width, "height": height, **known}
    exec(textwrap.dedent(code[1]), found)
    check_calibration({"observation.image": {"intrinsics": found["intrinsics"], "pose": found["pose"]}})
    column, row, far = 300, 240, 0.78
    depth = torch.zeros(1, 1, height, width)
    depth[0, 0, row, column] = far
    points = back_project(depth, torch.tensor([found["intrinsics"]], dtype=torch.float32), 0.02, 5.0)
    points = to_base(points, torch.tensor([found["pose"]], dtype=torch.float32))
    ray = (np.array([column, row]) - centre) / focal
    expected = down @ np.array([*(far * ray), far]) + place
    assert np.abs(points[0, :3, row, column].numpy() - expected).max() < 1e-5
