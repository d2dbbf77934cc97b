"""Honest, hostile and damaged messages of LeRobot's client; and a watch over what runs while one is read."""

from __future__ import annotations

import functools
import os
import pickle
import pickletools
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st
from lerobot.async_inference.helpers import RemotePolicyConfig, TimedObservation

JOINTS = ["shoulder.pos", "elbow.pos", "gripper.pos"]
CAMERA = "front"
SIZE = (6, 8, 3)


def features(**changes: Any) -> dict[str, Any]:
    """What LeRobot's client says of a robot of three joints and a camera."""
    names = ["height", "width", "channels"]
    picture = {"dtype": "image", "shape": SIZE, "names": names, "info": {"is_depth_map": False}}
    state = {"dtype": "float32", "shape": (len(JOINTS),), "names": JOINTS}
    return {"observation.state": state, f"observation.images.{CAMERA}": picture, **changes}


def instructions(**changes: Any) -> RemotePolicyConfig:
    values = {"policy_type": "deepfusion", "pretrained_name_or_path": "you/policy", "actions_per_chunk": 5}
    return RemotePolicyConfig(**{"lerobot_features": features(), **values, **changes})


def seen(**changes: Any) -> dict[str, Any]:
    picture = np.arange(np.prod(SIZE), dtype=np.uint8).reshape(SIZE)
    return {**dict.fromkeys(JOINTS, 0.5), CAMERA: picture, "task": "push the puck", **changes}


def observation(timestamp: Any = 1.7e9, timestep: Any = 3, must_go: Any = True, **changes: Any) -> TimedObservation:
    return TimedObservation(timestamp, timestep, seen(**changes), must_go)


def honest() -> list[bytes]:
    """As LeRobot's client pickles them, on Python 3.12 and 3.14, with what robots send besides."""
    more = {"imu.rpy.yaw": np.float32(0.5), "wireless_remote": bytes(40), "battery": None, "ids": [1, 2]}
    strided = np.zeros((*SIZE[:2], 6), np.uint8)[..., ::2]
    messages = [
        instructions(),
        instructions(rename_map={"observation.images.top": "observation.images.front"}, device="cuda:0"),
        observation(),
        observation(**more, elbow=np.float64(2)),
        observation(**{CAMERA: np.asfortranarray(np.ones(SIZE, np.float32))}),
        observation(**{CAMERA: strided, "shoulder.pos": np.array(1.5), "task": ""}),
    ]
    return [pickle.dumps(message, protocol) for message in messages for protocol in (4, 5)]


class Calls:
    """Pickles as a call of `function`, here or wherever it is unpickled."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None) -> None:
        self.reduced = (function, arguments, state) if state is not None else (function, arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.reduced


def exploits(command: str) -> dict[str, Any]:
    """Objects whose unpickling runs a shell command or leads to one, by the name that gives them away."""
    import copyreg
    import importlib
    import operator

    import torch
    from lerobot.transport.utils import bytes_to_python_object

    shell = pickle.dumps(Calls(os.system, command))
    code = f"__import__('os').system({command!r})"
    return {
        "posix.system": Calls(os.system, command),
        "builtins.eval": Calls(eval, code),
        "builtins.exec": Calls(exec, code),
        "builtins.getattr": Calls(getattr, "text", "upper"),
        "subprocess.Popen": Calls(subprocess.Popen, command, -1, None, None, None, None, None, True, True),
        "functools.partial": functools.partial(os.system, command),
        "operator.attrgetter": operator.attrgetter("system"),
        "operator.methodcaller": operator.methodcaller("system", command),
        "importlib.import_module": Calls(importlib.import_module, "antigravity"),
        "copyreg._reconstructor": Calls(copyreg._reconstructor, Calls, object, None),
        "_pickle.loads": Calls(pickle.loads, shell),
        "torch.storage._load_from_bytes": Calls(torch.storage._load_from_bytes, shell),
        "torch._utils._rebuild_tensor_v2": torch.zeros(3),
        "lerobot.transport.utils.bytes_to_python_object": Calls(bytes_to_python_object, shell),
        "builtins.bytearray": Calls(bytearray, 2**40),
        "builtins.set": Calls(set, [1]),
        "pathlib": sys.modules["pathlib"].Path("/etc/passwd"),
        "builtins.complex": 1j,
        "datetime.datetime": __import__("datetime").datetime(2026, 1, 1),
    }


# --- what runs --------------------------------------------------------------------------------------------

_watching: list[str] | None = None


def _hook(event: str, _arguments: Any) -> None:
    if _watching is not None and event != "builtins.id":
        _watching.append(event)


sys.addaudithook(_hook)


@contextmanager
def watched() -> Iterator[list[str]]:
    """Python's audit events meanwhile: imports, files, processes, compiled code, `pickle.find_class` and the like."""
    global _watching
    _watching = events = []
    try:
        yield events
    finally:
        _watching = None


