"""A policy that was never trained, for four actions, as both judges' robots take."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.small_data import columns, config, load, picture, prepare, save, vector, write


def untrained(folder: Path, **cameras: dict) -> Path:
    """The checkpoint of one that sees these cameras, by names in which `__` stands for a dot."""
    seen = {"observation__image": None, **cameras}
    features = columns(observation__state=vector(4), action=vector(4), **seen)
    return save(folder / "policy", *prepare(load(write(folder / "data", features)), config(tokenizer_max_length=64)))


@pytest.fixture(scope="session")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untrained(tmp_path_factory.mktemp("judged"), observation__image=picture(96, 96))
