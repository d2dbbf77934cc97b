"""What stops a batch, with the key, what was found, what was expected and the mend.

Values are looked at in the pre-processor, which knows where in the data set a sample is. (If they are on a GPU by
then, looking waits for it, as LeRobot does once a step in any case.) Shapes are looked at in the policy, which knows
what it was built for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lerobot.configs import PolicyFeature
from lerobot.utils.constants import ACTION, OBS_IMAGE, OBS_STATE
from torch import Tensor

from .cameras import EMPTY_CAMERA

ROUNDING = 1e-3  # by which a resized or augmented picture may leave [0, 1]


# --- values, in the pre-processor -------------------------------------------------------------------------


def check_values(observation: Mapping[str, Any], action: Any, about: Mapping[str, Any]) -> None:
    """Numbers that would poison weights or reach the motors.

    Args:
        observation: pictures [B, 3, height, width] and state [B, P] by key; other entries, such as pictures of depth,
            are let through: if the policy has them among its cameras, it refuses them.
        action: [B, ...], or nothing.
        about: what the sample says of itself: `episode_index` and `index`, where it comes from a data set.

    Raises:
        ValueError: for a number that is not finite or a picture that is no float in [0, 1].
    """
    for key, value in observation.items():
        if not isinstance(value, Tensor):
            continue
        if key.startswith(OBS_IMAGE) and value.ndim == 4 and value.shape[1] == 3:
            _check_picture(key, value, about)
        elif key == OBS_STATE:
            _check_finite(key, value, about)
    if isinstance(action, Tensor):
        _check_finite(ACTION, action, about)


def _check_picture(key: str, picture: Tensor, about: Mapping[str, Any]) -> None:
    if not picture.is_floating_point():
        raise ValueError(f"{key} is of {picture.dtype}; expected floats in [0, 1]: divide bytes by 255")
    low, high = (value.item() for value in torch.aminmax(picture))
    if not (low >= -ROUNDING and high <= 1 + ROUNDING):
        _check_finite(key, picture, about)
        raise ValueError(
            f"{key} has values from {low:.4g} to {high:.4g}; expected [0, 1]. Divide bytes by 255, leave "
            "policy.normalization_mapping VISUAL at IDENTITY (the policy normalises pictures as its VLM wants them), "
            "or look at --dataset.image_transforms"
        )


def _check_finite(key: str, value: Tensor, about: Mapping[str, Any]) -> None:
    finite = torch.isfinite(value)
    if finite.all():
        return
    rows = (~finite.flatten(1).all(1)).nonzero()[:, 0].tolist()
    places = [
        f"{name} {about[name].flatten()[rows].tolist()}" for name in ("episode_index", "index") if name in about
    ]
    where = f"at {' and '.join(places)} of the data set" if places else f"in row {rows} of the batch"
    raise ValueError(
        f"{key} has {int((~finite).sum())} values that are NaN or infinite, {where}; expected finite numbers. Repair "
        "or drop these frames (lerobot-edit-dataset), or the sensor that they come from"
    )


# --- shapes, in the policy --------------------------------------------------------------------------------


def check_observation(config: Any, batch: Mapping[str, Tensor]) -> None:
    """Pictures and state of a pre-processed batch against the features that the policy was built for.

    A picture may have another resolution, since it is resized, but not other proportions: the bars around it
    would move everything in it. That a camera is missing is for `stack_cameras` to say.

    Raises:
        ValueError: if a shape is wrong or the state is missing.
    """
    for key, feature in config.image_features.items():
        if key in batch and EMPTY_CAMERA not in key:
            check_camera(key, tuple(batch[key].shape), feature)
    feature = config.robot_state_feature
    if OBS_STATE not in batch:
        raise ValueError(
            f"{OBS_STATE} is not in the batch, which has {sorted(k for k in batch if k.startswith('observation'))}; "
            "rename with --rename_map"
        )
    check_vector(OBS_STATE, batch[OBS_STATE], feature)


def check_camera(key: str, shape: tuple[int, ...], feature: PolicyFeature) -> None:
    """
    Raises:
        ValueError: if a picture's shape is not [B, 3, height, width] in the proportions of the feature.
    """
    if len(shape) != 4 or shape[1] != 3:
        raise ValueError(f"{key} has the shape {shape}; expected [batch, 3, height, width], channels first")
    height, width = feature.shape[-2:]
    # Rounded sizes of one picture at two resolutions differ by half a pixel on each side.
    if abs(shape[2] * width - shape[3] * height) > (height + width) / 2 + (shape[2] + shape[3]) / 2:
        raise ValueError(
            f"{key} is {shape[2]} x {shape[3]} pixels and the policy was trained on {height} x {width}: other "
            "proportions would move everything in the picture. Crop or pad the picture to those, or train on the new "
            "camera with --policy.input_features=null"
        )


def check_vector(key: str, value: Tensor, feature: PolicyFeature) -> None:
    """
    Raises:
        ValueError: if the last axis is not as long as the feature's.
    """
    if value.shape[-1] != feature.shape[0]:
        raise ValueError(
            f"{key} has {value.shape[-1]} dimensions; expected {feature.shape[0]}. Take the robot or data set that "
            "the policy was trained on, or train on the new one from --policy.path"
        )


def check_action(config: Any, action: Tensor) -> None:
    """
    Args:
        action: target chunk [B, T, A].

    Raises:
        ValueError: if it is no chunk of the policy's length and action size.
    """
    if action.ndim != 3 or action.shape[1] != config.chunk_size:
        raise ValueError(
            f"{ACTION} has the shape {tuple(action.shape)}; expected [batch, {config.chunk_size}, "
            f"{config.action_feature.shape[0]}]: policy.chunk_size actions for each frame (`delta_timestamps`)"
        )
    check_vector(ACTION, action, config.action_feature)


def check_chunk(chunk: Tensor) -> Tensor:
    """The chunk itself, if it may go to the motors.

    Raises:
        ValueError: if it has a number that is not finite.
    """
    if not torch.isfinite(chunk).all():
        raise ValueError(
            "the policy's chunk has values that are NaN or infinite, and none of it is executed. Its weights may be "
            "damaged or trained with too high a rate (look at the loss of its training), or dtype=float16 is in use "
            "somewhere: --policy.use_amp=false"
        )
    return chunk
