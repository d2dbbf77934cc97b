"""This policy with a LeRobot that is not installed: the checkout that `LEROBOT_SRC` names.

    LEROBOT_SRC=<checkout> python -m pytest tests/next_lerobot

Of 0.6.1, whose tests do not come with its wheel, LeRobot's own tests are run; of later ones what they changed, too.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch
from lerobot.configs import FeatureType, PolicyFeature

from lerobot_deepfusion.modeling_deepfusion import DeepFusionPolicy
from lerobot_deepfusion.processor_deepfusion import make_deepfusion_pre_post_processors
from tests.commands import ROOT, finish, write_noise
from tests.next_lerobot.adapted import adapt
from tests.policies import make_config

CHECKOUT = Path(os.environ.get("LEROBOT_SRC", "/nowhere"))
LATER = (CHECKOUT / "src/lerobot/distributed").is_dir()
# Of ours those that meet LeRobot's commands, factories and files.
OURS = (
    "test_plugin.py",
    "test_policy.py",
    "test_processor.py",
    "contract",
    "storage/test_hub.py",
    "training/test_training.py",
)
PATIENCE = 3600  # seconds
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(PATIENCE),
    pytest.mark.skipif("LEROBOT_SRC" not in os.environ, reason="LEROBOT_SRC names no checkout of LeRobot"),
]


def under_it(*arguments: object, folder: Path = ROOT) -> str:
    paths = os.pathsep.join(map(str, (folder, CHECKOUT / "src", ROOT)))
    command = (
        "env",
        "-C",
        folder,
        f"PYTHONPATH={paths}",
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
    )
    return finish(*command, *arguments, patience=PATIENCE)


def test_ours() -> None:
    under_it(*(ROOT / "tests" / name for name in OURS))


@pytest.mark.skipif(not LATER, reason="the checkout is 0.6.1 or older")
def test_what_is_new() -> None:
    under_it(ROOT / "tests/next_lerobot/after_0_6_1.py")


def test_theirs(tmp_path: Path) -> None:
    write_base(tmp_path / "base", ("image",), (96, 96), 4, 3)
    # As the data set that LeRobot's test makes, whose episodes have three frames.
    write_base(tmp_path / "three_cameras", tuple(f"images.camera{i}" for i in (1, 2, 3)), (8, 8), 6, 6, chunk_size=3)
    write_noise(tmp_path / "noise", ("image",), 4, 3)
    names = {"base": "base", "three_cameras": "three_cameras", "data": "noise"}
    for command in adapt(CHECKOUT, tmp_path, **{name: tmp_path / folder for name, folder in names.items()}):
        print(under_it(*command, folder=tmp_path))


def write_base(
    folder: Path, cameras: tuple[str, ...], size: tuple[int, int], state: int, action: int, **changes
) -> None:
    """A policy that was not trained."""
    config = make_config(cameras)
    for name, value in changes.items():
        setattr(config, name, value)
    for camera in config.cameras:
        config.input_features[camera] = PolicyFeature(type=FeatureType.VISUAL, shape=(3, *size))
    config.max_state_dim, config.max_action_dim = state, action
    config.robot_state_feature.shape, config.action_feature.shape = (state,), (action,)
    DeepFusionPolicy(config).save_pretrained(folder)
    stats = {
        key: {"mean": torch.zeros(size), "std": torch.ones(size)}
        for key, size in (("observation.state", state), ("action", action))
    }
    for pipeline in make_deepfusion_pre_post_processors(config, stats):
        pipeline.save_pretrained(folder)
