"""The wheel in an empty environment of another Python, outside the clone: installed, it trains, saves and loads."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.commands import ROOT, finish, write_noise

PYTHON = "3.13"  # the other one that the classifiers name
LOAD = """
import sys
from pathlib import Path
import lerobot_deepfusion
assert Path(lerobot_deepfusion.__file__).is_relative_to(sys.prefix), lerobot_deepfusion.__file__

from lerobot_deepfusion.modeling_deepfusion import DeepFusionPolicy
policy = DeepFusionPolicy.from_pretrained("train/checkpoints/last/pretrained_model")
print("parameters", sum(parameter.numel() for parameter in policy.parameters()))

# The newest versions that the simulator's extra allows.
import lerobot_policy_deepfusion
from lerobot_deepfusion.sim.metaworld_fast import MetaworldFastEnv
environment = MetaworldFastEnv(observation_size=32).create_envs(1)["push-v3"][0]
print("picture", environment.reset(seed=[0])[0]["pixels"].shape)
"""


def other_python() -> str | None:
    """Where uv finds it, or pyenv has it and doesn't show it."""
    for command, inside in (
        ((sys.executable, "-m", "uv", "python", "find"), "."),
        (("pyenv", "prefix"), "bin/python"),
    ):
        if shutil.which(command[0]):
            found = subprocess.run([*command, PYTHON], capture_output=True, text=True)
            if found.returncode == 0:
                return str(Path(found.stdout.strip()) / inside)
    return None


@pytest.mark.slow
@pytest.mark.timeout(1200)  # where nothing is cached it downloads torch
def test_wheel_in_an_empty_environment(tmp_path: Path) -> None:
    python = other_python()
    if python is None:
        pytest.skip(f"no Python {PYTHON} on this machine")
    uv, scripts = (sys.executable, "-m", "uv"), tmp_path / "venv/bin"
    finish(*uv, "build", "--quiet", "--wheel", f"--out-dir={tmp_path}", ROOT)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as files:
        (metadata,) = (name for name in files.namelist() if name.endswith(".dist-info/METADATA"))
        page = files.read(metadata).decode()
    assert "docs/design.md" in page
    assert re.findall(r"\]\((?!https:)[^)]*\)", page) == []  # beside a package index's page lies nothing
    finish(*uv, "venv", "--quiet", f"--python={python}", tmp_path / "venv")
    finish(*uv, "pip", "install", "--quiet", f"--python={scripts}/python", f"{wheel}[metaworld]")
    finish(*uv, "pip", "check", f"--python={scripts}/python")

    def there(*command: object) -> str:
        return finish("env", "-C", tmp_path, "-u", "PYTHONPATH", *command)

    data = write_noise(tmp_path / "data", ("image",), 2, 2)
    config = there(scripts / "deepfusion", "config", "tiny").strip()
    assert Path(config).is_relative_to(tmp_path / "venv")
    short = [
        "--num_workers=0",
        "--policy.chunk_size=8",
        "--policy.n_action_steps=4",
        "--steps=2",
        "--batch_size=2",
        "--policy.device=cpu",
    ]
    there(scripts / "lerobot-train", f"--config_path={config}", *data, "--output_dir=train", *short)
    said = there(scripts / "python", "-c", LOAD)
    assert re.search(r"parameters 2\d{6}\b", said)
    assert "picture (1, 32, 32, 3)" in said
