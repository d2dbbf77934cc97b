"""How MuJoCo draws where there is no display."""

from __future__ import annotations

import os
import sys


def draw_off_screen() -> None:
    """Have MuJoCo draw through EGL on a Linux without a display, unless told otherwise. To be called before it is
    imported, which is when it decides; elsewhere it has a way of its own, and knows no EGL.
    """
    if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        os.environ.setdefault("MUJOCO_GL", "egl")
