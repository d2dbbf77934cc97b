"""Names of a camera's depth, intrinsics and pose."""

from __future__ import annotations

import pytest

from lerobot_deepfusion.inputs.depth_keys import depth_key, extrinsics_key, intrinsics_key


@pytest.mark.parametrize(
    ("camera", "depth", "name"),
    [
        ("observation.images.top", "observation.images.top_depth", "top"),
        ("observation.image", "observation.image_depth", "camera"),
        ("observation.images.image2", "observation.images.image2_depth", "camera2"),
    ],
)
def test_no_vector_is_taken_for_a_picture(camera: str, depth: str, name: str) -> None:
    """By LeRobot, which looks for `image` in names."""
    assert depth_key(camera) == depth
    assert intrinsics_key(camera) == f"observation.intrinsics.{name}"
    assert extrinsics_key(camera) == f"observation.extrinsics.{name}"
    assert "image" not in intrinsics_key(camera) + extrinsics_key(camera)
