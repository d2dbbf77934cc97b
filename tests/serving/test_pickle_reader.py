"""What the server reads of a client's message: all that LeRobot's client sends, and nothing that could run."""

from __future__ import annotations

import os
import pickle
import pickletools
import re
import struct
import time
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from lerobot.configs import FeatureType, PolicyFeature

from lerobot_deepfusion.serving import pickle_reader
from lerobot_deepfusion.serving.messages import read_instructions, read_observation
from lerobot_deepfusion.serving.pickled_arrays import NUMPY_NAMES, read_array, read_number
from lerobot_deepfusion.serving.refusal import Refused
from tests.serving import pickle_attacks
from tests.serving.pickle_attacks import (
    CAMERA,
    JOINTS,
    SIZE,
    Calls,
    features,
    instructions,
    observation,
    seen,
    watched,
)

ROBOT = read_instructions(pickle.dumps(instructions())).features
PROTOCOLS = pytest.mark.parametrize("protocol", [4, 5])


def read(message: Any, protocol: int = 4) -> Any:
    data = message if isinstance(message, bytes) else pickle.dumps(message, protocol)
    reads_instructions = not isinstance(message, bytes) and type(message).__name__ == "RemotePolicyConfig"
    return read_instructions(data) if reads_instructions else read_observation(data, ROBOT)


# --- what is sent is read ---------------------------------------------------------------------------------


@PROTOCOLS
def test_instructions_are_read(protocol: int) -> None:
    renames = {"observation.images.top": "observation.images.front"}
    got = read(instructions(device="cuda:1", rename_map=renames), protocol)
    assert (got.policy_type, got.policy, got.actions_per_chunk) == ("deepfusion", "you/policy", 5)
    assert (got.device, got.rename_map) == ("cuda:1", renames)
    wanted = features()
    del wanted[f"observation.images.{CAMERA}"]["info"]
    assert got.features == wanted


@PROTOCOLS
def test_an_observation_is_read_to_the_bit(protocol: int) -> None:
    """Also Fortran's order, the other byte order, strides, numpy's numbers, and what a robot sends unannounced."""
    picture = np.random.default_rng(0).integers(0, 255, SIZE, dtype=np.uint8)
    for frame in (picture, np.asfortranarray(picture), (picture / np.float32(255)).astype(">f4"), picture[::-1]):
        sent = {CAMERA: frame, "elbow.pos": np.float32(0.1), "gripper.pos": 3, "imu": [1, {"a": np.zeros(2)}]}
        got = read(observation(**sent), protocol)
        assert (got.timestamp, got.timestep, got.must_go) == (1.7e9, 3, True)
        assert got.values[CAMERA].tobytes() == frame.astype(frame.dtype.newbyteorder("=")).tobytes()
        assert got.values[CAMERA].flags.writeable
        state = {"shoulder.pos": 0.5, "elbow.pos": float(np.float32(0.1)), "gripper.pos": 3.0}
        assert {key: value for key, value in got.values.items() if key != CAMERA} == {
            **state,
            "task": "push the puck",
        }


