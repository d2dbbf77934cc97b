"""What is trained, how fast each part learns, and adapters around it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.policies.factory import make_pre_post_processors
from safetensors.torch import load_file
from torch.optim import SGD

from lerobot_deepfusion.cost import memory
from lerobot_deepfusion.modeling_deepfusion import DeepFusionPolicy
from lerobot_deepfusion.processor_deepfusion import make_deepfusion_pre_post_processors
from lerobot_deepfusion.training.optimizer import DeepFusionSchedulerConfig
from tests.commands import SHORT, TINY_YAML, run, write_noise
from tests.policies import STATS, loss, make, make_config

RATES = {"optimizer_vlm_lr": 1e-5, "optimizer_connector_lr": 2e-5, "optimizer_vision_lr": 3e-6}


@pytest.mark.medium
def test_each_part_has_its_rate() -> None:
    """Groups stand in one order and hold every trained weight once; LeRobot logs the first one's rate."""
    policy, _, _ = make(**RATES)
    groups = policy.get_optim_params()
    assert [(group["name"], group["lr"]) for group in groups] == [
        ("expert", 1e-4),
        ("text model", 1e-5),
        ("projector", 2e-5),
        ("vision tower", 3e-6),
    ]
    found = [parameter for group in groups for parameter in group["params"]]
    assert len(found) == len(list(policy.parameters()))
    assert {id(parameter) for parameter in found} == {id(parameter) for parameter in policy.parameters()}
    for group in groups:
        names = [n for n, p in policy.model.named_parameters() if any(p is q for q in group["params"])]
        assert {memory.part_of(name) for name in names} == {group["name"]}
    optimizer = policy.config.get_optimizer_preset().build(groups)
    assert [group["lr"] for group in optimizer.param_groups] == [1e-4, 1e-5, 2e-5, 3e-6]


@pytest.mark.parametrize(
    ("frozen", "field", "left"),
    [
        ({"freeze_vision_encoder": True}, "optimizer_vision_lr", ["expert", "text model", "projector"]),
        ({"train_expert_only": True}, "optimizer_vlm_lr", ["expert"]),
        ({"train_expert_only": True}, "optimizer_connector_lr", ["expert"]),
    ],
)
def test_rate_of_a_frozen_part_is_an_error(frozen: dict, field: str, left: list[str]) -> None:
    policy, _, _ = make(**frozen)
    assert [group["name"] for group in policy.get_optim_params()] == left
    with pytest.raises(ValueError, match=rf"policy.{field}=1e-05 and nothing of the .* is trained"):
        make(**frozen, **{field: 1e-5})[0].get_optim_params()


