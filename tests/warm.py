"""What every fork of `tests.commands` would do again: LeRobot's parser reads what 1500 options say for `--help`.

Imported once, by the process that they are forks of, after LeRobot; nothing here imports this package.
"""

from __future__ import annotations

import functools

from draccus import argparsing
from draccus.wrappers import docstring
from lerobot.configs.eval import EvalPipelineConfig
from lerobot.configs.train import TrainPipelineConfig

docstring.get_attribute_docstring = functools.cache(docstring.get_attribute_docstring)
for config in (TrainPipelineConfig, EvalPipelineConfig):
    argparsing.ArgumentParser(config)