@pytest.mark.medium
@PROTOCOLS
@given(
    st.sampled_from(["b1", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8"]),
    st.lists(st.integers(0, 3), max_size=4),
    st.booleans(),
    st.sampled_from("<>"),
)
@settings(max_examples=60, deadline=None, database=None, derandomize=True)
def test_every_array_of_numbers_is_what_pickle_makes_of_it(
    protocol: int, kind: str, shape: list[int], fortran: bool, order: str
) -> None:
    numbers = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(np.dtype(kind).newbyteorder(order))
    array = np.asfortranarray(numbers) if fortran else numbers
    if array.size:
        read_back = read_array(pickle_reader.read_pickle(pickle.dumps(array, protocol), NUMPY_NAMES), "it")
        assert np.array_equal(read_back, array)
        assert read_back.dtype == array.dtype.newbyteorder("=")
        one = array.flat[0]
        assert read_number(pickle_reader.read_pickle(pickle.dumps(one, protocol), NUMPY_NAMES), "it") == one


# --- what is named is refused by name ---------------------------------------------------------------------


@pytest.mark.parametrize("name", pickle_attacks.exploits("true"))
def test_a_name_that_runs_something_is_refused(name: str, tmp_path: Path) -> None:
    """Wherever it stands in a message: the whole, a value, a state, an argument, beside honest ones."""
    marker = tmp_path / "ran"
    exploit = pickle_attacks.exploits(f"touch {marker}")[name]
    observed = [
        exploit,
        [exploit],
        observation(arm=exploit),
        observation(**{CAMERA: exploit}),
        observation(timestep=exploit),
        observation(arm=Calls(np._core.multiarray._reconstruct, np.ndarray, (0,), exploit)),
        observation(arm=frame((1,), exploit, b"1")),
        observation(arm=Calls(np.dtype, exploit)),
    ]
    instructed = [instructions(rename_map={"a": exploit}), instructions(lerobot_features=features(more=exploit))]
    for message in observed + instructed:
        for protocol in (4, 5):
            data = pickle.dumps(message, protocol)
            with watched() as events, pytest.raises(Refused, match=f"names '{re.escape(name)}") as refusal:
                read_instructions(data) if message in instructed else read_observation(data, ROBOT)
            assert events == []
            assert refusal.value.status == "INVALID_ARGUMENT"
            for other in (read_instructions, lambda data: read_observation(data, ROBOT)):
                with pytest.raises(Refused):
                    other(data)
    assert not marker.exists()


def test_the_watch_sees_what_pickle_runs(tmp_path: Path) -> None:
    """The control of the test above: the same message read by pickle."""
    marker = tmp_path / "ran"
    data = pickle.dumps(observation(arm=pickle_attacks.exploits(f"touch {marker}")["posix.system"]))
    with watched() as events:
        pickle.loads(data)
    assert marker.exists()
    assert {"pickle.find_class", "os.system"} <= set(events)


def test_no_attribute_is_reached_through_a_name() -> None:
    for module, name in [
        ("numpy", "ndarray.__class__"),
        ("numpy.ndarray", "tofile"),
        ("numpy", "load"),
        ("os", "system"),
    ]:
        data = assemble(text(module), text(name), b"\x93")
        with pytest.raises(Refused, match=f"names '{module}.{name}'"):
            read(data)


# --- instructions and sizes -------------------------------------------------------------------------------


def assemble(*parts: bytes) -> bytes:
    return b"\x80\x04" + b"".join(parts) + b"."


def text(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode()


def test_the_reader_knows_what_the_client_uses_and_no_more() -> None:
    """An instruction that is added here is one more that a stranger can use."""
    known = {
        *pickle_reader.NUMBERS,
        *pickle_reader.TEXTS,
        *pickle_reader.BYTES,
        *pickle_reader.CONSTANTS,
        *pickle_reader.EMPTY,
        *pickle_reader.TUPLES,
        *pickle_reader.STEPS,
        *("BINGET", "LONG_BINGET", "PROTO", "FRAME", "STOP"),
    }
    used = {instruction.name for data in pickle_attacks.honest() for instruction, *_ in pickletools.genops(data)}
    # Larger numbers, longer texts, more values, and lists and memos that the messages above are too small for.
    assert known - used == {"BININT2", "LONG1", "BINUNICODE", "APPEND", "LONG_BINGET"}
    assert used <= known
    for instruction in pickletools.opcodes:
        if instruction.name not in known:
            argument = b"" if instruction.arg is None else bytes(8) + b"'a'\n'b'\n"
            data = assemble(b"(" * 2, b"]" * 3, instruction.code.encode("latin1"), argument)
            with pytest.raises(Refused, match=f"instruction {instruction.name},|no whole pickle|takes more values"):
                read(data)


GIANT = struct.pack("<Q", 2**62)
ARRAY = pickle.dumps(np.zeros(4, np.uint8), 5)


def dtype(code: str, order: str = "|", *more: Any) -> Any:
    return Calls(np.dtype, code, False, True, state=(3, order, None, None, None, -1, -1, 0, *more))


def frame(shape: Any, kind: Any, data: Any) -> Any:
    return Calls(np._core.multiarray._reconstruct, np.ndarray, (0,), b"b", state=(1, shape, kind, False, data))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no whole pickle"),
        (assemble(b"\x96" + GIANT), "expected 4611686018427387904 bytes in a bytearray8"),
        (assemble(b"\x8d" + GIANT), "expected 4611686018427387904 bytes"),
        (assemble(b"B" + b"\xff" * 4), "expected 4294967295 bytes"),
        (assemble(b"\x8b\xff\xff\xff\x7f"), "no whole pickle|LONG4"),
        (assemble(b"N", b"r" + b"\xff\xff\xff\x7f"), "LONG_BINPUT"),
        (assemble(b"h\x00"), "refers to a value"),
        (assemble(b"j" + b"\xff" * 4), "refers to a value"),
        (assemble(b"]" * 20_001), "more than 20000 pickle instructions"),
        (assemble(b"]" * 18, b"a" * 17), "nested more than 16"),
        (assemble(b"]\x94h\x00a"), "expected TimedObservation"),  # a list that holds itself
        (
            assemble(b"]\x94" + b"".join(b"]\x94h" + bytes([i]) + b"ah" + bytes([i]) + b"a" for i in range(40))),
            "leaves",
        ),
        (assemble(b"a"), "takes more values"),
        (assemble(b"]((a"), "takes more values"),
        (assemble(b"e"), "did not begin"),
        (assemble(b"NN"), "leaves 2 values"),
        (assemble(b"N") + b"cos\nsystem\n.", "ends after 4 of 16 bytes"),
        (b"\x80\x02N.", "protocol 4 or 5"),
        (b"cos\nsystem\n(S'true'\ntR.", "protocol 4 or 5"),
        (assemble(b"}K\x01K\x02s"), "keys are not all texts"),
        (assemble(b"}}b"), "set the state of a dict"),
        (assemble(b"KaK\x03R"), "would call 97 with 3"),
        (assemble(text("posix"), b"N", b"\x93"), "no text"),
        (assemble(b"X" + struct.pack("<I", 100_001) + b"a" * 100_001), "a text of 100001 characters"),
        (pickle.dumps(observation())[:-1], "exhausted before seeing STOP"),
    ],
)
def test_malformed_pickles_are_refused(data: bytes, message: str) -> None:
    """And none of them costs memory beyond its own size."""
    tracemalloc.start()
    with pytest.raises(Refused, match=message):
        read(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5_000_000


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (frame((2**40, 2**40, 3), dtype("u1"), b"1" * 144), "do not fill the shape"),
        (frame((2**62, 0, 3), dtype("u1"), b""), "do not fill the shape"),
        (frame((6, 8, -3), dtype("u1"), b"1" * 144), "do not fill the shape"),
        (frame([6, 8, 3], dtype("u1"), b"1" * 144), "do not fill the shape"),
        (frame((6.0, 8, 3), dtype("u1"), b"1" * 144), "do not fill the shape"),
        (frame((True,) * 40, dtype("u1"), b"1"), "do not fill the shape"),
        (frame((1, 1, *SIZE), dtype("u1"), b"1" * 144), "do not fill the shape"),  # more axes than any picture has
        (frame(SIZE, dtype("f4"), b"1" * 144), "do not fill the shape"),
        (frame(SIZE, dtype("O8"), b"1" * 1152), "type 'O8'"),
        (frame(SIZE, dtype("O8"), [None] * 144), "is what numpy._core.multiarray._reconstruct makes"),
        (frame(SIZE, dtype("u1", "|", {"meta": 1}), b"1" * 144), "no plain number's"),
        (frame(SIZE, dtype("V4"), b"1" * 576), "type 'V4'"),
        (frame(SIZE, dtype("i4,(1000000)f8"), b""), "type 'i4,"),
        (frame(SIZE, "u1", b"1" * 144), "no plain number's"),
        (Calls(np._core.numeric._frombuffer, bytes(144), np.dtype("u1"), (2**62,), "C"), "do not fill"),
        (Calls(np._core.multiarray.scalar, np.dtype("f8"), b"1" * 8), "expected a picture"),
        (np.zeros((*SIZE[:2], 1), np.uint8), r"shape \(6, 8, 1\); expected .* \(6, 8, 3\)"),
        (np.zeros((8, 6, 3), np.uint8), r"shape \(8, 6, 3\)"),
        (np.zeros(144, np.uint8), r"shape \(144,\)"),
        (np.zeros(SIZE, np.int64), "sends int64"),
        (np.full(SIZE, np.nan, np.float32), "NaN or infinite"),
        (np.full(SIZE, np.inf), "NaN or infinite"),
        (None, "sends None"),
        ([[1, 2]], "sends a list"),
    ],
)
def test_wrong_pictures_are_refused(picture: Any, message: str) -> None:
    with pytest.raises(Refused, match=message):
        read(observation(**{CAMERA: picture}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"elbow.pos": float("nan")}, "'elbow.pos' is nan; expected a finite number"),
        ({"elbow.pos": float("-inf")}, "'elbow.pos' is -inf"),
        ({"elbow.pos": 1e300}, r"'elbow.pos' is 1e\+300"),
        ({"elbow.pos": 10**400}, "'elbow.pos' is 1000"),
        ({"elbow.pos": np.float16("nan")}, "'elbow.pos' is nan"),
        ({"elbow.pos": np.zeros(1)}, r"array of the shape \(1,\); expected one number"),
        ({"elbow.pos": "0.5"}, "'elbow.pos' is '0.5'; expected a number"),
        ({"task": 5}, "'task' is 5; expected a text"),
        ({"task": "x" * 10_001}, "expected a text of up to 10000 characters"),
        ({"task": "\ud800"}, "no readable text"),
        ({"timestamp": float("nan")}, "timestamp is nan"),
        ({"timestamp": 1e300}, r"timestamp is 1e\+300"),
        ({"timestamp": "now"}, "expected a number"),
        ({"timestep": -1}, "'timestep' is -1; expected a whole number"),
        ({"timestep": True}, "'timestep' is True"),
        ({"timestep": 2.5}, "'timestep' is 2.5"),
        ({"timestep": 2**70}, "'timestep' is 1180591620717411303424"),
        ({"must_go": 1}, "must_go is 1"),
    ],
)
def test_wrong_values_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(Refused, match=message):
        read(observation(**changes))