@pytest.mark.medium
@pytest.mark.parametrize("steps", [20, 100, 30_000])
def test_schedule_follows_the_length_of_the_run(steps: int) -> None:
    """From zero over the peak to zero at the last step, whatever `--steps` is, for every group's own rate."""
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = SGD([{"params": [p], "lr": rate} for p, rate in zip(parameters, (1.0, 0.1), strict=True)])
    schedule = DeepFusionSchedulerConfig(num_warmup_steps=500).build(optimizer, steps)
    rates = []
    for _ in range(steps):
        rates.append(schedule.get_last_lr())
        optimizer.step()
        schedule.step()
    warmup = min(500, steps // 10)
    first, second = (list(column) for column in zip(*rates, strict=True))
    assert first[0] == 0
    assert max(first) == pytest.approx(1)
    assert first.index(max(first)) == warmup
    assert first[-1] < 0.01
    assert second == pytest.approx([0.1 * rate for rate in first])


@pytest.mark.slow
def test_options_of_the_trainer(tmp_path: Path) -> None:
    """Sample weights, a held-out episode, image transforms and dropped frames, in one run of lerobot-train."""
    dataset = write_noise(tmp_path / "data", ("image",), 2, 2)
    options = ["--sample_weighting.type=uniform", "--dataset.eval_split=0.5", "--eval_steps=1"]
    options += ["--dataset.image_transforms.enable=true", "--policy.drop_n_last_frames=3"]
    train = ["lerobot-train", f"--config_path={TINY_YAML}", *dataset, *SHORT, "--steps=2"]
    log = run(*train, *options, f"--output_dir={tmp_path}/a")
    losses = [float(line.split("eval_loss=")[1].split()[0]) for line in log.splitlines() if "eval_loss=" in line]
    assert len(losses) == 2
    assert all(0 < loss < 10 for loss in losses)
    assert (tmp_path / "a/checkpoints/last/pretrained_model/model.safetensors").exists()
    none_left = ["--dataset.episodes=[0]", "--policy.drop_n_last_frames=12"]  # of one episode of twelve
    log = run(*train, *none_left, f"--output_dir={tmp_path}/b", code=1)
    assert "policy.drop_n_last_frames=12 and the longest episode of local/noise has 12 frames" in log


@pytest.mark.slow
def test_renamed_cameras_are_never_dropped(tmp_path: Path) -> None:
    """LeRobot's eval forgets the map that the policy was trained with; without it the run stops and says so."""
    pytest.importorskip("gym_pusht")
    torch.manual_seed(0)
    base, out = tmp_path / "base", tmp_path / "tuned"
    config = make_config(cameras=("images.top",))
    config.input_features |= {
        "observation.images.top": PolicyFeature(type=FeatureType.VISUAL, shape=(3, 96, 96)),
        "observation.state": PolicyFeature(type=FeatureType.STATE, shape=(2,)),
    }
    config.output_features = {"action": PolicyFeature(type=FeatureType.ACTION, shape=(2,))}
    stats = {key: {name: value[:2] for name, value in values.items()} for key, values in STATS.items()}
    for part in (DeepFusionPolicy(config), *make_deepfusion_pre_post_processors(config, stats)):
        part.save_pretrained(base)
    rename = '--rename_map={"observation.image": "observation.images.top"}'
    dataset = write_noise(tmp_path / "data", ("image",), 2, 2)
    train = [f"--policy.path={base}", *dataset, *SHORT, rename, "--policy.push_to_hub=false", "--steps=1"]
    saved = f"{out}/checkpoints/last/pretrained_model"
    evaluate = ["lerobot-eval", f"--policy.path={saved}", "--env.type=pusht", "--env.episode_length=4"]
    evaluate += ["--eval.n_episodes=1", "--eval.batch_size=1", "--policy.device=cpu"]
    run("lerobot-train", *train, f"--output_dir={out}")
    run(*evaluate, rename, f"--output_dir={tmp_path}/eval")
    assert (tmp_path / "eval/eval_info.json").exists()
    assert "rename_map" in run(*evaluate, f"--output_dir={tmp_path}/no", code=1)[-3000:]


# --- adapters ---------------------------------------------------------------------------------------------


def wrap(policy: DeepFusionPolicy, **overrides):
    policy.config.pretrained_path = "somewhere"
    return policy.wrap_with_peft(peft_cli_overrides={"method_type": "LORA", "r": 2, **overrides})


@pytest.mark.parametrize(("conditioning", "frozen"), [("adarms", False), ("token", True)])
def test_adapters_are_what_is_trained(conditioning: str, frozen: bool) -> None:
    """As many weights as are counted; every one gets a gradient in one step, and the base none.

    Layers around adapters are recomputed too where the base was frozen, as it is for a 7B on a small card.
    """
    policy, batch, _ = make(
        time_conditioning=conditioning, gradient_checkpointing=True, train_expert_only=frozen, dtype="bfloat16"
    )
    counted = memory.lora_parameters(policy.model, 2)
    wrapped = wrap(policy)
    wrapped.train()
    trained = {name: p for name, p in wrapped.named_parameters() if p.requires_grad}
    assert sum(p.numel() for p in trained.values()) == sum(counted.values())
    assert all(".lora_" in name or ".modules_to_save." in name for name in trained)
    assert [group["name"] for group in wrapped.get_optim_params()] == ["expert", "text model"]
    for name, parameter in trained.items():
        if ".lora_B." in name or ".modulation." in name:  # start at zero, which hides gradients before them
            torch.nn.init.normal_(parameter, std=0.1)
    loss(wrapped, batch).backward()
    assert [name for name, p in trained.items() if p.grad is None or p.grad.abs().max() == 0] == []
    assert all(
        layer.gradient_checkpointing and layer.training for layer in policy.model.perception.language_model.layers
    )
    assert {p.dtype for p in trained.values()} == {torch.float32}
    assert {p.dtype for p in wrapped.parameters() if not p.requires_grad} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("option", "field"), [("target_modules", "target_modules"), ("full_training_modules", "full_training_modules")]
)
def test_adapter_names_that_no_module_has(option: str, field: str) -> None:
    policy, _, _ = make()
    with pytest.raises(ValueError, match=rf"--peft.{option} has 'q_porj', and no module.*q_proj"):
        wrap(policy, **{field: ["q_proj", "q_porj"]})


