"""Depth that a robot's cameras send, made such that LeRobot's asynchronous server does no harm to it.

That server resizes every picture bilinearly, which torch can't do with 16-bit integers and which invents points at
edges; what has the size of the policy's feature already is left as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lerobot.utils.constants import OBS_IMAGES

from ..inputs.depth_keys import depth_key

DEPTH = depth_key("")


def is_depth(key: str, feature: Mapping[str, Any]) -> bool:
    """Whether a robot's feature is one of depth, as LeRobot names it."""
    return key.startswith(OBS_IMAGES) and key.endswith(DEPTH) and feature["shape"][-1] == 1


def without_unseen_depth(features: Mapping[str, dict[str, Any]], config: Any) -> dict[str, dict[str, Any]]:
    """A robot's features but for depth that the policy sees nothing of."""
    seen = {depth_key(camera) for camera in config.depth_cameras}
    return {key: feature for key, feature in features.items() if key in seen or not is_depth(key, feature)}


def fit_depth(values: Mapping[str, Any], config: Any) -> dict[str, Any]:
    """Depth in float32, of the size that the policy was trained on: of each place the nearest pixel's.

    Args:
        values: of an observation; depth [height, width, 1] in millimetres by camera, and more.
        config: of the policy.
    """
    fitted = dict(values)
    for camera in config.depth_cameras:
        key = depth_key(camera)
        name, size = key.removeprefix(f"{OBS_IMAGES}."), config.image_features[key].shape[1:]
        depth = torch.from_numpy(np.nan_to_num(values[name].astype(np.float32), nan=0, posinf=0, neginf=0))
        nearest = F.interpolate(depth.permute(2, 0, 1)[None], tuple(size), mode="nearest-exact")
        fitted[name] = nearest[0].permute(1, 2, 0).numpy()
    return fitted
