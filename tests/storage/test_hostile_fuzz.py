"""Checkpoints with damaged files, made by hypothesis: a policy loads whole, or not at all and with a clear error."""

from __future__ import annotations

import contextlib
import copy
import json
import shutil
import struct
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from lerobot_deepfusion.modeling_deepfusion import DeepFusionPolicy
from lerobot_deepfusion.storage.processor_files import PROCESSOR_FILES
from tests.storage.test_hostile import CLEAR, load, places

NUMBERS = [True, 0, -1, 1, 3, 2**16, 2**63, 1.5, float("nan"), float("inf")]
TEXTS = ["", "x", "../..", "\x00", "\ud800", "float16", "cuda:9"]
ODD = st.sampled_from([None, *NUMBERS, *TEXTS, [], [1, 2], {}, {"a": 1}, ["x"], {"x": None}, [[]]])


@st.composite
def damaged_json(draw: st.DrawFn, whole: bytes) -> bytes:
    """One to three values replaced, retyped, dropped, renamed or doubled; or the text itself damaged."""
    values = json.loads(whole)
    for _ in range(draw(st.integers(1, 3))):
        path, value = draw(st.sampled_from(list(places(values))))
        parent = values
        for key in path[:-1]:
            parent = parent[key]
        kind = draw(st.sampled_from(["replace", "replace", "retype", "drop", "rename", "move"]))
        if kind == "replace":
            parent[path[-1]] = copy.deepcopy(draw(ODD))
        elif kind == "retype":
            parent[path[-1]] = {"it": value} if draw(st.booleans()) else str(value)
        elif kind == "move":
            parent[path[-1]] = copy.deepcopy(draw(st.sampled_from(list(places(values))))[1])
        else:
            del parent[path[-1]]
            if kind == "rename" and isinstance(parent, dict):
                parent[f"{path[-1]}_"] = value
        if not list(places(values)):
            break
    return draw(damaged_text(json.dumps(values).encode()))


@st.composite
def damaged_text(draw: st.DrawFn, text: bytes) -> bytes:
    """In half of the cases as it is, else cut, not UTF-8, of another structure, too deep, or with a key twice."""
    at = draw(st.integers(0, len(text)))
    return draw(
        st.sampled_from(
            [text] * 8
            + [text[:at], text[:at] + b"\xff" + text[at:], b"", b"[]", b"null", b"3", b'"x"', b"\xef\xbb\xbf" + text]
            + [b"[" * 100_000, b'{"steps": [{}]}', text[:-1] + b', "chunk_size": 7, "steps": []}']
            + [text[:-1] + b', "n_obs_steps": ' + b"9" * 5000 + b"}"]
        )
    )


@st.composite
def damaged_weights(draw: st.DrawFn, whole: bytes) -> bytes:
    """A safetensors file with a header that lies, of a length that lies, or cut."""
    length = struct.unpack("<Q", whole[:8])[0]
    header, data = whole[8 : 8 + length], whole[8 + length :]
    kind = draw(st.sampled_from(["header", "names", "offsets", "length", "cut", "more"]))
    if kind == "header":
        header = draw(damaged_json(header))
    elif kind == "names":  # a whole file of other weights
        values = json.loads(header)
        first, second = draw(st.tuples(*[st.sampled_from(sorted(values.keys() - {"__metadata__"}))] * 2))
        values["other"] = values.pop(first)
        if first != second and draw(st.booleans()):
            values[first], values[second] = values.pop(second), values.pop("other")
        header = json.dumps(values).encode()
    elif kind == "offsets":
        values = json.loads(header)
        first, second = draw(st.tuples(*[st.sampled_from(sorted(values.keys() - {"__metadata__"}))] * 2))
        values[first]["data_offsets"] = draw(
            st.sampled_from([values[second]["data_offsets"], [0, 2**62], [-4, 0], [8, 4], [0, 0], [0]])
        )
        header = json.dumps(values).encode()
    length = len(header)
    if kind == "length":
        length = draw(st.sampled_from([0, 1, length - 1, length + 1, 100_000_001, 2**63, 2**64 - 1]))
    whole = struct.pack("<Q", length) + header + data
    if kind == "cut":
        whole = whole[: draw(st.integers(0, len(whole) - 1))]
    return whole + (b"\0" * 8 if kind == "more" else b"")


def loads_whole_or_not(folder: Path) -> DeepFusionPolicy | None:
    """Load within a time limit; a policy has exactly its file's weights, and an error is a clear one."""
    start = time.perf_counter()
    policy = problem = None
    try:
        policy = load(folder)
    except Exception as error:
        problem = error
    assert time.perf_counter() - start < 20
    assert problem is None or (type(problem) in CLEAR and len(str(problem)) > 20), repr(problem)
    if policy is not None:
        weights = load_file(folder / "model.safetensors")
        state = policy.state_dict()
        assert state.keys() == weights.keys()
        assert all(torch.equal(state[key], weights[key].float()) for key in state)
    return policy


def fuzz(examples: int) -> Any:
    return settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        phases=[
            Phase.generate
        ],  # to shrink what fails takes minutes at one load each; the first find is small enough
        deadline=None,  # `loads_whole_or_not` has a limit; this machine may be busy
        suppress_health_check=list(HealthCheck),
    )


FILES = ["config.json", *PROCESSOR_FILES]
STATES = [
    "policy_preprocessor_step_3_deepfusion_prompt_processor.safetensors",
    "policy_preprocessor_step_5_normalizer_processor.safetensors",
    "policy_postprocessor_step_0_unnormalizer_processor.safetensors",
]


@contextlib.contextmanager
def copied(saved: Path) -> Iterator[Path]:
    """A copy for one example; LeRobot leaves a temporary file for each config that it reads."""
    before = tempfile.tempdir
    with tempfile.TemporaryDirectory() as folder:
        tempfile.tempdir = folder
        try:
            yield Path(shutil.copytree(saved, Path(folder) / "checkpoint"))
        finally:
            tempfile.tempdir = before


@pytest.mark.slow
@given(st.data())
@fuzz(35)
def test_damaged_json_loads_whole_or_not_at_all(saved: Path, data: st.DataObject) -> None:
    """Mutations of `config.json` and the processor files."""
    file = data.draw(st.sampled_from(FILES))
    with copied(saved) as folder:
        (folder / file).write_bytes(data.draw(damaged_json((saved / file).read_bytes())))
        loads_whole_or_not(folder)


@pytest.mark.slow
@given(st.data())
@fuzz(40)
def test_damaged_safetensors_load_whole_or_not_at_all(saved: Path, data: st.DataObject) -> None:
    """Mutations of the weights and of the processors' state."""
    file = data.draw(st.sampled_from(["model.safetensors", "model.safetensors", *STATES]))
    with copied(saved) as folder:
        (folder / file).write_bytes(data.draw(damaged_weights((saved / file).read_bytes())))
        loads_whole_or_not(folder)


def test_an_undamaged_checkpoint_passes_the_same_check(saved: Path) -> None:
    """The fuzz tests' check accepts what is whole."""
    with copied(saved) as folder:
        assert loads_whole_or_not(folder) is not None
