"""Where cameras are and how they see: read from the data set's feature info, checked, and given to a batch.

    "observation.images.top": {"intrinsics": [fx / width, fy / height, cx / width, cy / height], "pose": [...]}

The pose has the twelve numbers of [R, t] in rows, from the camera to the robot's base; metres, x right, y down, z
forward. As shares of the picture, intrinsics stay what they are when it is resized; the middle of the first pixel is
at 0.5, where OpenCV and RealSense have 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..llava.bounds import finite
from ..network.options import FARTHEST
from ..network.positions import IN_WORLD
from .depth_keys import depth_key, extrinsics_key, intrinsics_key

SIZES = {"intrinsics": 4, "pose": 12}
RIGID = 1e-3  # by which R times its transpose may differ from one
SAME = 1e-6  # up to which two calibrations are one


def recorded_calibration(features: Mapping[str, Any], cameras: Sequence[str]) -> dict[str, dict[str, list[float]]]:
    """What a data set says of its cameras: `info.camera` of their depth, or else of their picture.

    Args:
        features: of the data set.
        cameras: batch keys of pictures.
    """
    found = {}
    for camera in cameras:
        for key in (depth_key(camera), camera):
            said = ((features.get(key) or {}).get("info") or {}).get("camera")
            if said:
                found[camera] = {name: list(values) for name, values in said.items() if name in SIZES}
                break
    return found


def adopt_calibration(config: Any, features: Mapping[str, Any]) -> dict[str, Any] | None:
    """The calibration to train with on a data set: its own, with what the config has besides.

    Args:
        config: of the policy.
        features: of the data set.

    Raises:
        ValueError: if both say something and differ, or neither says what the policy needs.
    """
    recorded, known = recorded_calibration(features, config.depth_cameras), config.camera_calibration or {}
    check_calibration(recorded)
    check_calibration(known)
    for camera in config.depth_cameras:
        here, there = known.get(camera, {}), recorded.get(camera, {})
        for name in here.keys() & there.keys():
            if max(abs(one - other) for one, other in zip(here[name], there[name], strict=True)) > SAME:
                raise ValueError(
                    f"policy.camera_calibration of {camera} has the {name} {here[name]} and the data set "
                    f"{there[name]}. Take the data set's with --policy.camera_calibration=null, or correct its info "
                    f"of {depth_key(camera)}"
                )
        needed = {"intrinsics": intrinsics_key(camera)}
        if config.position_3d in IN_WORLD:
            needed["pose"] = extrinsics_key(camera)
        for name, key in needed.items():
            if name not in {**here, **there} and key not in features:
                raise ValueError(_nowhere(camera, name, key))
    return {camera: {**known.get(camera, {}), **recorded.get(camera, {})} for camera in {**known, **recorded}} or None


def before_the_cameras(config: Any, stats: Mapping[str, Any] | None) -> tuple[float, float, float] | None:
    """A metre before each camera with depth, in the robot's frame and on average; None if no pose is known.

    Args:
        config: of the policy.
        stats: of the data set, for cameras whose pose is in each frame.
    """
    places = []
    for camera in config.depth_cameras if config.position_3d in IN_WORLD else ():
        recorded = ((stats or {}).get(extrinsics_key(camera)) or {}).get("mean")
        pose = recorded if recorded is not None else (config.camera_calibration or {}).get(camera, {}).get("pose")
        if pose is not None:
            rows = torch.as_tensor(pose, dtype=torch.float64).view(3, 4)
            places.append(rows[:, 2] + rows[:, 3])
    if not places:
        return None
    x, y, z = torch.stack(places).mean(0).tolist()
    return round(x, 3), round(y, 3), round(z, 3)


def _nowhere(camera: str, name: str, key: str) -> str:
    return (
        f"{camera} has depth and no {name}: there is neither {key} nor any in policy.camera_calibration. Write it "
        f"into the data set's info of {depth_key(camera)}, or give --policy.camera_calibration"
        + (", or take --policy.position_3d=camera, which needs no pose" if name == "pose" else "")
    )


def check_calibration(calibration: Any, cameras: Sequence[str] | None = None) -> None:
    """
    Args:
        calibration: of a config.
        cameras: that it may name; any if None.

    Raises:
        ValueError: naming camera, field, value and mend.
    """
    if not isinstance(calibration, Mapping):
        raise ValueError(f"policy.camera_calibration is a {type(calibration).__name__}; expected cameras by key")
    for camera, said in calibration.items():
        if cameras is not None and camera not in cameras:
            raise ValueError(
                f"policy.camera_calibration has {camera!r:.80}, which is no camera of this policy: {list(cameras)}"
            )
        where = f"policy.camera_calibration of {camera!r:.80}"
        if not isinstance(said, Mapping) or not set(said) <= set(SIZES):
            raise ValueError(f"{where}: expected `intrinsics` of 4 numbers and `pose` of 12, found {said!r:.80}")
        for name, values in said.items():
            if not finite(values, SIZES[name]):
                raise ValueError(f"{where}: {name} is {values!r:.200}; expected {SIZES[name]} finite numbers")
        if "intrinsics" in said:
            _check_intrinsics(said["intrinsics"], where)
        if "pose" in said:
            _check_pose(said["pose"], where)


def _check_intrinsics(values: Sequence[float], where: str) -> None:
    fx, fy, cx, cy = values
    if max(map(abs, values)) > 10:
        raise ValueError(
            f"{where}: intrinsics {list(values)} are in pixels; expected shares of the picture. Divide fx and cx by "
            "the width of the picture that they were measured at, fy and cy by its height"
        )
    if not (0.2 < fx < 10 and 0.2 < fy < 10 and 0 < cx < 1 and 0 < cy < 1):
        raise ValueError(
            f"{where}: intrinsics {list(values)}; expected fx / width and fy / height between 0.2 and 10, cx / width "
            "and cy / height between 0 and 1"
        )


def _check_pose(values: Sequence[float], where: str) -> None:
    rows = torch.tensor(values, dtype=torch.float64).view(3, 4)
    rotation, place = rows[:, :3], rows[:, 3]
    off = (rotation @ rotation.T - torch.eye(3, dtype=torch.float64)).abs().max()
    if off > RIGID or torch.linalg.det(rotation) < 0:
        raise ValueError(
            f"{where}: the left 3 x 3 of the pose {list(values)} is no rotation (off by {off:.2g}, determinant "
            f"{torch.linalg.det(rotation):.2g}); expected the rows of [R, t] of 4 x 4, cut after the third. A "
            "mirrored axis (left-handed) has the determinant -1; normalised poses are none"
        )
    if place.norm() > FARTHEST:
        raise ValueError(
            f"{where}: the camera stands {place.norm():.4g} m from the robot's base; expected metres, at most "
            f"{FARTHEST:g}. Divide millimetres by 1000"
        )


def calibration_of(
    config: Any, batch: Mapping[str, Any], camera: str, size: int, device: torch.device
) -> tuple[Tensor, Tensor | None]:
    """Intrinsics [B, 4] and, in the frame `world`, the pose [B, 12] of a camera: those of the frame before those of
    the config.

    Raises:
        ValueError: if one is nowhere.
    """
    said = (config.camera_calibration or {}).get(camera, {})
    found: list[Tensor] = []
    for name, key in (("intrinsics", intrinsics_key(camera)), ("pose", extrinsics_key(camera))):
        if name == "pose" and config.position_3d not in IN_WORLD:
            return found[0], None
        value = batch.get(key, said.get(name))
        if value is None:
            raise ValueError(_nowhere(camera, name, key))
        value = torch.as_tensor(value, dtype=torch.float32, device=device)
        if value.shape not in ((SIZES[name],), (1, SIZES[name]), (size, SIZES[name])):
            raise ValueError(
                f"{key} has the shape {tuple(value.shape)}; expected [{size}, {SIZES[name]}], {name} of each picture"
            )
        found.append(value.expand(size, SIZES[name]))
    return found[0], found[1]
