"""Meta-World's cameras by name."""

from __future__ import annotations

from collections.abc import Sequence

from lerobot.utils.constants import OBS_IMAGE, OBS_IMAGES

CAMERAS = ("corner2", "corner", "corner3", "topview", "behindGripper", "gripperPOV")
ON_THE_HAND = ("behindGripper", "gripperPOV")  # the others stand in the room
UPSIDE_DOWN = ("corner", "corner2", "corner3")  # the cameras that Meta-World mounts that way


def batch_keys(cameras: Sequence[str]) -> dict[str, str]:
    """The key under which a policy sees each: one alone is `observation.image`, as LeRobot has it."""
    if len(cameras) == 1:
        return {cameras[0]: OBS_IMAGE}
    return {camera: f"{OBS_IMAGES}.{camera}" for camera in cameras}
