"""Whether a robot is one that the policy can act on: what it announces, and what its cameras then send."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lerobot.utils.constants import OBS_IMAGES, OBS_STATE

from ..configuration_deepfusion import DeepFusionConfig
from ..inputs.batch_checks import check_camera
from ..inputs.cameras import EMPTY_CAMERA
from ..inputs.depth_keys import depth_key
from ..inputs.identity import check_robot_names


def check_robot(features: dict[str, dict[str, Any]], config: DeepFusionConfig) -> None:
    """What the robot sends must be what the policy sees, by name and in its order.

    LeRobot's client doesn't say what actions it takes. It takes them in the order of its own motors, which is that of
    its state too.

    Args:
        features: observations of the robot, as a LeRobotDataset describes them.
        config: of the policy.

    Raises:
        ValueError: with what is sent, what is expected and the mend.
    """
    sent = sorted(key for key in features if key.startswith(OBS_IMAGES))
    seen = [*config.cameras, *(depth_key(camera) for camera in config.depth_cameras)]
    needed = sorted(key for key in seen if EMPTY_CAMERA not in key)
    if set(sent) - set(seen) or set(needed) - set(sent):
        raise ValueError(
            f"the robot sends the cameras {sent} and the policy expects {needed}; name the robot's cameras in the "
            f"client's --robot.cameras as the policy does, without '{OBS_IMAGES}.'"
        )
    for key in needed:  # LeRobot's server stretches pictures to the policy's size before the policy sees them
        height, width, channels = features[key]["shape"]
        if height and width:  # a robot may leave it to the camera
            _check(key, (1, channels, height, width), config)
    joints, size = features.get(OBS_STATE, {}).get("names", []), config.robot_state_feature.shape[0]
    if len(joints) != size:
        raise ValueError(
            f"the robot sends a state of {len(joints)} values {joints} and the policy expects {size}; serve a policy "
            "that was trained on this robot"
        )
    check_robot_names(joints, None, config.state_feature_names, None)


def check_pictures(values: Mapping[str, Any], features: Mapping[str, Mapping[str, Any]], config: Any) -> None:
    """`check_robot`'s look at the proportions, for the cameras whose size was not announced.

    Args:
        values: pictures [height, width, channels] by camera, and more.
        features: observations of the robot, as a LeRobotDataset describes them.
        config: of the policy.

    Raises:
        ValueError: for a picture that LeRobot's server would stretch.
    """
    for key, feature in features.items():
        if key.startswith(OBS_IMAGES) and key in config.image_features and None in feature["shape"]:
            height, width, channels = values[key.removeprefix(f"{OBS_IMAGES}.")].shape
            _check(key, (1, channels, height, width), config)


def _check(key: str, shape: tuple[int, ...], config: Any) -> None:
    check_camera(key, shape, config.image_features[key], channels=3 if key in config.cameras else 1)
