"""Discovery shim: LeRobot imports the module that has the distribution's name.

Config, processor step and environment register themselves on import; the network is imported when a policy
is made.
"""

import lerobot_deepfusion.processor_deepfusion
import lerobot_deepfusion.sim.metaworld_fast  # noqa: F401
from lerobot_deepfusion import DeepFusionConfig

__all__ = ["DeepFusionConfig"]
