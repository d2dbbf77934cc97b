"""Model card, push and load, against a Hub on loopback with huggingface_hub's own client."""

from __future__ import annotations

import copy
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import draccus
import pandas as pd
import pytest
import torch
from huggingface_hub import ModelCard, constants
from lerobot.common.train_utils import save_checkpoint, update_last_checkpoint
from lerobot.configs.default import DatasetConfig
from lerobot.configs.eval import EvalPipelineConfig
from lerobot.configs.train import TrainPipelineConfig
from safetensors.torch import load_file

from lerobot_deepfusion.cli import main
from lerobot_deepfusion.modeling_deepfusion import DeepFusionPolicy
from lerobot_deepfusion.processor_deepfusion import make_deepfusion_pre_post_processors
from lerobot_deepfusion.sim.metaworld_fast import MetaworldFastEnv
from lerobot_deepfusion.storage.model_card import model_card, write_card
from tests.commands import SHORT, TINY_YAML, run, write_noise
from tests.policies import STATS, make_batch, make_config
from tests.storage.hub_server import Hub

REPO = "user/push"
EVAL_INFO = {
    "per_group": {
        "push-v3": {"n_episodes": 20, "pc_success": 95.0, "avg_sum_reward": 206.028},
        "faucet-open-v3": {"n_episodes": 10, "pc_success": 20.0, "avg_sum_reward": 31.5},
    },
    "overall": {"n_episodes": 30, "pc_success": 70.0, "avg_sum_reward": 147.852},
}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A running Hub; this process and those that it starts use it, with an empty cache."""
    with Hub() as server:
        use(server.environment(tmp_path / "hf_home"), monkeypatch)
        yield server


def use(environment: dict[str, str], patch: pytest.MonkeyPatch | None = None) -> None:
    """Send this process to a Hub; huggingface_hub read its environment when it was imported."""
    patch, home = patch or pytest.MonkeyPatch(), environment["HF_HOME"]
    for name, value in environment.items():
        patch.setenv(name, value)
    patch.setattr(constants, "ENDPOINT", environment["HF_ENDPOINT"])
    template = environment["HF_ENDPOINT"] + "/{repo_id}/resolve/{revision}/{filename}"
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    patch.setattr(constants, "HF_HUB_CACHE", f"{home}/hub")
    patch.setattr(constants, "HF_TOKEN_PATH", f"{home}/token")
    patch.setattr(constants, "HF_HUB_OFFLINE", False)
    patch.setattr(constants, "HF_HUB_DISABLE_XET", True)


def trained(tmp_path: Path, **changes) -> tuple[DeepFusionPolicy, TrainPipelineConfig, tuple]:
    """A policy with random weights, what it might have been trained with, and its processors, in a checkpoint."""
    config = make_config(**changes)
    config.repo_id = REPO
    train = TrainPipelineConfig(
        dataset=DatasetConfig(repo_id="you/data"),
        policy=config,
        env=MetaworldFastEnv(task="push-v3", episode_length=120),
        output_dir=tmp_path / "out put",
        steps=1234,
        batch_size=7,
        seed=42,
    )
    train.optimizer = config.get_optimizer_preset()
    policy = DeepFusionPolicy(config)
    processors = make_deepfusion_pre_post_processors(config, STATS)
    optimizer = torch.optim.AdamW(policy.parameters())
    checkpoint = train.output_dir / "checkpoints/001000"
    save_checkpoint(checkpoint, 1000, train, policy, optimizer, None, *processors, 1, 7)
    update_last_checkpoint(checkpoint)
    return policy, train, processors


def push(policy: DeepFusionPolicy, train: TrainPipelineConfig, processors: tuple) -> None:
    """What lerobot-train does at its end."""
    policy.push_model_to_hub(train, state_dict=None, dataset_meta=None)
    for processor in processors:
        processor.push_to_hub(policy.config.repo_id)


def assert_same_weights(policy: DeepFusionPolicy, weights: dict[str, torch.Tensor]) -> None:
    state = policy.state_dict()
    assert state.keys() == weights.keys()
    assert all(torch.equal(state[name], weights[name]) for name in weights)


def table(card: ModelCard) -> dict[str, str]:
    """The two-column rows of a card; rows with the same name are joined."""
    rows: dict[str, str] = {}
    for name, value in re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", card.text, re.MULTILINE):
        rows[name] = f"{rows[name]}; {value}" if name in rows else value
    return rows


def code_blocks(card: ModelCard, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", card.text, re.DOTALL)


# --- the card ---------------------------------------------------------------------------------------------


def test_card_states_the_facts(tmp_path: Path) -> None:
    """Each fact is the config's; none of the values is a default."""
    config = make_config(
        cameras=("images.top", "images.wrist"),
        position_3d="world",
        fusion="late",
        num_flow_samples=3,
        optimizer_lr=3e-4,
        tags=["mine"],
    )
    config.vlm_path, config.freeze_vision_encoder = "llava-hf/llava-1.5-7b-hf", True
    config.repo_id, config.action_feature_names = REPO, ["x", "y", "gripper"]
    train = TrainPipelineConfig(
        dataset=DatasetConfig(repo_id="you/data"), policy=config, steps=1234, batch_size=7, seed=42
    )
    train.optimizer = config.get_optimizer_preset()
    tasks = pd.DataFrame({"task_index": [0, 1]}, index=["Push the puck", ""])
    dataset = SimpleNamespace(total_episodes=160, total_frames=12345, fps=80, robot_type="sawyer", tasks=tasks)
    model_card(config, train, dataset, step=500, evaluation=EVAL_INFO).save(tmp_path / "README.md")
    card = ModelCard.load(tmp_path / "README.md")

    metadata = card.data.to_dict()
    assert metadata == {
        "license": "llama2",
        "library_name": "lerobot",
        "pipeline_tag": "robotics",
        "base_model": "llava-hf/llava-1.5-7b-hf",
        "datasets": ["you/data"],
        "tags": ["deepfusion", "lerobot", "mine", "robotics", "vision-language-action"],
    }
    facts = table(card)
    assert facts["VLM"] == "[llava-hf/llava-1.5-7b-hf](https://huggingface.co/llava-hf/llava-1.5-7b-hf)"
    assert facts["VLM's licence"] == "`llama2`"
    assert facts["fusion"].startswith("`late`")
    assert facts["data set"] == "[you/data](https://huggingface.co/datasets/you/data)"
    assert facts["size"] == "160 episodes, 12345 frames"
    assert all(f"`observation.images.{name}`" in facts["camera"] for name in ("top", "wrist"))
    assert facts["depth"].startswith("`observation.images.top_depth` [1, height, width], millimetres")
    assert "the robot's base" in facts["depth"]
    assert facts["action"] == "3 numbers: `x`, `y`, `gripper`"
    assert facts["steps"] == "500 of 1234"
    assert facts["batch size"] == "7 for each process"
    assert facts["learning rate"] == "0.0003"
    assert facts["seed"] == "42"
    assert facts["flow samples"] == "3 for each pass of the VLM"
    assert facts["frozen"] == "the vision tower"
    assert f"torch {torch.__version__.split('+')[0]}" in facts["versions"]
    assert "lerobot 0.6" in facts["versions"]
    assert "\n- Push the puck\n\n" in card.text
    for row in ("push-v3 | 20 | 95.0% | 206.03", "faucet-open-v3 | 10 | 20.0% | 31.50", "all | 30 | 70.0% | 147.85"):
        assert f"| {row} |" in card.text


