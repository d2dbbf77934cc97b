"""Deep-fusion vision-language-action policy for LeRobot.

A LLaVA perceives and an action expert beside it acts, in lockstep. Importing this package imports nothing else, so
that `deepfusion --help` answers at once. Config and processor steps are registered when one of its names is taken, or
when LeRobot imports `lerobot_policy_deepfusion`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .configuration_deepfusion import DeepFusionConfig
    from .processor_deepfusion import make_deepfusion_pre_post_processors

__all__ = ["DeepFusionConfig", "make_deepfusion_pre_post_processors"]

# Where `python -m lerobot_deepfusion.<name of a command in 0.1>` still finds it; gone with 0.3.
__path__.append(str(Path(__file__).with_name("renamed")))


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .configuration_deepfusion import DeepFusionConfig
    from .processor_deepfusion import make_deepfusion_pre_post_processors  # registers the steps that checkpoints name

    globals().update(
        DeepFusionConfig=DeepFusionConfig, make_deepfusion_pre_post_processors=make_deepfusion_pre_post_processors
    )
    return globals()[name]