def test_fields_are_those_of_lerobot_and_all_of_them() -> None:
    missing, more, joint = observation(), observation(), observation()
    del missing.timestep
    more.reward = 1
    del joint.observation["gripper.pos"]
    for message, expected in [
        (missing, r"lacks \['timestep'\]"),
        (more, "fields 'reward' that this server does not know"),
        (joint, "no 'gripper.pos', which the robot announced"),
        (instructions(), "names 'lerobot.async_inference.helpers.RemotePolicyConfig'"),
        (seen(), "the message is a dict; expected TimedObservation"),
    ]:
        with pytest.raises(Refused, match=expected):
            read(pickle.dumps(message))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"policy_type": 3}, "policy_type"),
        ({"pretrained_name_or_path": ""}, "expected a text"),
        ({"pretrained_name_or_path": "a\0b"}, "no readable text"),
        ({"pretrained_name_or_path": "x" * 5000}, "expected a text"),
        ({"actions_per_chunk": 0}, "'actions_per_chunk' is 0"),
        ({"actions_per_chunk": 10**9}, "expected a whole number from 1 to 10000"),
        ({"rename_map": {"a": 1}}, "'a name in rename_map' is 1"),
        ({"rename_map": [1]}, "rename_map is a list"),
        ({"lerobot_features": [1]}, "lerobot_features is a list"),
        ({"lerobot_features": {f"observation.images.{i}": 1 for i in range(40)}}, "at most 33 features"),
        ({"lerobot_features": {"observation.state": PolicyFeature(FeatureType.STATE, (3,))}}, "is a PolicyFeature"),
        ({"lerobot_features": features(action=features()["observation.state"])}, "'action' of 'float32' is nothing"),
        (
            {"lerobot_features": {"observation.state": {"dtype": "float32", "shape": (4,), "names": JOINTS}}},
            "3 names",
        ),
        (
            {"lerobot_features": {"observation.state": {"dtype": "float32", "shape": (2,), "names": ["a"] * 2}}},
            "twice",
        ),
        ({"lerobot_features": {"observation.images.x": {"dtype": "image", "shape": (1, 2), "names": []}}}, "nothing"),
        (
            {"lerobot_features": {"observation.images.x": {"dtype": "image", "shape": (1, 10**9, 3), "names": []}}},
            "16384",
        ),
    ],
)
def test_wrong_instructions_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(Refused, match=message):
        read(instructions(**changes))


