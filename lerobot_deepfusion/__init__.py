"""Deep-fusion vision-language-action policy for LeRobot.

A LLaVA perceives and an action expert beside it acts, in lockstep. The network is in
`modeling_deepfusion`, which this module does not import.
"""

from .configuration_deepfusion import DeepFusionConfig
from .processor_deepfusion import make_deepfusion_pre_post_processors  # registers the steps that checkpoints name

__all__ = ["DeepFusionConfig", "make_deepfusion_pre_post_processors"]
