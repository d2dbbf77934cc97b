"""Names of what belongs to a camera besides its picture: depth as LeRobot records it, and where the camera is.

`camera` is the key of the picture in a batch, such as `observation.images.top`, which makes
`observation.images.top_depth`, `observation.intrinsics.top` and `observation.extrinsics.top`.

LeRobot takes a column with `image` in its name for a picture: it merges no data sets in which it is none, and turns
its axes on a robot. So the vectors of `observation.image` are `observation.intrinsics.camera` and so on, those of
`observation.images.image2` are of `camera2`.
"""

from __future__ import annotations

INTRINSICS, EXTRINSICS = "observation.intrinsics.", "observation.extrinsics."


def depth_key(camera: str) -> str:
    """Distance along the camera's axis, [B, 1, height, width], millimetres."""
    return f"{camera}_depth"


def intrinsics_key(camera: str) -> str:
    """Focal lengths and centre [B, 4]: fx / width, fy / height, cx / width, cy / height; pixel i is at i + 0.5."""
    return f"{INTRINSICS}{_name(camera)}"


def extrinsics_key(camera: str) -> str:
    """Pose [B, 12]: rows of [R, t], camera to the robot's base; x right, y down, z forward, metres."""
    return f"{EXTRINSICS}{_name(camera)}"


def _name(camera: str) -> str:
    return camera.removeprefix("observation.").removeprefix("images.").replace("image", "camera")
