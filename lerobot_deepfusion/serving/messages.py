"""The two messages of LeRobot's client: every field looked at, before LeRobot sees any of it.

`Instructions` describe the robot and name the policy; each `Observation` is taken by what they announced. What a
robot sends besides (LeRobot ignores it too) is read as a record and never built.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .pickle_reader import Call, read_pickle
from .pickled_arrays import NUMPY_NAMES, is_array, read_array, read_number
from .refusal import invalid, quoted

HELPERS = "lerobot.async_inference.helpers"
POLICY_CONFIG, TIMED_OBSERVATION = f"{HELPERS}.RemotePolicyConfig", f"{HELPERS}.TimedObservation"
# LeRobot annotates the features as `PolicyFeature` and sends dicts; one that does send them gets to read why not.
POLICY_FEATURE, FEATURE_TYPE = "lerobot.configs.types.PolicyFeature", "lerobot.configs.types.FeatureType"

STATE, PICTURES = "observation.state", "observation.images."
MAX_NAME = 200  # characters of a joint's or camera's name
MAX_PATH = 4096
MAX_TASK = 10_000
MAX_JOINTS, MAX_CAMERAS, MAX_RENAMES = 1000, 32, 100
MAX_SIDE = 16_384  # pixels
MAX_ACTIONS = 10_000  # of a chunk
MAX_STEP = 2**53  # a robot at 1 kHz gets there in 285,000 years
MAX_TIMESTAMP = 1e11  # seconds; the year 5138
FLOAT32_MAX = float(np.finfo(np.float32).max)  # LeRobot makes the state float32, where more is infinite
PICTURE_KINDS = ("uint8", "float16", "float32", "float64")
DEPTH_KINDS = ("uint16", *PICTURE_KINDS)  # of one channel; a sensor may say NaN where nothing came back


@dataclass(frozen=True)
class Instructions:
    """What a robot asks for.

    Attributes:
        policy: path or Hub id, as the client has it.
        features: what the robot will send, as a LeRobotDataset describes it: `dtype`, `shape` and `names` by key.
        actions_per_chunk: at most so many actions of a chunk are wanted.
        device: of the policy, in torch's words.
        rename_map: LeRobot's keys of the robot to those of the policy; a server takes none.
    """

    policy_type: str
    policy: str
    features: dict[str, dict[str, Any]]
    actions_per_chunk: int
    device: str
    rename_map: dict[str, str]


@dataclass(frozen=True)
class Observation:
    """What the robot saw.

    Attributes:
        timestamp: the robot's clock, seconds.
        timestep: number of the last action that it had executed.
        values: numbers by joint, pictures [height, width, channels] by camera, and the `task`'s text.
        must_go: whether the robot has no action left.
    """

    timestamp: float
    timestep: int
    values: dict[str, Any]
    must_go: bool


def read_instructions(data: bytes) -> Instructions:
    """
    Args:
        data: the pickle of LeRobot's `RemotePolicyConfig`.

    Raises:
        Refused: naming what is wrong.
    """
    fields = _fields(data, POLICY_CONFIG, {POLICY_CONFIG, POLICY_FEATURE, FEATURE_TYPE})
    known = {
        "policy_type",
        "pretrained_name_or_path",
        "lerobot_features",
        "actions_per_chunk",
        "device",
        "rename_map",
    }
    _require_fields(fields, known, known - {"device", "rename_map"})
    renames = fields.get("rename_map", {})
    if type(renames) is not dict or len(renames) > MAX_RENAMES:
        raise invalid(f"rename_map is {quoted(renames)}; expected a dict of up to {MAX_RENAMES} names")
    return Instructions(
        policy_type=_text(fields["policy_type"], "policy_type", MAX_NAME),
        policy=_text(fields["pretrained_name_or_path"], "pretrained_name_or_path", MAX_PATH),
        features=_features(fields["lerobot_features"]),
        actions_per_chunk=_whole(fields["actions_per_chunk"], "actions_per_chunk", 1, MAX_ACTIONS),
        device=_text(fields.get("device", "cpu"), "device", MAX_NAME),
        rename_map={_name(key, "rename_map"): _name(value, "rename_map") for key, value in renames.items()},
    )


def read_observation(data: bytes, features: Mapping[str, Mapping[str, Any]]) -> Observation:
    """
    Args:
        data: the pickle of LeRobot's `TimedObservation`.
        features: of the robot's `Instructions`.

    Raises:
        Refused: naming what is wrong, missing or not as announced.
    """
    fields = _fields(data, TIMED_OBSERVATION, {TIMED_OBSERVATION, *NUMPY_NAMES})
    known = {"timestamp", "timestep", "observation", "must_go"}
    _require_fields(fields, known, known - {"must_go"})
    sent = fields["observation"]
    if type(sent) is not dict:
        raise invalid(f"observation is {quoted(sent)}; expected a dict of what the robot sees")
    must_go = fields.get("must_go", False)
    if type(must_go) is not bool:
        raise invalid(f"must_go is {quoted(must_go)}; expected True or False")
    timestamp = read_number(fields["timestamp"], "timestamp")
    if not abs(timestamp) <= MAX_TIMESTAMP:  # NaN too
        raise invalid(f"timestamp is {quoted(timestamp)}; expected seconds")
    values: dict[str, Any] = {}
    for key, feature in features.items():
        if key == STATE:
            values |= {joint: _joint(_sent(sent, joint), joint) for joint in feature["names"]}
        else:
            camera = key.removeprefix(PICTURES)
            values[camera] = _picture(_sent(sent, camera), camera, feature["shape"])
    if "task" in sent:
        values["task"] = _text(sent["task"], "task", MAX_TASK, empty=True)
    timestep = _whole(fields["timestep"], "timestep", 0, MAX_STEP)
    return Observation(float(timestamp), timestep, values, must_go)


# --- the two dataclasses ----------------------------------------------------------------------------------


def _fields(data: bytes, path: str, names: Collection[str]) -> dict[str, Any]:
    message = read_pickle(data, names)
    if isinstance(message, Call) and message.path == path and not message.arguments and type(message.state) is dict:
        return message.state
    found = message.path if isinstance(message, Call) else quoted(message)
    raise invalid(f"the message is {found}; expected {path.rpartition('.')[2]} of LeRobot's client")


def _require_fields(fields: Collection[str], known: Collection[str], needed: Collection[str]) -> None:
    unknown, missing = sorted(set(fields) - set(known)), sorted(set(needed) - set(fields))
    if unknown or missing:
        raise invalid(
            f"the message has the fields {quoted(', '.join(unknown))} that this server does not know, and lacks "
            f"{missing}; it serves clients of LeRobot 0.6"
        )


# --- features ---------------------------------------------------------------------------------------------


def _features(features: Any) -> dict[str, dict[str, Any]]:
    if type(features) is not dict or len(features) > MAX_CAMERAS + 1:
        raise invalid(
            f"lerobot_features is {quoted(features)}; expected a dict of at most {MAX_CAMERAS + 1} features"
        )
    return {_name(key, "lerobot_features"): _feature(key, feature) for key, feature in features.items()}


def _feature(key: str, feature: Any) -> dict[str, Any]:
    if isinstance(feature, Call):
        raise invalid(
            f"{quoted(key)} is a PolicyFeature, which does not tell the names; send a dict of dtype, shape and names "
            "as a LeRobotDataset has it (`hw_to_dataset_features`), which LeRobot's own client does"
        )
    if type(feature) is not dict or not {"dtype", "shape", "names"} <= feature.keys():
        raise invalid(f"{quoted(key)} is {quoted(feature)}; expected a dict of dtype, shape and names")
    dtype, shape, names = feature["dtype"], feature["shape"], feature["names"]
    if type(shape) not in (tuple, list) or type(names) is not list or len(names) > MAX_JOINTS:
        raise invalid(f"{quoted(key)}: expected a tuple as shape and up to {MAX_JOINTS} names as a list")
    names = [_name(name, key) for name in names]
    if key == STATE and dtype == "float32":
        if list(shape) != [len(names)] or len(set(names)) != len(names):
            raise invalid(f"{key} has {len(names)} names, and its shape or a name that comes twice says otherwise")
        return {"dtype": "float32", "shape": (len(names),), "names": names}
    if key.startswith(PICTURES) and dtype in ("image", "video") and len(shape) == 3:
        height, width, channels = shape
        sides = [None if side is None else _whole(side, key, 0, MAX_SIDE) or None for side in (height, width)]
        return {"dtype": dtype, "shape": (*sides, _whole(channels, key, 1, 4)), "names": names}
    raise invalid(
        f"{quoted(key)} of {quoted(dtype)} is nothing that a robot sends: {STATE} of float32, or {PICTURES}<camera> "
        "of image or video with height, width and channels"
    )


# --- what is in them --------------------------------------------------------------------------------------


def _sent(sent: Mapping[str, Any], name: str) -> Any:
    if name not in sent:
        raise invalid(f"the observation has no {quoted(name)}, which the robot announced")
    return sent[name]


def _joint(value: Any, name: str) -> float:
    number = read_number(value, quoted(name))
    if not abs(number) <= FLOAT32_MAX:  # NaN too
        raise invalid(f"{quoted(name)} is {quoted(number)}; expected a finite number")
    return float(number)


def _picture(value: Any, camera: str, announced: tuple[int | None, int | None, int]) -> np.ndarray:
    """[height, width, channels] as announced; a robot that doesn't know its cameras' size announces None."""
    if not is_array(value):
        raise invalid(f"camera {quoted(camera)} sends {quoted(value)}; expected a picture as an array of numbers")
    picture = read_array(value, f"camera {quoted(camera)}")
    fits = len(picture.shape) == 3 and all(
        want == have if want is not None else 1 <= have <= MAX_SIDE
        for want, have in zip(announced, picture.shape, strict=True)
    )
    depth = announced[-1] == 1
    kinds = DEPTH_KINDS if depth else PICTURE_KINDS
    if not fits or picture.dtype.name not in kinds:
        raise invalid(
            f"camera {quoted(camera)} sends {picture.dtype.name} of the shape {picture.shape}; expected what was "
            f"announced, {announced}, of {' or '.join(kinds)}"
        )
    if not depth and picture.dtype.kind == "f" and not np.isfinite(picture).all():
        raise invalid(f"camera {quoted(camera)} sends values that are NaN or infinite")
    return picture


def _text(value: Any, what: str, longest: int, empty: bool = False) -> str:
    if type(value) is not str or len(value) > longest or not (value or empty):
        raise invalid(f"{quoted(what)} is {quoted(value)}; expected a text of up to {longest} characters")
    if "\0" in value or not _is_unicode(value):
        raise invalid(f"{quoted(what)} is {quoted(value)}, which is no readable text")
    return value


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # lone surrogates, which pickle carries and tokenizers and logs do not
        return False
    return True


def _name(value: Any, where: str) -> str:
    return _text(value, f"a name in {where[:MAX_NAME]}", MAX_NAME)


def _whole(value: Any, what: str, least: int, most: int) -> int:
    if type(value) is int and least <= value <= most:
        return value
    number = read_number(value, quoted(what)) if isinstance(value, Call) else value
    if type(number) is int and least <= number <= most:
        return number
    raise invalid(f"{quoted(what)} is {quoted(number)}; expected a whole number from {least} to {most}")
