"""The joints of a robot in `lerobot-rollout`, compared with those of the policy before anything moves.

LeRobot 0.6.1 gives a policy the state in the robot's own order, and its synchronous engine takes the actions in that
order too; if the names are others it warns, and goes on. The policy itself is told no names. LeRobot's function that
makes an engine is: it is given policy and names, and so this stands before it.
"""

from __future__ import annotations

import functools
import sys
from typing import Any

from lerobot.utils.constants import ACTION, OBS_STATE

from .dataset_facts import dimension_names
from .identity import check_robot_names

CONTEXT = "lerobot.rollout.context"  # which has asked for the policy, if this is a rollout


def watch_rollouts() -> None:
    """Have LeRobot's rollout, where it is in use, compare names for policies of this type."""
    context: Any = sys.modules.get(CONTEXT)
    original = getattr(context, "create_inference_engine", None)
    if original is None or hasattr(original, "__wrapped__"):
        return

    @functools.wraps(original)
    def checked(*args: Any, policy: Any, dataset_features: dict[str, Any], **kwargs: Any) -> Any:
        config = policy.config
        if config.type == "deepfusion":
            state, actions = (dimension_names(dataset_features.get(key)) for key in (OBS_STATE, ACTION))
            check_robot_names(state, actions, config.state_feature_names, config.action_feature_names)
        return original(*args, policy=policy, dataset_features=dataset_features, **kwargs)

    context.create_inference_engine = checked