@pytest.mark.parametrize(
    ("vlm_path", "license_id", "base", "vlm"),
    [
        ("tiny", "apache-2.0", None, "`tiny`, a small LLaVA trained from scratch with the policy"),
        ("someone/llava", "other", "someone/llava", "[someone/llava](https://huggingface.co/someone/llava)"),
        ("/data/llava", "other", None, "`/data/llava`"),
    ],
)
def test_licence_follows_the_vlm(vlm_path: str, license_id: str, base: str | None, vlm: str) -> None:
    """An unknown VLM's licence is not guessed, and a folder is no `base_model`; `--policy.license` wins."""
    config = make_config()
    config.vlm_path = vlm_path
    card = model_card(config)
    assert (card.data.license, card.data.base_model) == (license_id, base)
    assert table(card)["VLM"] == vlm
    assert table(card)["VLM's licence"] == ("none of its own" if vlm_path == "tiny" else f"see {vlm}")
    assert "No evaluation was given" in card.text
    config.license = "mit"
    assert model_card(config).data.license == "mit"


@pytest.mark.medium
def test_commands_of_the_card_are_real() -> None:
    """LeRobot's parser makes of the evaluation command the environment and renaming of the training."""
    config = make_config()
    config.repo_id = REPO
    env = MetaworldFastEnv(task="push-v3,faucet-open-v3", episode_length=120)
    renaming = {"observation.a": "observation.image"}
    train = TrainPipelineConfig(DatasetConfig(repo_id="you/data"), policy=config, env=env, rename_map=renaming)
    blocks = code_blocks(model_card(config, train), "bash")
    evaluate, finetune = (shlex.split(block.replace("\\\n", "")) for block in blocks)
    assert evaluate[:2] == ["lerobot-eval", f"--policy.path={REPO}"]
    parsed = draccus.parse(EvalPipelineConfig, args=evaluate[2:])
    assert (parsed.env, parsed.rename_map, parsed.eval.n_episodes) == (env, renaming, train.eval.n_episodes)
    assert finetune[:2] == ["lerobot-train", f"--policy.path={REPO}"]
    assert "--dataset.repo_id=<you/data>" in finetune


