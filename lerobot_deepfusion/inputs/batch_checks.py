"""What stops a batch, with the key, what was found, what was expected and the mend.

Values are looked at in the pre-processor, which knows where in the data set a sample is. (If they are on a GPU by
then, looking waits for it, as LeRobot does once a step in any case.) Shapes are looked at in the policy, which knows
what it was built for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lerobot.configs import PolicyFeature
from lerobot.utils.constants import ACTION, OBS_IMAGE, OBS_STATE
from torch import Tensor

from .cameras import EMPTY_CAMERA
from .depth_checks import check_depth_shape, check_depth_unit
from .depth_keys import depth_key
from .images import other_proportions

ROUNDING = 1e-3  # by which a resized or augmented picture may leave [0, 1]


# --- values, in the pre-processor -------------------------------------------------------------------------


def check_values(
    observation: Mapping[str, Any],
    action: Any,
    about: Mapping[str, Any],
    cameras: Sequence[str] | None = None,
    depth: Sequence[str] = (),
) -> None:
    """Numbers that would poison weights or reach the motors.

    Args:
        observation: pictures [B, 3, height, width], depth and state [B, P] by key; other entries are let through.
        action: [B, ...], or nothing.
        about: what the sample says of itself: `episode_index` and `index`, where it comes from a data set.
        cameras: keys that the policy sees; if they are not known, what is named and shaped like a picture.
        depth: keys of the depth that it sees.

    Raises:
        ValueError: for a number that is not finite, a picture that is no float in [0, 1] or depth of another unit.
    """
    for key, value in observation.items():
        if not isinstance(value, Tensor):
            continue
        looks_like_one = key.startswith(OBS_IMAGE) and value.ndim == 4 and value.shape[1] == 3
        if looks_like_one if cameras is None else key in cameras and value.ndim == 4:
            check_pictures({key: value}, about)
        elif key == OBS_STATE:
            _check_finite(key, value, about)
    for key in depth:
        check_depth_unit(key, observation.get(key))
    if isinstance(action, Tensor):
        _check_finite(ACTION, action, about)


def check_pictures(pictures: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """
    Raises:
        ValueError: for one that is no float in [0, 1].
    """
    for key, picture in pictures.items():
        if not picture.is_floating_point():
            raise ValueError(f"{key} is of {picture.dtype}; expected floats in [0, 1]: divide bytes by 255")
    filled = {key: picture for key, picture in pictures.items() if picture.numel()}
    if not filled:
        return
    # On a GPU each look at a number waits for all work before it; so one for all cameras.
    ranges = torch.stack([torch.stack(torch.aminmax(picture)).float() for picture in filled.values()]).tolist()
    for (key, picture), (low, high) in zip(filled.items(), ranges, strict=True):
        if not (low >= -ROUNDING and high <= 1 + ROUNDING):
            _check_finite(key, picture, about)
            raise ValueError(
                f"{key} has values from {low:.4g} to {high:.4g}; expected [0, 1]. Divide bytes by 255, leave "
                "policy.normalization_mapping VISUAL at IDENTITY (the policy normalises pictures as its VLM wants "
                "them), or look at --dataset.image_transforms"
            )


def _check_finite(key: str, value: Tensor, about: Mapping[str, Any]) -> None:
    finite = torch.isfinite(value)
    if finite.all():
        return
    known = {name: about[name].flatten() for name in ("episode_index", "index") if name in about}
    size = len(next(iter(known.values()))) if known else len(value)
    broken = ~finite
    # A state of one dimension comes as [B], which LeRobot takes for one row.
    broken = broken.view(size, -1) if value.numel() == size else broken
    rows = broken.flatten(1).any(1).nonzero()[:, 0].tolist()
    places = [f"{name} {_places(name, known[name], rows, key, broken)}" for name in known]
    where = f"at {' and '.join(places)} of the data set" if places else f"in row {rows} of the batch"
    raise ValueError(
        f"{key} has {int((~finite).sum())} values that are NaN or infinite, {where}; expected finite numbers. Repair "
        "or drop these frames (lerobot-edit-dataset), or the sensor that they come from"
    )


def _places(name: str, known: Tensor, rows: list[int], key: str, broken: Tensor) -> list[int]:
    """Episodes or frames of some rows; of a chunk of actions the frame of its first broken one."""
    found = known[rows].tolist()
    if name != "index" or key != ACTION or broken.ndim < 2:
        return found
    later = broken[rows].flatten(2).any(2) if broken.ndim == 3 else broken[rows]
    return [place + int(offset) for place, offset in zip(found, later.int().argmax(1).tolist(), strict=True)]


# --- shapes, in the policy --------------------------------------------------------------------------------


def check_observation(config: Any, batch: Mapping[str, Tensor]) -> None:
    """Pictures and state of a pre-processed batch against the features that the policy was built for.

    A picture may have another resolution, since it is resized, but not other proportions: the bars around it
    would move everything in it. That a camera is missing is for `stack_cameras` to say.

    Raises:
        ValueError: if a shape is wrong or the state is missing.
    """
    for key in config.cameras:
        if key in batch and not isinstance(batch[key], Tensor):
            raise ValueError(f"{key} is a {type(batch[key]).__name__}; expected a tensor [batch, 3, height, width]")
        if key in batch and EMPTY_CAMERA not in key:
            check_camera(key, tuple(batch[key].shape), config.image_features[key])
    for camera in config.depth_cameras:
        if isinstance(batch.get(depth_key(camera)), Tensor):
            check_depth_shape(camera, batch)
    feature = config.robot_state_feature
    if OBS_STATE not in batch:
        raise ValueError(
            f"{OBS_STATE} is not in the batch, which has {sorted(k for k in batch if k.startswith('observation'))}; "
            "rename with --rename_map"
        )
    if not isinstance(batch[OBS_STATE], Tensor):
        raise ValueError(f"{OBS_STATE} is a {type(batch[OBS_STATE]).__name__}; expected a tensor [batch, dimensions]")
    check_vector(OBS_STATE, batch[OBS_STATE], feature)
    if batch[OBS_STATE].ndim != 2:
        raise ValueError(
            f"{OBS_STATE} has the shape {tuple(batch[OBS_STATE].shape)}; expected [batch, {feature.shape[0]}]: the "
            "pre-processor gives a single observation its batch axis"
        )


def check_camera(key: str, shape: tuple[int, ...], feature: PolicyFeature, channels: int = 3) -> None:
    """
    Raises:
        ValueError: if a picture's shape is not [B, channels, height, width] in the proportions of the feature.
    """
    if len(shape) != 4 or shape[1] != channels:
        raise ValueError(f"{key} has the shape {shape}; expected [batch, {channels}, height, width], channels first")
    height, width = feature.shape[-2:]
    if other_proportions(shape[2], shape[3], height, width):
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
    found = value.shape[-1] if value.ndim else 0
    if found != feature.shape[0]:
        raise ValueError(
            f"{key} has {found} dimensions; expected {feature.shape[0]}. Take the robot or data set that "
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
