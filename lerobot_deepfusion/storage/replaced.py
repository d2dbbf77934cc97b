"""A function of LeRobot's that another stands before, for this policy alone.

LeRobot has no place to register what happens around these for a policy from elsewhere.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any


def replace_everywhere(module: Any, name: str, around: Callable[[Any], Any]) -> None:
    """Once: `module.name` by what `around` makes of it, in every module that has imported it by now.

    Args:
        module: where it is defined.
        name: of the function.
        around: takes the original; what it returns has it as `__wrapped__`.
    """
    original = getattr(module, name)
    if hasattr(original, "__wrapped__"):
        return
    wrapped = around(original)
    for other in list(sys.modules.values()):
        if getattr(other, "__dict__", {}).get(name) is original:
            setattr(other, name, wrapped)
