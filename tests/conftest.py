"""What every test runs under, and fixtures that several share."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MUJOCO_GL", "egl")
# One thread for each process, its children too: as many of them as cores run at a time.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("LP_NUM_THREADS", "1")  # of the software renderer

import pytest
import torch

from tests import commands  # before anyone forks
from tests.llavas import MAKES

torch.set_num_threads(1)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Of pytest-xdist, before a worker starts. Quick tests (`-m "not slow"`) hardly fork and do not wait."""
    if not node.config.option.markexpr:
        node.workerinput["forks"] = commands.offer_forks()


def pytest_configure(config: pytest.Config) -> None:
    if forks := getattr(config, "workerinput", {}).get("forks"):
        commands.take_forks(forks)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first: what is left for the end is short, so that no worker waits for another."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True)
def ordinary_priority() -> Iterator[None]:
    """Root's SVT-AV1 encoder leaves its process at real-time priority, before which other tests' processes starve."""
    yield
    if sys.platform == "linux":
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


@pytest.fixture(params=MAKES)
def make(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=("kv", "hidden", "late"))
def fusion(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as it should be; not to be changed."""
    folder = tmp_path_factory.mktemp("saved")
    from tests.policies import make

    policy, _, pipelines = make()
    for part in (policy, *pipelines.values()):
        part.save_pretrained(folder)
    return folder
