"""MuJoCo's depth buffer to metres, and what is needed to make points of it: intrinsics and pose of a camera.

Pictures are rendered `factor` times larger than they are shown. Depth is not averaged, which would put points between
a thing and what is behind it: each pixel has that of the first of its small ones, and the principal point moves by as
much as that one lies off the pixel's centre.
"""

from __future__ import annotations

import mujoco
import numpy as np

# Depth is a whole number of these, metres, 0.03 mm: so it is exact in float32 in metres, in which it is recorded, and
# turning LeRobot's millimetres back into metres gives the same ones. The buffer's own error is a tenth of it.
QUANTUM = 2.0**-15
FURTHEST = 128.0  # metres, up to which all that holds


def metric_depth(buffer: np.ndarray, model: mujoco.MjModel, factor: int) -> np.ndarray:
    """Distance along the camera's axis (and not along the ray), to the nearest `QUANTUM`.

    Args:
        buffer: float32 (factor * H, factor * W), 0 at the near and 1 at the far plane.
        model: says where those planes are.
        factor: how many times larger than shown the buffer was rendered.

    Returns:
        float32 (H, W), metres. Where nothing is there is what is behind everything, or the far plane.
    """
    near = model.vis.map.znear * model.stat.extent
    far = model.vis.map.zfar * model.stat.extent
    taken = buffer[::factor, ::factor].astype(np.float64)
    depth = np.minimum(near / (1 - taken * (1 - near / far)), FURTHEST)
    return (np.round(depth / QUANTUM) * QUANTUM).astype(np.float32)


def millimetres(depth: np.ndarray) -> np.ndarray:
    """Metres (H, W) to millimetres (1, H, W), as LeRobot gives recorded depth; float32."""
    return depth[None] * np.float32(1000)


def metres(depth: np.ndarray) -> np.ndarray:
    """Millimetres (1, H, W) back to the metres (H, W, 1) that they were made of, to the bit; float32."""
    whole = np.round(depth[0].astype(np.float64) / 1000 / QUANTUM)
    return (whole * QUANTUM).astype(np.float32)[..., None]


def intrinsics(fovy: float, width: int, height: int, factor: int) -> np.ndarray:
    """fx/W, fy/H, cx/W, cy/H: float32 [4], of a picture of `width` x `height` whose pixel i lies at (i + 0.5) / W.

    Args:
        fovy: vertical field of view, degrees.
        width: of the picture as shown, pixels.
        height: of the picture as shown, pixels.
        factor: how many times larger it was rendered. The first of a pixel's small ones lies above and to the left of
            its centre, which is the same as a principal point below and to the right.
    """
    focal = 0.5 / np.tan(np.radians(fovy) / 2)  # of the height
    off = (1 - 1 / factor) / 2  # pixels
    return np.array([focal * height / width, focal, 0.5 + off / width, 0.5 + off / height], np.float32)


def extrinsics(position: np.ndarray, axes: np.ndarray, upside_down: bool) -> np.ndarray:
    """Row-major [R, t]: float32 [12], which takes the camera's points (x right, y down, z forward) to the world's.

    Args:
        position: [3], metres.
        axes: [3, 3], whose columns are MuJoCo's: right, up and back.
        upside_down: whether the picture is shown turned by 180 degrees, so that right is left and up is down.
    """
    turned = -1 if upside_down else 1
    rotation = axes @ np.diag([turned, -turned, -1])
    return np.concatenate([rotation, position[:, None]], axis=1).reshape(12).astype(np.float32)
