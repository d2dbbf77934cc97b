"""LeRobot's factory of processors, which looks at a checkpoint's files before it loads them.

It loads whatever a file names (see `processor_files`), and lerobot-eval has it take the files of a repository's main
branch, whichever revision the policy was loaded from. For a config of this policy, the files are looked at first and
are those of the policy's own commit; for all others nothing changes.
"""

from __future__ import annotations

import functools
from typing import Any

from lerobot.configs import PreTrainedConfig
from lerobot.policies import factory

from ..configuration_deepfusion import DeepFusionConfig
from .checkpoint_place import commit_of, pinned
from .processor_files import PROCESSOR_FILES, check_processor_files
from .replaced import replace_everywhere


def check_before_loading() -> None:
    """Put the checking factory in the place of LeRobot's, wherever that has been imported to."""
    replace_everywhere(factory, "make_pre_post_processors", _checked)


def _checked(original: Any) -> Any:
    @functools.wraps(original)
    def checked(
        policy_cfg: PreTrainedConfig,
        pretrained_path: str | None = None,
        pretrained_revision: str | None = None,
        **kwargs: Any,
    ) -> Any:
        if pretrained_path and isinstance(policy_cfg, DeepFusionConfig):
            revision = commit_of(policy_cfg, pretrained_path, pretrained_revision)
            hub = pinned(pretrained_path, {"revision": revision})
            options = ("preprocessor_config_filename", "postprocessor_config_filename")
            names = [kwargs.get(option) or name for option, name in zip(options, PROCESSOR_FILES, strict=True)]
            check_processor_files(pretrained_path, names, **hub)
            pretrained_revision = hub["revision"]
        return original(policy_cfg, pretrained_path, pretrained_revision, **kwargs)

    return checked
