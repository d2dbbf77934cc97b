"""Deep-fusion vision-language-action policy for LeRobot.

A LLaVA perceives and an action expert beside it acts, in lockstep. The network is in
`modeling_deepfusion`, which this module does not import.
"""

from .configuration_deepfusion import DeepFusionConfig

__all__ = ["DeepFusionConfig"]