@pytest.mark.slow
def test_adapters_through_the_commands(tmp_path: Path) -> None:
    """Base, train, evaluate, resume, merge; the merged policy acts as the adapted one. Worst difference: 2e-6.

    Resuming goes on from the saved adapters: two more steps of AdamW move no weight by more than a few times the
    rate, where fresh adapters would stand 0.1 and more away. (Losses after a resume: docs/faults.md.)
    """
    pytest.importorskip("gym_pusht")
    base, out, merged = (str(tmp_path / name) for name in ("base", "lora", "merged"))
    adapter = "adapter_model.safetensors"
    dataset = write_noise(tmp_path / "data", ("image",), 2, 2)
    options = [
        f"--policy.path={base}",
        *dataset,
        *SHORT,
        "--env_eval_freq=0",
        "--seed=3",
        "--policy.push_to_hub=false",
    ]
    options += ["--peft.r=4", "--policy.optimizer_vlm_lr=1e-3", "--policy.gradient_checkpointing=true"]
    half, last = (f"{out}/checkpoints/{step}/pretrained_model" for step in ("000002", "last"))
    evaluation = ["--env.type=pusht", "--env.episode_length=8", "--eval.n_episodes=1", "--eval.batch_size=1"]
    evaluation += ["--policy.device=cpu"]
    run("deepfusion", "base", f"--config_path={TINY_YAML}", *dataset, "--seed=3", f"--output_dir={base}")
    run("lerobot-train", *options, "--steps=4", f"--output_dir={out}")
    run("lerobot-train", f"--config_path={half}/train_config.json", "--resume=true")
    run("lerobot-eval", f"--policy.path={last}", *evaluation, f"--output_dir={out}/eval")
    run("deepfusion", "merge", last, merged)
    run("lerobot-eval", f"--policy.path={merged}", *evaluation, f"--output_dir={out}/eval2")
    for written in (base, merged):  # each machine finds its own
        assert json.loads(Path(written, "config.json").read_text())["device"] is None
    resumed, saved = load_file(f"{last}/{adapter}"), load_file(f"{half}/{adapter}")
    moved = {name: (tensor - saved[name]).abs().max() for name, tensor in resumed.items()}
    assert 0 < max(moved.values()) < 5e-3
    assert all(tensor.abs().max() > 0 for name, tensor in resumed.items() if "lora_B" in name)

    from lerobot.configs import PreTrainedConfig
    from peft import PeftConfig, PeftModel

    source = PeftConfig.from_pretrained(last).base_model_name_or_path
    assert source == str(Path(base).resolve())
    config = PreTrainedConfig.from_pretrained(last)
    adapted = PeftModel.from_pretrained(DeepFusionPolicy.from_pretrained(source, config=config), last)
    plain = DeepFusionPolicy.from_pretrained(merged)
    pre, _ = make_pre_post_processors(plain.config, pretrained_path=merged)
    batch = pre(
        {"observation.image": torch.rand(2, 3, 96, 96), "observation.state": torch.rand(2, 2), "task": ["", ""]}
    )
    noise = torch.randn(2, plain.config.chunk_size, 2)
    expected = adapted.predict_action_chunk(batch, noise=noise)
    assert (plain.predict_action_chunk(batch, noise=noise) - expected).abs().max() < 1e-5
    unadapted = DeepFusionPolicy.from_pretrained(source).predict_action_chunk(batch, noise=noise)
    assert (unadapted - expected).abs().max() > 1e-3
