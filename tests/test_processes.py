"""Several processes train what one does: DDP and FSDP, on CPUs, by LeRobot's own step and by its command."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import llava_config
from lerobot.policies.factory import make_pre_post_processors
from processes import BATCH, CASES, STEPS, STRATEGIES, build, padded_batch, train
from safetensors.torch import load_file
from test_plugin import SHORT, TINY_YAML, write_noise
from test_policy import make_config

from lerobot_deepfusion import modeling_deepfusion
from lerobot_deepfusion.lockstep import build_model, frozen_modules
from lerobot_deepfusion.modeling_deepfusion import DeepFusionPolicy
from lerobot_deepfusion.sharding import unit_classes

ROOT = Path(__file__).parents[1]
FSDP_YAML = ROOT / "configs/accelerate/fsdp.yaml"
HERE = Path(__file__).parent
