"""The plugin inside LeRobot's own commands, each in a process of its own."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import shutil
import socket
import sys
from functools import partial
from pathlib import Path

import datasets
import pytest
import torch
from huggingface_hub import constants
from lerobot.policies.factory import make_pre_post_processors

from lerobot_deepfusion import DeepFusionConfig
from lerobot_deepfusion.modeling_deepfusion import DeepFusionPolicy
from lerobot_deepfusion.processor_deepfusion import make_deepfusion_pre_post_processors
from tests.checkpoints import write_llava
from tests.commands import SHORT, TINY_YAML, finish, run, write_noise
from tests.policies import STATS, make, make_config


def test_distribution_is_found_by_its_raw_name() -> None:
    names = {distribution.metadata["Name"] for distribution in importlib.metadata.distributions()}
    assert "lerobot_policy_deepfusion" in names


@pytest.mark.medium
def test_shim_registers_everything_and_no_network() -> None:
    code = (
        "import sys, lerobot_policy_deepfusion\n"
        "from lerobot.configs import PreTrainedConfig\n"
        "from lerobot.envs.configs import EnvConfig\n"
        "from lerobot.processor import ProcessorStepRegistry\n"
        "assert 'deepfusion' in PreTrainedConfig.get_known_choices()\n"
        "assert 'metaworld_fast' in EnvConfig.get_known_choices()\n"
        "assert ProcessorStepRegistry.get('deepfusion_prompt_processor')\n"
        "heavy = {'lerobot_deepfusion.modeling_deepfusion', 'lerobot_deepfusion.network.lockstep', 'metaworld'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    run("-c", code)


@pytest.mark.medium
def test_the_policy_alone_can_be_loaded(tmp_path: Path) -> None:
    """Its module registers the steps that a checkpoint's processors name, in a process that imports nothing else."""
    policy, _, pipelines = make()
    for part in (policy, *pipelines.values()):
        part.save_pretrained(tmp_path)
    load = f"DeepFusionPolicy.from_pretrained({str(tmp_path)!r})"
    finish(sys.executable, "-c", f"from lerobot_deepfusion.modeling_deepfusion import DeepFusionPolicy; {load}")


@pytest.mark.slow
def test_help_explains_every_field() -> None:
    text = run("lerobot-train", "--policy.type=deepfusion", "--help")
    base = {field.name for field in dataclasses.fields(DeepFusionConfig.__mro__[1])}
    own = [field.name for field in dataclasses.fields(DeepFusionConfig) if field.name not in base]
    assert [name for name in own if f"--policy.{name}" not in text] == []
    assert "keys and values" in text
    assert "Actions executed before the policy looks again" in " ".join(text.split())


def offline(actions: Path) -> None:
    """Refuse every connection to another machine, of a LeRobot that may try; write down the actions of the policy."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError(f"a connection was tried: {args}")

    constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = False
    socket.socket.connect = socket.getaddrinfo = refuse
    select_action = DeepFusionPolicy.select_action

    def recorded(self: DeepFusionPolicy, batch: dict) -> torch.Tensor:
        action = select_action(self, batch)
        with actions.open("ab") as file:
            file.write(action.numpy().tobytes())
        return action

    DeepFusionPolicy.select_action = recorded


EVERYTHING = "objective=drift num_flow_samples=2 rtc_training_max_delay=3 relative_actions=true ema_decay=0.9"


@pytest.mark.slow
@pytest.mark.parametrize("options", ["", EVERYTHING])
def test_checkpoint_stands_alone_in_the_commands(tmp_path: Path, options: str) -> None:
    """lerobot-train from a LLaVA on disk; with that gone, resume and lerobot-eval, without any connection.

    The actions of the evaluation are the same to the bit as before.
    """
    pytest.importorskip("gym_pusht")
    llava, out = write_llava(tmp_path / "llava", "clip_llama"), tmp_path / "train"
    dataset = write_noise(tmp_path / "data", ("image",), 2, 2)
    vlm = [f"--policy.vlm_path={llava}", "--policy.tokenizer_max_length=64"]
    more = [f"--policy.{option}" for option in options.split()]
    train = [f"--config_path={TINY_YAML}", *dataset, *vlm, *more, *SHORT, "--steps=2", f"--output_dir={out}"]
    log = run("lerobot-train", *train)
    assert str(llava) in log
    saved = out / "checkpoints/last/pretrained_model"
    evaluation = ["--env.type=pusht", "--env.episode_length=8", "--eval.n_episodes=1", "--eval.batch_size=1"]
    evaluation += ["--policy.device=cpu", "--seed=5"]
    before, after = tmp_path / "before", tmp_path / "after"
    evaluate = ["lerobot-eval", f"--policy.path={saved}", *evaluation, f"--output_dir={tmp_path}/eval1"]
    run(*evaluate, inside=partial(offline, before))
    shutil.rmtree(llava)
    resume = [f"--config_path={saved}/train_config.json", "--resume=true", "--steps=4"]
    run("lerobot-train", *resume, inside=partial(offline, tmp_path / "resumed"))
    moved = tmp_path / "elsewhere"
    shutil.copytree(out / "checkpoints/000002/pretrained_model", moved)
    shutil.rmtree(out)
    evaluate = ["lerobot-eval", f"--policy.path={moved}", *evaluation, f"--output_dir={tmp_path}/eval2"]
    run(*evaluate, inside=partial(offline, after))
    assert (tmp_path / "eval2/eval_info.json").exists()
    assert (moved / "averaged.safetensors").exists() == ("ema" in options)
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
    log = run("lerobot-train", *fresh, *common, f"--output_dir={tmp_path}/no", code=1)
    assert "max_state_dim=32 (checkpoint: 6)" in log
    out = tmp_path / "tuned"
    log = run("lerobot-train", f"--policy.path={base}", *common, f"--output_dir={out}/a", code=1)
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
