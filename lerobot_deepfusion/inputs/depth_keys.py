"""Names of what belongs to a camera besides its picture: depth as LeRobot records it, and where the camera is.

`camera` is the key of the picture in a batch, such as `observation.images.top`.
"""

from __future__ import annotations

INTRINSICS, EXTRINSICS = "observation.intrinsics.", "observation.extrinsics."


def depth_key(camera: str) -> str:
    """Distance along the camera's axis, [B, 1, height, width], millimetres."""
    return f"{camera}_depth"


def intrinsics_key(camera: str) -> str:
    """Focal lengths and centre [B, 4]: fx / width, fy / height, cx / width, cy / height."""
    return f"{INTRINSICS}{_name(camera)}"


def extrinsics_key(camera: str) -> str:
    """Pose [B, 12]: rows of [R, t], camera to the robot's base; x right, y down, z forward, metres."""
    return f"{EXTRINSICS}{_name(camera)}"


def _name(camera: str) -> str:
    """LeRobot takes every key with `image` in it for a picture."""
    return camera.removeprefix("observation.").removeprefix("images.").replace("image", "picture")
