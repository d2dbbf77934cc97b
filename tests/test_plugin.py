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
import torch
from checkpoints import write_llava
from lerobot.policies.factory import make_pre_post_processors
from test_policy import STATS, make_config

from lerobot_deepfusion import DeepFusionConfig
from lerobot_deepfusion.modeling_deepfusion import DeepFusionPolicy
from lerobot_deepfusion.processor_deepfusion import make_deepfusion_pre_post_processors

# Runs a console script of the environment with every connection to another machine refused, and writes the
# actions that the policy chooses to a file.
OFFLINE = """
import runpy, socket, sys
from lerobot_deepfusion.modeling_deepfusion import DeepFusionPolicy
def refuse(*args, **kwargs):
    raise AssertionError(f"a connection was tried: {args}")
socket.socket.connect = socket.getaddrinfo = refuse
record, sys.argv = open(sys.argv[1], "wb"), sys.argv[2:]
select_action = DeepFusionPolicy.select_action
def recorded(self, batch):
    action = select_action(self, batch)
    record.write(action.numpy().tobytes())
    return action
DeepFusionPolicy.select_action = recorded
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run(*command: str, offline: Path | None = None, hub: bool = False, fails: bool = False) -> str:
    """Run one of LeRobot's commands; `offline` is where the actions go, `hub` says that one is running."""
    script = Path(sys.executable).with_name(command[0])
    prefix = [sys.executable, "-c", OFFLINE, str(offline)] if offline else [sys.executable]
    environment = {**os.environ, "HF_HUB_OFFLINE": "0" if offline or hub else "1", "OMP_WAIT_POLICY": "passive"}
    result = subprocess.run(
        [*prefix, str(script), *command[1:]], capture_output=True, text=True, env=environment, timeout=280
    )
    assert (result.returncode != 0) == fails, result.stdout[-3000:] + result.stderr[-3000:]
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
    subprocess.run([sys.executable, "-c", code], check=True, timeout=280)


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
    faces = {f"{part}_deepfusion.py" for part in ("configuration", "modeling", "processor")}
    # Which the network does not need.
    outside = "adapters checkpoint_files checks demos describe hub info optim policy_server recover"
    faces |= {f"{name}.py" for name in outside.split()}
    assert {path for path in with_lerobot if not path.startswith("sim/")} == faces


@pytest.mark.slow
def test_help_explains_every_field() -> None:
    text = run("lerobot-train", "--policy.type=deepfusion", "--help")
    base = {field.name for field in dataclasses.fields(DeepFusionConfig.__mro__[1])}
    own = [field.name for field in dataclasses.fields(DeepFusionConfig) if field.name not in base]
    assert [name for name in own if f"--policy.{name}" not in text] == []
    assert "keys and values" in text
    assert "Actions executed before the policy looks again" in " ".join(text.split())


