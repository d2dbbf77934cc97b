"""What the recorder needs of a scripted expert: an environment, what to record of it, and who acts.

An expert yields frames for `LeRobotDataset.add_frame`, at exactly the observation that `lerobot-eval` gives
to a policy. It may see the simulator's state, which the policy never does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from lerobot.utils.constants import OBS_IMAGE

from ..inputs.depth_keys import depth_key, extrinsics_key, intrinsics_key


class Expert(Protocol):
    """What the recorder needs of a simulator."""

    fps: int
    robot_type: str
    features: dict[str, Any]

    def episode(self, seed: int) -> list[dict[str, Any]] | None:
        """The frames of one episode, or None if the expert failed it."""

    def close(self) -> None: ...


def image_state_action_features(
    size: int, state: list[str], action: list[str], cameras: Sequence[str] = (OBS_IMAGE,)
) -> dict[str, Any]:
    """Data set features of square RGB cameras, given by their keys, a state vector and an action vector."""
    picture = {"dtype": "image", "shape": (size, size, 3), "names": ["height", "width", "channels"]}
    return {
        **dict.fromkeys(cameras, picture),
        "observation.state": {"dtype": "float32", "shape": (len(state),), "names": state},
        "action": {"dtype": "float32", "shape": (len(action),), "names": action},
    }


def depth_features(size: int, calibration: Mapping[str, Mapping[str, list[float]]]) -> dict[str, Any]:
    """Data set features of the depth of square cameras.

    Args:
        size: width and height, pixels.
        calibration: by the key of each camera's picture, its `intrinsics`, and its `pose` if it stands still. That of
            one that does not is a vector in each frame.
    """
    features: dict[str, Any] = {}
    for camera, known in calibration.items():
        features[depth_key(camera)] = {
            "dtype": "image",
            "shape": (size, size, 1),
            "names": ["height", "width", "channels"],
            "info": {"is_depth_map": True, "camera": dict(known)},
        }
        if "pose" not in known:
            features[intrinsics_key(camera)] = {"dtype": "float32", "shape": (4,), "names": None}
            features[extrinsics_key(camera)] = {"dtype": "float32", "shape": (12,), "names": None}
    return features
