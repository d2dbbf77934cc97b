"""The plugin inside LeRobot's own commands, each in a process of its own."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lerobot_deepfusion import DeepFusionConfig

# Runs a console script of the environment with every connection to another machine refused.
OFFLINE = """
import runpy, socket, sys
def refuse(*args, **kwargs):
    raise AssertionError(f"a connection was tried: {args}")
socket.socket.connect = socket.getaddrinfo = refuse
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run(*command: str, offline: bool = False) -> str:
    script = Path(sys.executable).with_name(command[0])
    prefix = [sys.executable, "-c", OFFLINE] if offline else [sys.executable]
    environment = {**os.environ, "HF_HUB_OFFLINE": "0" if offline else "1", "OMP_WAIT_POLICY": "passive"}
    result = subprocess.run(
        [*prefix, str(script), *command[1:]], capture_output=True, text=True, env=environment, timeout=280
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout + result.stderr


def test_distribution_is_found_by_its_raw_name() -> None:
    names = {distribution.metadata["Name"] for distribution in importlib.metadata.distributions()}
    assert "lerobot_policy_deepfusion" in names


def test_shim_registers_everything_and_no_network() -> None:
    code = (
        "import sys, lerobot_policy_deepfusion\n"
        "from lerobot.configs import PreTrainedConfig\n"
        "from lerobot.envs.configs import EnvConfig\n"
        "from lerobot.processor import ProcessorStepRegistry\n"
        "assert 'deepfusion' in PreTrainedConfig.get_known_choices()\n"
        "assert 'metaworld_fast' in EnvConfig.get_known_choices()\n"
        "assert ProcessorStepRegistry.get('deepfusion_prompt_processor')\n"
        "heavy = {'lerobot_deepfusion.modeling_deepfusion', 'lerobot_deepfusion.lockstep', 'metaworld'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_only_the_faces_import_lerobot() -> None:
    """The network files stay usable without it."""
    package = Path(__file__).parents[1] / "lerobot_deepfusion"
    with_lerobot = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if any(
            line.strip().startswith(("from lerobot.", "import lerobot.")) for line in path.read_text().splitlines()
        )
    }
    faces = {"configuration_deepfusion.py", "modeling_deepfusion.py", "processor_deepfusion.py", "demos.py"}
    assert {path for path in with_lerobot if not path.startswith("sim/")} == faces


@pytest.mark.slow
def test_help_explains_every_field() -> None:
    text = run("lerobot-train", "--policy.type=deepfusion", "--help")
    base = {field.name for field in dataclasses.fields(DeepFusionConfig.__mro__[1])}
    own = [field.name for field in dataclasses.fields(DeepFusionConfig) if field.name not in base]
    assert [name for name in own if f"--policy.{name}" not in text] == []
    assert "keys and values" in text
    assert "Actions executed before the policy looks again" in " ".join(text.split())


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of noise with the features of PushT."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    from lerobot_deepfusion.sim.experts import image_state_action_features

    root = tmp_path_factory.mktemp("data") / "noise"
    features = image_state_action_features(96, ["x", "y"], ["x", "y"])
    data = LeRobotDataset.create("local/noise", fps=10, features=features, root=root, use_videos=False)
    rng = np.random.default_rng(0)
    for _ in range(2):
        for _ in range(12):
            data.add_frame(
                {
                    "observation.image": rng.integers(0, 255, (96, 96, 3), dtype=np.uint8),
                    "observation.state": rng.uniform(0, 512, 2).astype(np.float32),
                    "action": rng.uniform(0, 512, 2).astype(np.float32),
                    "task": "",
                }
            )
        data.save_episode()
    data.finalize()
    return root


@pytest.mark.slow
def test_train_resume_and_evaluate_elsewhere(data: Path, tmp_path: Path) -> None:
    """lerobot-train, resume, then lerobot-eval without a network and with the training folder moved away."""
    pytest.importorskip("gym_pusht")
    config = Path(__file__).parents[1] / "configs/policy/tiny.yaml"
    common = ["--num_workers=0", "--log_freq=1", "--save_freq=2", "--batch_size=4"]
    out = tmp_path / "train"
    dataset = ["--dataset.repo_id=local/noise", f"--dataset.root={data}"]
    log = run("lerobot-train", f"--config_path={config}", *dataset, *common, "--steps=2", f"--output_dir={out}")
    assert "deepfusion: VLM tiny, fusion kv" in log
    saved = out / "checkpoints/last/pretrained_model/train_config.json"
    run("lerobot-train", f"--config_path={saved}", "--resume=true", "--steps=4")
    moved = tmp_path / "elsewhere"
    shutil.copytree(out / "checkpoints/000004/pretrained_model", moved)
    shutil.rmtree(out)
    evaluation = ["--env.type=pusht", "--env.episode_length=8", "--eval.n_episodes=1", "--eval.batch_size=1"]
    results = tmp_path / "eval"
    run(
        "lerobot-eval",
        f"--policy.path={moved}",
        "--policy.device=cpu",
        *evaluation,
        f"--output_dir={results}",
        offline=True,
    )
    assert (results / "eval_info.json").exists()