def write_noise(root: Path, cameras: tuple[str, ...], state: int, action: int) -> list[str]:
    """A data set of noise; returns the options that name it to LeRobot."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    features = {
        f"observation.{name}": {"dtype": "image", "shape": (96, 96, 3), "names": ["height", "width", "channels"]}
        for name in cameras
    }
    features["observation.state"] = {"dtype": "float32", "shape": (state,), "names": list("abcdefg"[:state])}
    features["action"] = {"dtype": "float32", "shape": (action,), "names": list("abcdefg"[:action])}
    data = LeRobotDataset.create("local/noise", fps=10, features=features, root=root, use_videos=False)
    rng = np.random.default_rng(0)
    for _ in range(2):
        for _ in range(12):
            frame = {f"observation.{name}": rng.integers(0, 255, (96, 96, 3), dtype=np.uint8) for name in cameras}
            frame["observation.state"] = rng.uniform(0, 512, state).astype(np.float32)
            frame["action"] = rng.uniform(0, 512, action).astype(np.float32)
            data.add_frame({**frame, "task": ""})
        data.save_episode()
    data.finalize()
    return ["--dataset.repo_id=local/noise", f"--dataset.root={root}"]


TINY_YAML = Path(__file__).parents[1] / "configs/policy/tiny.yaml"
SHORT = ["--num_workers=0", "--log_freq=1", "--save_freq=2", "--batch_size=4"]


@pytest.mark.slow
def test_checkpoint_stands_alone_in_the_commands(tmp_path: Path) -> None:
    """lerobot-train from a LLaVA on disk; with that gone, resume and lerobot-eval, without any connection.

    The actions of the evaluation are the same to the bit as before.
    """
    pytest.importorskip("gym_pusht")
    llava, out = write_llava(tmp_path / "llava", "clip_llama"), tmp_path / "train"
    dataset = write_noise(tmp_path / "data", ("image",), 2, 2)
    vlm = [f"--policy.vlm_path={llava}", "--policy.tokenizer_max_length=64"]
    train = [f"--config_path={TINY_YAML}", *dataset, *vlm, *SHORT, "--steps=2", f"--output_dir={out}"]
    log = run("lerobot-train", *train)
    assert str(llava) in log
    saved = out / "checkpoints/last/pretrained_model"
    evaluation = ["--env.type=pusht", "--env.episode_length=8", "--eval.n_episodes=1", "--eval.batch_size=1"]
    evaluation += ["--policy.device=cpu", "--seed=5"]
    before, after = tmp_path / "before", tmp_path / "after"
    run("lerobot-eval", f"--policy.path={saved}", *evaluation, f"--output_dir={tmp_path}/eval1", offline=before)
    shutil.rmtree(llava)
    run("lerobot-train", f"--config_path={saved}/train_config.json", "--resume=true", "--steps=4")
    moved = tmp_path / "elsewhere"
    shutil.copytree(out / "checkpoints/000002/pretrained_model", moved)
    shutil.rmtree(out)
    run("lerobot-eval", f"--policy.path={moved}", *evaluation, f"--output_dir={tmp_path}/eval2", offline=after)
    assert (tmp_path / "eval2/eval_info.json").exists()
    assert len(before.read_bytes()) == 8 * 2 * 4
    assert before.read_bytes() == after.read_bytes()


@pytest.mark.slow
def test_fine_tune_on_another_robot(tmp_path: Path) -> None:
    """Other state and action sizes and other cameras than the checkpoint's; another architecture is refused."""
    torch.manual_seed(0)
    config = make_config(cameras=("images.top",))
    base = tmp_path / "base"
    for part in (DeepFusionPolicy(config), *make_deepfusion_pre_post_processors(config, STATS)):
        part.save_pretrained(base)
    dataset = write_noise(tmp_path / "data", ("images.front", "images.wrist"), 6, 5)
    common = [*dataset, *SHORT, "--steps=1", "--policy.push_to_hub=false"]
    fresh = ["--policy.type=deepfusion", f"--policy.pretrained_path={base}", "--policy.device=cpu"]
    log = run("lerobot-train", *fresh, *common, f"--output_dir={tmp_path}/no", fails=True)
    assert "max_state_dim=32 (checkpoint: 6)" in log
    out = tmp_path / "tuned"
    log = run("lerobot-train", f"--policy.path={base}", *common, f"--output_dir={out}/a", fails=True)
    assert "rename_map" in log
    tuned = [f"--policy.path={base}", "--policy.input_features=null"]
    run("lerobot-train", *tuned, *common, f"--output_dir={out}/b")
    saved = out / "b/checkpoints/last/pretrained_model"
    policy = DeepFusionPolicy.from_pretrained(saved)
    assert policy.config.cameras == ["observation.images.front", "observation.images.wrist"]
    assert policy.config.robot_state_feature.shape == (6,)
    pre, post = make_pre_post_processors(policy.config, pretrained_path=str(saved))
    observation = {key: torch.rand(1, 3, 96, 96) for key in policy.config.cameras}
    observation |= {"observation.state": torch.rand(1, 6), "task": ["push"]}
    assert post(policy.select_action(pre(observation))).shape == (1, 5)
