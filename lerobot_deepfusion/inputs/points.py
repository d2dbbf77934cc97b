"""Depth pictures to points in space that lie under a picture's pixels, on the device: free functions.

Axis letters: B batch, C cameras.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .calibration import calibration_of
from .depth_keys import depth_key
from .images import letterbox_geometry

MILLIMETRES = 1000.0


def back_project(depth: Tensor, intrinsics: Tensor, near: float, far: float) -> Tensor:
    """Each pixel's point, in the camera's frame.

    Args:
        depth: distance along the camera's axis [B, 1, height, width], metres.
        intrinsics: [B, 4], shares of the picture; pixel centres are at (i + 0.5) / width.
        near, far: metres; what is outside, or no number, is no point.

    Returns:
        [B, 4, height, width]: x, y, z in metres and 1, or four zeros.
    """
    height, width = depth.shape[-2:]
    valid = torch.isfinite(depth) & (depth >= near) & (depth <= far)
    z = torch.where(valid, depth, 0.0)
    fx, fy, cx, cy = intrinsics[:, :, None, None].split(1, dim=1)
    right = (torch.arange(width, device=depth.device) + 0.5) / width
    down = ((torch.arange(height, device=depth.device) + 0.5) / height)[:, None]
    return torch.cat([(right - cx) / fx * z, (down - cy) / fy * z, z, valid.to(z.dtype)], dim=1)


def to_base(points: Tensor, pose: Tensor) -> Tensor:
    """Points of a camera's frame in the robot's; the mean of some moves as they do, so that this may come last.

    Args:
        points: [B, 4, height, width], sums of points and their share.
        pose: [B, 12], see `inputs.calibration`.
    """
    places, share = points.split((3, 1), dim=1)
    turn, place = pose.view(-1, 3, 4).split((3, 1), dim=2)
    return torch.cat([torch.einsum("bij,bjhw->bihw", turn, places) + place[..., None] * share, share], dim=1)


def points_of(config: Any, batch: Mapping[str, Any], camera: str) -> tuple[Tensor, Tensor | None]:
    """A camera's points [B, 4, height, width] in the frame of `config.position_3d`, and its pose [B, 12] if that is
    the robot's.
    """
    # Integers of 16 bits, as robots send them, can neither be compared nor resized.
    metres = batch[depth_key(camera)].float() / MILLIMETRES
    intrinsics, pose = calibration_of(config, batch, camera, len(metres), metres.device)
    points = back_project(metres, intrinsics, *config.depth_range)
    return points if pose is None else to_base(points, pose), pose


def letterbox_points(points: Tensor, size: int) -> Tensor:
    """What `letterbox` does to a picture: sums over the pixels that become one, and no points in the bars.

    Args:
        points: [B, 4, height, width] as `back_project` makes them.
        size: side of the square, pixels.

    Returns:
        [B, 4, size, size]: means over all pixels, those without a point as zeros; the last is the share that has one.
    """
    if tuple(points.shape[-2:]) == (size, size):
        return points
    new, bars = letterbox_geometry(points.shape[-2], points.shape[-1], size)
    return F.pad(F.interpolate(points, new, mode="area"), bars)


def stack_points(config: Any, batch: Mapping[str, Any], size: int) -> Tensor | None:
    """Points under the pictures of all cameras in their slots: [B, C, 4, size, size], zeros for a camera without
    depth; none for a policy that sees flat.

    Raises:
        ValueError: if depth, intrinsics or pose of a camera are missing.
    """
    if config.position_3d == "none":
        return None
    slots: list[Tensor | None] = []
    for camera in config.cameras:
        if camera not in config.depth_cameras or camera not in batch:
            slots.append(None)
            continue
        depth = batch.get(depth_key(camera))
        if not isinstance(depth, Tensor):
            raise ValueError(
                f"{depth_key(camera)} is not in the batch, and the policy was built to see it. Its camera must give "
                "depth (use_depth), or train without: --policy.position_3d=none"
            )
        points = letterbox_points(points_of(config, batch, camera)[0], size)
        # A sample that lacks the camera has no such points in its cloud.
        present = batch.get(f"{camera}_padding_mask")
        slots.append(points if present is None else points * present.to(points).view(-1, 1, 1, 1))
    first = next(points for points in slots if points is not None)
    return torch.stack([torch.zeros_like(first) if points is None else points for points in slots], dim=1)