@pytest.mark.medium
def test_card_of_a_saved_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command reads config, training and step from the checkpoint, and says how to push."""
    _, train, _ = trained(tmp_path)
    checkpoint = train.output_dir / "checkpoints/last/pretrained_model"
    results = tmp_path / "eval_info.json"
    results.write_text(json.dumps(EVAL_INFO))
    main(["card", str(checkpoint), "--repo-id=me/other", f"--eval-info={results}"])
    card = ModelCard.load(checkpoint / "README.md")
    assert "--policy.path=me/other" in card.text
    assert "--env.episode_length=120" in card.text
    assert table(card)["steps"] == "1000 of 1234"
    assert "| all | 30 | 70.0% | 147.85 |" in card.text
    assert f"hf upload me/other '{checkpoint}'" in capsys.readouterr().out
    results.write_text("{}")
    with pytest.raises(ValueError, match="per_group"):
        write_card(checkpoint, eval_info=results)
    with pytest.raises(FileNotFoundError, match="pretrained_model"):
        write_card(checkpoint.parent)


# --- to the Hub and back ----------------------------------------------------------------------------------


def test_everything_saved_is_pushed(tmp_path: Path) -> None:
    """LeRobot pushes a policy's files through this filter, so no file may have another ending."""
    _, train, _ = trained(tmp_path)
    saved = [path.name for path in (train.output_dir / "checkpoints/last/pretrained_model").rglob("*")]
    assert {"config.json", "model.safetensors", "train_config.json", "policy_preprocessor.json"} <= set(saved)
    allowed = ("*.safetensors", "*.json", "*.yaml", "*.md")
    assert [name for name in saved if not any(fnmatch(name, pattern) for pattern in allowed)] == []


@pytest.mark.medium
def test_push_and_load(hub: Hub, tmp_path: Path) -> None:
    """Weights come back bit for bit, those of an older commit or tag too, and the card's Python code runs."""
    policy, train, processors = trained(tmp_path)
    push(policy, train, processors)
    first, old = hub.repos[REPO].refs["main"], copy.deepcopy(policy.state_dict())
    hub.repos[REPO].refs["v1"] = first
    with torch.no_grad():
        policy.model.expert.action_out_proj.weight.add_(1)
    push(policy, train, processors)
    shutil.rmtree(train.output_dir)

    assert_same_weights(DeepFusionPolicy.from_pretrained(REPO), policy.state_dict())
    for revision in (first, "v1"):
        assert_same_weights(DeepFusionPolicy.from_pretrained(REPO, revision=revision), old)
    with pytest.raises(FileNotFoundError, match="not found on the HuggingFace Hub"):
        DeepFusionPolicy.from_pretrained(REPO, revision="v2")

    card = ModelCard.load(REPO)
    assert card.data.datasets == ["you/data"]
    raw = {key: value[:1] for key, value in make_batch(policy.config, training=False).items()}
    scope = {"observation": copy.deepcopy(raw)}
    load, act = code_blocks(card, "python")[0].split("action = ")
    exec(load, scope)
    torch.manual_seed(0)
    action = eval(act, scope)
    torch.manual_seed(0)
    pre, post = processors
    policy.eval()
    assert torch.equal(action, post(policy.select_action(pre(raw))))


