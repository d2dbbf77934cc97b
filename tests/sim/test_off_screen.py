"""Without a display, and without being told, LeRobot's commands draw the fast Meta-World."""

from __future__ import annotations

import os
import sys

import pytest

from lerobot_deepfusion.sim.metaworld_fast import MetaworldFastEnv
from lerobot_deepfusion.sim.off_screen import draw_off_screen


@pytest.mark.parametrize(
    ("platform", "environment", "found"),
    [
        ("linux", {}, "egl"),
        ("linux", {"DISPLAY": ":0"}, None),
        ("linux", {"WAYLAND_DISPLAY": "wayland-0"}, None),
        ("linux", {"MUJOCO_GL": "osmesa"}, "osmesa"),
        ("darwin", {}, None),  # knows no EGL, and MuJoCo refuses it there
        ("win32", {}, None),
    ],
)
def test_how_it_is_drawn(
    platform: str, environment: dict[str, str], found: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    for name in ("MUJOCO_GL", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    draw_off_screen()
    assert os.environ.get("MUJOCO_GL") == found


@pytest.mark.parametrize("way", ["make", "create_envs"])
def test_environments_see_to_it(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before they import the simulator."""
    for name in ("MUJOCO_GL", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    config = MetaworldFastEnv()
    config.make("push-v3") if way == "make" else config.create_envs(1)
    assert os.environ["MUJOCO_GL"] == "egl"