# --- damage -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Material:
    """What damaged messages are made of: honest messages, hostile ones, and their instructions as bytes."""

    honest: list[bytes]
    hostile: list[bytes]

    def instructions(self) -> list[bytes]:
        """Every instruction that occurs, and every one there is with arguments that lie."""
        found = {piece for message in (*self.honest, *self.hostile) for piece in pieces(message)}
        lies = [b"", b"\0", b"\xff" * 4, b"\0\0\0\x7f", b"\xff" * 8, b"\0" * 7 + b"\x40", b"posix\nsystem\n", b"0\n"]
        made = {opcode.code.encode("latin1") + lie for opcode in pickletools.opcodes for lie in lies}
        return sorted(found | made)


def pieces(message: bytes) -> list[bytes]:
    """A pickle cut into its instructions."""
    starts = [position for _, _, position in pickletools.genops(message)]
    return [message[start:end] for start, end in zip(starts, [*starts[1:], len(message)], strict=True)]


NUMBERS = [True, 0, -1, 2**31, 2**63, 2**2000, 1.5, float("nan"), float("inf"), 1e300, np.float64("nan"), np.int8(3)]
ARRAYS = [
    np.zeros((0, 3)),
    np.zeros(SIZE, np.float32),
    np.full(SIZE, np.nan, np.float16),
    np.zeros((*SIZE[:2], 4), np.uint8),
    np.zeros(SIZE[::-1], np.uint8),
    np.array(np.nan),
    np.array(["text"]),
    np.array([None]),
    np.array(["2026-01-01"], "M8[D]"),
    np.zeros(2, [("a", "f4")]),
    np.ma.zeros(3),
    np.zeros(SIZE, ">f4"),
    np.zeros(3, complex),
]
TEXTS = ["", "x" * 300, "\ud800", "\0", "observation.state", CAMERA]
ODD = st.sampled_from(
    [None, *NUMBERS, *ARRAYS, *TEXTS, b"", bytearray(3), [], {}, (), [[[]]], {"a": {}}, {1: 2}, {3}]
)


@st.composite
def odd(draw: st.DrawFn) -> bytes:
    """A whole message with a field that is something else, dropped or added."""
    message = draw(st.sampled_from([instructions, observation]))()
    inner = message.observation if isinstance(message, TimedObservation) else message.lerobot_features
    places: list[dict[str, Any]] = [vars(message), inner, *(value for value in inner.values() if type(value) is dict)]
    for _ in range(draw(st.integers(1, 2))):
        place = draw(st.sampled_from(places))
        key = draw(st.sampled_from([*place, "another"]))
        place[key] = draw(ODD)
        if draw(st.integers(0, 5)) == 0:
            del place[key]
    return pickle.dumps(message, draw(st.sampled_from([4, 5])))


@st.composite
def damaged(draw: st.DrawFn, material: Material, instructions: list[bytes]) -> bytes:
    """A message with one to four kinds of damage, or a whole one that says something odd."""
    if draw(st.integers(0, 3)) == 0:
        return draw(odd())
    message = draw(st.sampled_from(material.honest))
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(
            st.sampled_from(["flip", "cut", "splice", "bytes", "drop", "insert", "replace", "swap", "smuggle"])
        )
        at = draw(st.integers(0, len(message)))
        if kind == "flip" and message:
            at = min(at, len(message) - 1)
            message = message[:at] + bytes([message[at] ^ draw(st.integers(1, 255))]) + message[at + 1 :]
        elif kind == "cut":
            message = message[:at]
        elif kind == "splice":
            other = draw(st.sampled_from(material.honest + material.hostile))
            message = message[:at] + other[draw(st.integers(0, len(other))) :]
        elif kind == "bytes":
            message = message[:at] + draw(st.binary(max_size=12)) + message[at:]
        else:
            message = draw(rearranged(message, material, instructions, kind))
    return message


@st.composite
def rearranged(draw: st.DrawFn, message: bytes, material: Material, instructions: list[bytes], kind: str) -> bytes:
    """Damage that keeps whole instructions, and so gets further into a reader."""
    try:
        parts = pieces(message)
    except ValueError:  # damaged before
        return message
    at = draw(st.integers(0, len(parts) - 1))
    if kind == "drop":
        del parts[at : at + draw(st.integers(1, 3))]
    elif kind == "insert":
        parts[at:at] = draw(st.lists(st.sampled_from(instructions), min_size=1, max_size=3))
    elif kind == "replace":
        parts[at] = draw(st.sampled_from(instructions))
    elif kind == "swap":
        other = draw(st.integers(0, len(parts) - 1))
        parts[at], parts[other] = parts[other], parts[at]
    else:  # a whole hostile object in place of a value, without its first and last instructions
        parts[at : at + draw(st.integers(0, 2))] = pieces(draw(st.sampled_from(material.hostile)))[2:-1]
    return b"".join(parts)