@pytest.mark.medium
@pytest.mark.parametrize(
    ("token", "license_id", "commits", "reason"),
    [
        ("", None, 9, "401 Unauthorized"),
        ("hf_test", "my-licence", 9, '"license" must be one of'),
        ("hf_test", None, 0, "Storage quota exceeded"),
    ],
)
def test_failed_push_loses_nothing(
    hub: Hub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    token: str,
    license_id: str | None,
    commits: int,
    reason: str,
) -> None:
    """The message names the cause, the checkpoint and a command; that command pushes all of it later."""
    policy, train, _ = trained(tmp_path)
    policy.config.license, policy.config.private = license_id, commits == 0
    monkeypatch.setenv("HF_TOKEN", token)
    hub.max_commits = commits
    with caplog.at_level("INFO"), pytest.raises(RuntimeError, match=re.escape(reason)) as failure:
        policy.push_model_to_hub(train)
    message = str(failure.value)
    assert ("hf auth login" in message) == (reason != '"license" must be one of')
    command = message.splitlines()[-1].strip()
    assert command in caplog.text
    checkpoint = Path(shlex.split(command)[-1])
    assert f"is in {checkpoint}," in message
    assert_same_weights(policy, load_file(checkpoint / "model.safetensors"))

    monkeypatch.setenv("HF_TOKEN", "hf_test")
    hub.max_commits = 9
    readme = checkpoint / "README.md"
    readme.write_text(readme.read_text().replace("my-licence", "mit"))
    subprocess.run([Path(sys.executable).with_name("hf"), *shlex.split(command)[1:]], check=True, timeout=120)
    assert set(hub.files(REPO)) == {path.name for path in checkpoint.iterdir()}
    assert_same_weights(DeepFusionPolicy.from_pretrained(REPO), policy.state_dict())


def test_push_without_a_hub_or_a_checkpoint(hub: Hub, tmp_path: Path) -> None:
    policy, train, _ = trained(tmp_path)
    hub.server.shutdown()
    hub.server.server_close()
    with pytest.raises(RuntimeError, match="Connection refused"):
        policy.push_model_to_hub(train)
    assert (train.output_dir / "checkpoints/last/pretrained_model/README.md").exists()
    train.save_checkpoint = False
    with pytest.raises(RuntimeError, match="save_checkpoint=false"):
        policy.push_model_to_hub(train)


@pytest.mark.slow
def test_train_to_the_hub_and_evaluate_from_it(hub: Hub, tmp_path: Path) -> None:
    """LeRobot's own commands: checkpoints and policy are pushed, local files go, the policy is evaluated."""
    pytest.importorskip("gym_pusht")

    out = tmp_path / "train"
    there = partial(use, hub.environment(tmp_path / "hf_home"))
    log = run(
        "lerobot-train",
        f"--config_path={TINY_YAML}",
        *write_noise(tmp_path / "data", ("image",), 2, 2),
        f"--policy.repo_id={REPO}",
        "--policy.push_to_hub=true",
        "--save_checkpoint_to_hub=true",
        *(*SHORT, "--steps=2", "--save_freq=1", f"--output_dir={out}"),
        inside=there,
    )
    assert f"Model pushed to {hub.url}/{REPO}" in log
    trained_files = out / "checkpoints/last/pretrained_model"
    pushed = hub.files(REPO)
    for path in trained_files.iterdir():
        assert pushed[path.name] == path.read_bytes(), path.name
        assert pushed[f"checkpoints/000002/pretrained_model/{path.name}"] == path.read_bytes()
    assert "checkpoints/000001/pretrained_model/model.safetensors" in hub.files(REPO, "000001")
    card = table(ModelCard(pushed["README.md"].decode()))
    assert (card["steps"], card["size"], card["action"]) == ("2", "2 episodes, 24 frames", "2 numbers: `a`, `b`")

    shutil.rmtree(out)
    run(
        "lerobot-eval",
        f"--policy.path={REPO}",
        *("--policy.device=cpu", "--env.type=pusht", "--env.episode_length=8"),
        *("--eval.n_episodes=1", "--eval.batch_size=1", f"--output_dir={tmp_path / 'eval'}"),
        inside=there,
    )
    DeepFusionPolicy.from_pretrained(REPO).save_pretrained(tmp_path / "again")
    write_card(tmp_path / "again", eval_info=tmp_path / "eval/eval_info.json")
    assert "| pusht | 1 | " in (tmp_path / "again/README.md").read_text()
