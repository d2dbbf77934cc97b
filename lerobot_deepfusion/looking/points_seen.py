"""Where a data set's depth says that things are: coloured points of a frame, to be looked at before training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset

from ..inputs.calibration import adopt_calibration
from ..inputs.depth_checks import check_depth_shape, check_depth_unit
from ..inputs.depth_keys import depth_key, extrinsics_key
from ..inputs.points import MILLIMETRES, points_of

LAYER = 0.01  # metres: heights in it count as one


@dataclass
class Seen:
    """One frame of one camera.

    Attributes:
        camera: batch key of its picture.
        picture: [height, width, 3] in [0, 1].
        depth: [height, width], metres; NaN where nothing counts as measured.
        places: [N, 3], metres, in the robot's base or, without a pose, in the camera's frame.
        colours: [N, 3] in [0, 1].
        pose: [3, 4], camera to base, or none.
    """

    camera: str
    picture: np.ndarray
    depth: np.ndarray
    places: np.ndarray
    colours: np.ndarray
    pose: np.ndarray | None


def cameras_with_depth(features: dict[str, Any]) -> list[str]:
    """Batch keys of colour pictures that have depth beside them.

    Raises:
        ValueError: if there is none.
    """
    cameras = [key for key in features if depth_key(key) in features]
    if not cameras:
        pictures = [key for key, feature in features.items() if feature["dtype"] in ("image", "video")]
        raise ValueError(
            f"none of the pictures {pictures} has depth; expected a feature such as "
            f"{depth_key(pictures[0] if pictures else 'observation.images.top')}. Record with use_depth"
        )
    return cameras


def see(
    root: Path, repo_id: str, episode: int, frames: Sequence[int], depth_range: tuple[float, float], calibration: Any
) -> list[list[Seen]]:
    """Cameras with depth in frames of an episode, through the policy's own reading and checks.

    Args:
        root: folder of the data set.
        repo_id: its name.
        episode: which.
        frames: of the episode; those behind its end are left out.
        depth_range: nearest and farthest metres.
        calibration: as `policy.camera_calibration`, for what the data set does not say; or none.

    Raises:
        ValueError: for a frame that is not there, or depth, intrinsics or pose that a policy would refuse.
    """
    data = LeRobotDataset(repo_id, root=root, episodes=[episode])
    if frames[0] >= len(data):
        raise ValueError(f"--frame={frames[0]}: episode {episode} has the frames 0 to {len(data) - 1}")
    features = data.meta.features
    config = SimpleNamespace(depth_cameras=cameras_with_depth(features), camera_calibration=calibration)
    config.position_3d, config.depth_range = "camera", depth_range
    config.camera_calibration = known = adopt_calibration(config, features) or {}
    if all("pose" in known.get(camera, {}) or extrinsics_key(camera) in features for camera in config.depth_cameras):
        config.position_3d = "world"
    return [
        [_seen(config, data[frame], camera) for camera in config.depth_cameras]
        for frame in frames
        if frame < len(data)
    ]


def _seen(config: Any, row: dict[str, Any], camera: str) -> Seen:
    batch = {key: value[None] for key, value in row.items() if isinstance(value, torch.Tensor)}
    check_depth_shape(camera, batch)
    check_depth_unit(depth_key(camera), batch[depth_key(camera)])
    points, pose = points_of(config, batch, camera)
    there = points[0, 3] > 0
    height, width = there.shape
    picture = batch[camera]
    under = torch.nn.functional.interpolate(picture, (height, width), mode="nearest-exact")[0]
    return Seen(
        camera,
        picture[0].permute(1, 2, 0).numpy(),
        torch.where(there, batch[depth_key(camera)][0, 0] / MILLIMETRES, torch.nan).numpy(),
        points[0, :3, there].T.numpy(),
        under[:, there].T.numpy(),
        None if pose is None else pose.view(3, 4).numpy(),
    )


def summary(seen: Sequence[Seen]) -> str:
    """What tells a wrong calibration: each camera's points in numbers, and how far those of two cameras lie apart."""
    lines = []
    for one in seen:
        share = len(one.places) / one.depth.size
        frame = "camera's own frame (no pose)" if one.pose is None else "robot's base"
        lines.append(f"{one.camera}: {share:.0%} of the pixels have a point; metres in the {frame}")
        if not len(one.places):
            continue
        low, high = np.percentile(one.places, [1, 99], axis=0)
        lines.append("  " + ", ".join(f"{a} {x:.2f} to {y:.2f}" for a, x, y in zip("xyz", low, high, strict=True)))
        if one.pose is not None:
            layers, counts = np.unique(np.round(one.places[:, 2] / LAYER).astype(int), return_counts=True)
            most = counts.argmax()
            lines.append(
                f"  {counts[most] / len(one.places):.0%} of them lie at a height of {layers[most] * LAYER:.2f} m: "
                "is that the table's?"
            )
    if len(posed := [one for one in seen if one.pose is not None and len(one.places)]) > 1:
        lines += [
            f"{other.camera}'s points lie {100 * apart(posed[0].places, other.places):.1f} cm beside "
            f"{posed[0].camera}'s, in the median of the nearer half"
            for other in posed[1:]
        ]
    return "\n".join(lines)


def apart(places: np.ndarray, others: np.ndarray, most: int = 2000) -> float:
    """Metres between clouds: from some of `others` to the nearest of `places`, the median of the half that is nearer,
    since each camera also sees what the other does not.
    """
    some = torch.from_numpy(others[:: max(1, len(others) // most)])
    nearest = torch.cat([torch.cdist(part, torch.from_numpy(places)).amin(1) for part in some.split(256)])
    return nearest.sort().values[: (len(nearest) + 1) // 2].median().item()
