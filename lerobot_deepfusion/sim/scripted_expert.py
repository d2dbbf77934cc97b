"""What the recorder needs of a scripted expert: an environment, what to record of it, and who acts.

An expert yields frames for `LeRobotDataset.add_frame`, at exactly the observation that `lerobot-eval` gives
to a policy. It may see the simulator's state, which the policy never does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from lerobot.utils.constants import OBS_IMAGE


class Expert(Protocol):
    """What the recorder needs of a simulator."""

    fps: int
    robot_type: str
    features: dict[str, Any]

    def episode(self, seed: int) -> list[dict[str, Any]] | None:
        """The frames of one episode, or None if the expert failed it."""

    def close(self) -> None: ...


def image_state_action_features(
    size: int, state: list[str], action: list[str], cameras: Sequence[str] = (OBS_IMAGE,)
) -> dict[str, Any]:
    """Data set features of square RGB cameras, given by their keys, a state vector and an action vector."""
    picture = {"dtype": "image", "shape": (size, size, 3), "names": ["height", "width", "channels"]}
    return {
        **dict.fromkeys(cameras, picture),
        "observation.state": {"dtype": "float32", "shape": (len(state),), "names": state},
        "action": {"dtype": "float32", "shape": (len(action),), "names": action},
    }
