"""What LeRobot asks of a policy after 0.6.1; run with a checkout of it by `test_checkout`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from lerobot.distributed import set_fsdp_wrap_modules
from safetensors.torch import load_file
from torch import Tensor

from lerobot_deepfusion.modeling_deepfusion import DeepFusionPolicy
from tests.commands import SHORT, TINY_YAML, finish, write_noise
from tests.policies import make, make_batch

TRAIN = Path(sys.executable).with_name("lerobot-train")
LAST = "train/checkpoints/last/pretrained_model"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Of the sizes that the simulator has."""
    return write_noise(tmp_path_factory.mktemp("noise") / "data", ("image",), 4, 4)


def options(data: list[str], root: Path, *more: str) -> list[str]:
    return [f"--config_path={TINY_YAML}", *data, *SHORT, "--steps=2", f"--output_dir={root}/train", *more]


def two(*arguments: str) -> str:
    """In two processes, by FSDP2."""
    how = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return finish(*how, "-m", "tests.next_lerobot.cpu_fsdp2", *arguments, OMP_NUM_THREADS="1")


def weights(root: Path, step: str = "last") -> dict[str, Tensor]:
    return load_file(root / "train/checkpoints" / step / "pretrained_model/model.safetensors")


def test_train_average_resume_and_evaluate(data: list[str], tmp_path: Path) -> None:
    """A moving average of the weights, saved beside them as a policy, and both are loaded again."""
    finish(TRAIN, *options(data, tmp_path, "--ema.enable=true"))
    finish(TRAIN, f"--config_path={tmp_path}/{LAST}/train_config.json", "--resume=true", "--steps=4")
    live, averaged = tmp_path / LAST, tmp_path / "train/checkpoints/last/pretrained_model_ema"
    first, second = (DeepFusionPolicy.from_pretrained(folder) for folder in (live, averaged))
    assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not list(tmp_path.rglob(".partial"))
    environment = ["--env.type=metaworld_fast", "--env.task=push-v3", "--eval.n_episodes=1", "--eval.batch_size=1"]
    steps = ["--env.episode_length=4", f"--output_dir={tmp_path}/eval"]
    finish(TRAIN.with_name("lerobot-eval"), f"--policy.path={averaged}", *environment, *steps)
    assert (tmp_path / "eval/eval_info.json").is_file()


@pytest.mark.parametrize("format", ["safetensors", "safetensors_dcp", "dcp"])
def test_shards_are_saved_and_resumed(data: list[str], tmp_path: Path, format: str) -> None:
    """Two processes hold halves, all come to the saving, and what they resume is what they saved."""
    sharded = ["--parallelism.dp_shard=2", f"--checkpoint_format={format}"]
    printed = two(*options(data, tmp_path, *sharded))
    assert "Checkpoint policy after step 2" in printed
    vlm = tmp_path / LAST / "config.json"
    config = json.loads(vlm.read_text())
    if format != "safetensors":  # nothing is read of it: the shards have all weights
        vlm.write_text(json.dumps({**config, "vlm_path": "/is/not/there"}))
        train = tmp_path / LAST / "train_config.json"
        stored = json.loads(train.read_text())
        stored["policy"]["vlm_path"] = "/is/not/there"
        train.write_text(json.dumps(stored))
    two(f"--config_path={tmp_path}/{LAST}/train_config.json", "--resume=true", "--steps=4")
    if format == "dcp":
        return
    assert not list(tmp_path.rglob(".partial"))
    before, after = weights(tmp_path, "000002"), weights(tmp_path, "000004")
    assert before.keys() == after.keys()
    assert all(after[key].isfinite().all() for key in after)
    # Two more steps move weights a little; a start from other ones, or from none, would be far away.
    assert max(float((after[key] - before[key]).abs().max()) for key in after) < 0.01


def test_units_of_shards_are_layers() -> None:
    """LeRobot asks the class of the policy which modules are gathered as one."""
    policy, _, _ = make()
    plugin = type("Plugin", (), {"min_num_params": None, "transformer_cls_names_to_wrap": None})()
    accelerator = type("Accelerator", (), {"state": type("State", (), {"fsdp_plugin": plugin})()})()
    set_fsdp_wrap_modules(accelerator, policy)
    names = {type(module).__name__ for module in policy.modules()}
    assert set(plugin.transformer_cls_names_to_wrap) <= names
    layers = {
        type(layer).__name__
        for module in policy.modules()
        if isinstance(module, torch.nn.ModuleList)
        for layer in module
    }
    assert layers <= set(plugin.transformer_cls_names_to_wrap)
    for name in DeepFusionPolicy._fsdp_forward_methods:
        assert callable(getattr(policy, name))


def test_dropped_actions_are_planned_anew() -> None:
    policy, _, pipelines = make()
    batch = pipelines["pre"](make_batch(policy.config, training=False))
    policy.select_action(batch)
    assert policy._action_queue
    policy.drop_queued_actions()
    assert not policy._action_queue
    policy.select_action(batch)
    assert len(policy._action_queue) == policy.config.n_action_steps - 1


def test_mixed_precision_of_the_accelerator_alone(data: list[str], tmp_path: Path) -> None:
    """The same as `policy.dtype=bfloat16`: what the layers compute is, weights and losses are not."""
    losses = {}
    for name, more in (("policy", "--policy.dtype=bfloat16"), ("accelerator", "--accelerator.mixed_precision=bf16")):
        printed = finish(TRAIN, *options(data, tmp_path / name, more))
        losses[name] = [part.split()[0] for part in printed.split(" loss:")[1:]]
        assert {tensor.dtype for tensor in weights(tmp_path / name).values()} == {torch.float32}
    assert losses["policy"] == losses["accelerator"]
    assert len(losses["policy"]) == 2


@pytest.mark.parametrize("fails", [False, True])
def test_published_with_our_card(data: list[str], tmp_path: Path, fails: bool) -> None:
    """LeRobot's publisher uploads the card of this policy; where it fails, checkpoint and command are named."""
    script = tmp_path / "publish.py"
    script.write_text(PUBLISH)
    arguments = options(data, tmp_path, "--policy.push_to_hub=true", "--policy.repo_id=somebody/something")
    printed = finish(sys.executable, script, *arguments, fails=fails, FAILS=str(int(fails)))
    if fails:
        assert "Nothing is lost" in printed
        assert "hf upload somebody/something" in printed
        assert (tmp_path / LAST / "README.md").is_file()
    else:
        assert "Model pushed to" in printed
        card = tmp_path / "README.md"
        assert "deepfusion" in card.read_text()
        assert "Licence" in card.read_text()


PUBLISH = """
import os, shutil, sys
from pathlib import Path
from types import SimpleNamespace

from huggingface_hub import HfApi

HERE = Path(__file__).parent
def upload(self, *args, folder_path, **kwargs):
    if os.environ["FAILS"] == "1":
        raise ConnectionError("no way out")
    card = Path(folder_path) / "README.md"
    if card.is_file():
        shutil.copy(card, HERE / "README.md")
    return SimpleNamespace(repo_url=SimpleNamespace(url="there"))

HfApi.upload_folder = upload
HfApi.create_repo = lambda self, repo_id, **kwargs: SimpleNamespace(repo_id=repo_id)
from lerobot.scripts.lerobot_train import main
main()
"""