def test_a_camera_that_does_not_know_its_size_may_send_any() -> None:
    shape = (None, None, 3)
    robot = features(**{f"observation.images.{CAMERA}": {"dtype": "image", "shape": shape, "names": []}})
    announced = read(instructions(lerobot_features=robot)).features
    data = pickle.dumps(observation(**{CAMERA: np.zeros((50, 70, 3), np.uint8)}))
    assert read_observation(data, announced).values[CAMERA].shape == (50, 70, 3)
    with pytest.raises(Refused, match=r"shape \(50, 70, 4\)"):
        read_observation(pickle.dumps(observation(**{CAMERA: np.zeros((50, 70, 4), np.uint8)})), announced)


def test_a_refusal_is_short_and_one_line() -> None:
    data = assemble(text("os"), b"X" + struct.pack("<I", 90_000) + b"\n" * 90_000, b"\x93")
    with pytest.raises(Refused) as refusal:
        read(data)
    assert len(str(refusal.value)) < 400
    assert "\n" not in str(refusal.value)
    assert len(str(Refused("INTERNAL", "\ud800" * 10_000)).encode()) < 8000


# --- fuzz -------------------------------------------------------------------------------------------------

EXAMPLES = int(os.environ.get("DEEPFUSION_FUZZ", 1000))


