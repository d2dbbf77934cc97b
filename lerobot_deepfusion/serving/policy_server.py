"""LeRobot's asynchronous policy server, with this policy among those that it serves.

    deepfusion serve --port=8080

LeRobot's own entry point takes policies from a fixed list and, unlike its other commands, looks for no plugins.
Options are `lerobot.async_inference.configs.PolicyServerConfig`. LeRobot writes a log to `logs/` in the working
directory.
"""

from __future__ import annotations

from typing import Any

from lerobot.utils.constants import OBS_IMAGES, OBS_STATE

from ..configuration_deepfusion import DeepFusionConfig
from ..inputs.batch_checks import check_camera
from ..inputs.cameras import EMPTY_CAMERA


def server_class() -> type[Any]:
    """LeRobot's server, which serves this policy and turns away a robot that it doesn't fit.

    LeRobot would find out in `GetActions`, which only logs errors and answers nothing: the robot waits for ever.
    """
    # Here, since LeRobot may import this module to look for policies, and the server needs gRPC.
    from lerobot.async_inference import constants, policy_server

    if "deepfusion" not in constants.SUPPORTED_POLICIES:
        constants.SUPPORTED_POLICIES.append("deepfusion")

    class DeepFusionPolicyServer(policy_server.PolicyServer):
        def SendPolicyInstructions(self, request: Any, context: Any) -> Any:
            """Load the policy; its errors and those of `check_robot` fail the call with their text."""
            reply = super().SendPolicyInstructions(request, context)
            if self.policy is not None and isinstance(self.policy.config, DeepFusionConfig):
                check_robot(self.lerobot_features, self.policy.config)
            return reply

    return DeepFusionPolicyServer


def check_robot(features: dict[str, dict[str, Any]], config: DeepFusionConfig) -> None:
    """What the robot sends must be what the policy sees. (LeRobot's client doesn't say what actions it takes.)

    Args:
        features: observations of the robot, as a LeRobotDataset describes them.
        config: of the policy.

    Raises:
        ValueError: with what is sent, what is expected and the mend.
    """
    sent = sorted(key for key in features if key.startswith(OBS_IMAGES))
    needed = sorted(key for key in config.cameras if EMPTY_CAMERA not in key)
    if set(sent) - set(config.cameras) or set(needed) - set(sent):
        raise ValueError(
            f"the robot sends the cameras {sent} and the policy expects {needed}; name the robot's cameras in the "
            f"client's --robot.cameras as the policy does, without '{OBS_IMAGES}.'"
        )
    for key in needed:  # LeRobot's server stretches pictures to the policy's size before the policy sees them
        height, width, channels = features[key]["shape"]
        if height and width:  # a robot may leave it to the camera
            check_camera(key, (1, channels, height, width), config.image_features[key])
    joints, size = features.get(OBS_STATE, {}).get("names", []), config.robot_state_feature.shape[0]
    if len(joints) != size:
        raise ValueError(
            f"the robot sends a state of {len(joints)} values {joints} and the policy expects {size}; serve a policy "
            "that was trained on this robot"
        )


def serve() -> None:
    """Serve until stopped, with the options of the command line."""
    from lerobot.async_inference import policy_server

    policy_server.PolicyServer = server_class()  # what LeRobot's `serve` starts
    policy_server.serve()