def read_or_refuse(reader: Any, *arguments: Any) -> bool:
    """Whether a message was read. Any error but a refusal passes through."""
    try:
        reader(*arguments)
    except Refused:
        return False
    return True


@pytest.mark.medium
def test_damaged_messages_are_read_or_refused(tmp_path: Path, record_property: Any) -> None:
    """Mutated honest and hostile messages: nothing runs, nothing crashes, nothing hangs, memory stays flat.

    `DEEPFUSION_FUZZ=50000 pytest tests/serving/test_pickle_reader.py -k damaged -s` is the long run.
    """
    marker = tmp_path / "ran"
    hostile = [pickle.dumps(exploit) for exploit in pickle_attacks.exploits(f"touch {marker}").values()]
    material = pickle_attacks.Material(pickle_attacks.honest(), hostile)
    found: Counter[str] = Counter()
    figures: dict[str, float] = {"seconds": 0, "bytes": 0}
    messages: list[bytes] = []

    @given(pickle_attacks.damaged(material, material.instructions()))
    @settings(
        max_examples=EXAMPLES,
        derandomize=EXAMPLES < 10_000,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def damage(data: bytes) -> None:
        tracemalloc.start()
        start = time.perf_counter()
        with watched() as events:
            outcomes = [read_or_refuse(read_instructions, data), read_or_refuse(read_observation, data, ROBOT)]
        figures["seconds"] = max(figures["seconds"], time.perf_counter() - start)
        figures["bytes"] = max(figures["bytes"], tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert events == []
        found["read" if True in outcomes else "refused"] += 1
        messages.append(data)

    damage()
    # Hypothesis keeps what it drew. So all of it is read three times more, and the process stays as large as after
    # the first.
    sizes = []
    for _ in range(3):
        for data in messages:
            read_or_refuse(read_instructions, data)
            read_or_refuse(read_observation, data, ROBOT)
        sizes.append(psutil.Process().memory_info().rss)
    figures["growth_kb"] = (sizes[-1] - sizes[0]) / 1024
    assert not marker.exists()
    assert figures["seconds"] < 5
    assert figures["bytes"] < 2_000_000
    assert figures["growth_kb"] < 4096
    assert found["read"] > EXAMPLES / 200  # some damage does no harm: the check is not refusing all
    record_property("fuzz", dict(found) | figures)
    print(dict(found), figures)
