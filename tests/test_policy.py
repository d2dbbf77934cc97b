"""`DeepFusionPolicy` as LeRobot calls it."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies.act.configuration_act import ACTConfig
from lerobot.policies.factory import make_pre_post_processors
from lerobot.policies.rtc.configuration_rtc import RTCConfig
from safetensors.torch import load_file, save_file
from torch._dynamo.utils import counters
from torch._inductor import cpu_vec_isa

from lerobot_deepfusion.configuration_deepfusion import DeepFusionConfig
from lerobot_deepfusion.llava.reader import read_vlm_config
from lerobot_deepfusion.modeling_deepfusion import DeepFusionPolicy
from lerobot_deepfusion.processor_deepfusion import make_deepfusion_pre_post_processors
from tests.policies import STATS, loss, make, make_batch, make_config

HEAD = "model.expert.action_out_proj.weight"
VLM = read_vlm_config("tiny")


@pytest.mark.medium
@pytest.mark.parametrize("fusion", ["kv", "hidden", "late"])
def test_overfits_one_batch(fusion: str) -> None:
    """A few steps on one batch at one (noise, time) lower the loss to a fifth."""
    policy, batch, _ = make(fusion=fusion)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=3e-3)
    policy.train()
    first = loss(policy, batch).item()
    for _ in range(25):
        optimizer.zero_grad()
        loss(policy, batch).backward()
        optimizer.step()
    assert loss(policy, batch).item() < first / 5


def test_padded_actions_do_not_count() -> None:
    """Actions behind the episode's end change neither the loss nor its gradient, to the bit."""
    policy, batch, _ = make(num_flow_samples=2)
    batch["action_is_pad"][0, 2:] = True
    before = loss(policy, batch)
    before.backward()
    gradient = policy.model.expert.action_out_proj.weight.grad.clone()
    policy.zero_grad()
    torch.manual_seed(7)
    target = batch["action"].clone()
    target[0, 2:] = 123.0

    # The noisy action at padded places does reach the network, as it would in any chunk; only the loss is
    # masked. So the comparison is of the loss at equal inputs.
    seen = []
    original = policy.model.denoise
    policy.model.denoise = lambda states, state, noisy, time, given: (
        seen.append(noisy) or original(states, state, noisy, time, given)
    )
    losses = loss(policy, batch, reduction="none")
    assert torch.isfinite(losses).all()
    policy.model.denoise = lambda states, state, noisy, time, given: original(states, state, seen[0], time, given)
    changed = {**batch, "action": target}
    after = loss(policy, changed)
    after.backward()
    assert torch.equal(before, after)
    assert torch.equal(gradient, policy.model.expert.action_out_proj.weight.grad)


def test_reductions_agree() -> None:
    """The mean of `none` is `mean`, however much is padding; worst error 0."""
    policy, batch, _ = make()
    batch["action_is_pad"][0, 2:] = True
    per_sample = loss(policy, batch, reduction="none")
    assert per_sample.shape == (3,)
    assert torch.allclose(per_sample.mean(), loss(policy, batch), atol=1e-6)
    with pytest.raises(ValueError, match="reduction='sum'"):
        policy.forward(batch, reduction="sum")


def test_queue_runs_out_and_resets() -> None:
    policy, batch, _ = make()
    calls = []
    predict = policy.predict_action_chunk
    policy.predict_action_chunk = lambda *args, **kw: calls.append(1) or predict(*args, **kw)
    actions = [policy.select_action(batch) for _ in range(4)]
    assert len(calls) == 2  # three of the first chunk, one of the second
    assert all(action.shape == (3, 3) for action in actions)
    policy.reset()
    policy.select_action(batch)
    assert len(calls) == 3


def test_chunk_is_deterministic_given_noise_and_equals_the_queue() -> None:
    policy, batch, _ = make()
    noise = torch.randn(3, 6, 3)
    chunk = policy.predict_action_chunk(batch, noise=noise)
    assert torch.equal(chunk, policy.predict_action_chunk(batch, noise=noise))
    queued = [policy.select_action(batch, noise=noise) for _ in range(3)]
    assert torch.equal(torch.stack(queued, dim=1), chunk[:, :3])


@pytest.mark.parametrize("fusion", ["kv", "hidden", "late"])
def test_checkpoint_stands_alone(tmp_path: Path, fusion: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Saved and loaded through LeRobot, policy and processors give the same actions to the bit.

    Nothing is read but the checkpoint: the functions that read a VLM raise.
    """
    policy, _, pipelines = make(fusion=fusion, cameras=("images.left", "images.right"))
    for pipeline in pipelines.values():
        pipeline.save_pretrained(tmp_path)
    policy.save_pretrained(tmp_path)

    def stop(*_, **__):
        raise AssertionError("a checkpoint must not read a VLM")

    for name in ("read_vlm_config", "read_tokenizer", "load_vlm_weights"):
        monkeypatch.setattr(f"lerobot_deepfusion.modeling_deepfusion.{name}", stop)
    for name in ("read_vlm_config", "read_tokenizer"):
        monkeypatch.setattr(f"lerobot_deepfusion.llava.reader.{name}", stop)
    again = DeepFusionPolicy.from_pretrained(tmp_path)
    pre, post = make_pre_post_processors(again.config, pretrained_path=str(tmp_path))
    raw, noise = make_batch(policy.config, training=False), torch.randn(3, 6, 3)
    expected = pipelines["post"](policy.predict_action_chunk(pipelines["pre"](copy.deepcopy(raw)), noise=noise)[:, 0])
    assert torch.equal(post(again.predict_action_chunk(pre(copy.deepcopy(raw)), noise=noise)[:, 0]), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop(HEAD), f"1 missing: {HEAD}"),
        (lambda weights: weights.update(extra=torch.zeros(1)), "1 left over: extra"),
        (lambda weights: weights.update({HEAD: torch.zeros(2, 2)}), f"1 of another shape: {HEAD}"),
    ],
)
def test_loading_is_strict(tmp_path: Path, change, message: str) -> None:
    policy, _, _ = make()
    policy.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    change(weights)
    save_file(weights, file)
    for strict in (True, False):
        with pytest.raises(RuntimeError, match=f"model.safetensors does not fit this policy. {message}$"):
            DeepFusionPolicy.from_pretrained(tmp_path, strict=strict)


@pytest.mark.medium
def test_truncated_weights_are_an_error(tmp_path: Path) -> None:
    policy, _, _ = make()
    policy.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    whole = file.read_bytes()
    for size in (len(whole) - 1, 1000, 4, 0):
        file.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="is not a complete safetensors file"):
            DeepFusionPolicy.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"no_such": 1}, "`no_such` are not valid"),
        ({"chunk_size": "many"}, "`chunk_size`: Couldn't parse 'many' into an int"),
        ({"fusion": "deep"}, "policy.fusion='deep': choose one of kv, hidden, late"),
        ({"vlm_config": None}, "has no vlm_config"),
        ({"vlm_config": {}}, "policy.vlm_config lacks image_mean"),
        ({"vlm_config": {**VLM, "model": {"model_type": "llama"}}}, "VLM of model_type 'llama'"),
        ({"input_features": {}}, "no camera among the input features"),
    ],
)
def test_wrong_config_is_an_error(tmp_path: Path, change: dict, message: str) -> None:
    policy, _, _ = make()
    policy.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(ValueError, match=re.escape(message)):
        DeepFusionPolicy.from_pretrained(tmp_path)


def test_other_files_than_a_checkpoint_are_errors(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        DeepFusionPolicy.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"type": "deepfusion", ')
    with pytest.raises(ValueError, match="is not one that this version reads"):
        DeepFusionPolicy.from_pretrained(tmp_path)
    ACTConfig(push_to_hub=False).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="checkpoint of a 'act' policy"):
        DeepFusionPolicy.from_pretrained(tmp_path)
    make()[0].save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="config of type 'act'"):
        DeepFusionPolicy.from_pretrained(tmp_path, config=ACTConfig(push_to_hub=False))


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    policy, _, _ = make()
    policy.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="fusion='late'"):
        DeepFusionPolicy.from_pretrained(tmp_path, config=make_config(fusion="late"))
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["vlm_config"]["model"]["model_type"] == "llava"
    assert PreTrainedConfig.from_pretrained(tmp_path) == policy.config


def test_cameras_have_fixed_slots() -> None:
    """Two cameras swapped in the batch give another answer; the order of the batch's keys does not."""
    cameras = ("images.a", "images.b")
    policy, batch, _ = make(cameras=cameras)
    noise = torch.randn(3, 6, 3)
    chunk = policy.predict_action_chunk(batch, noise=noise)
    assert torch.equal(chunk, policy.predict_action_chunk(dict(reversed(batch.items())), noise=noise))
    a, b = (f"observation.{name}" for name in cameras)
    assert not torch.allclose(chunk, policy.predict_action_chunk({**batch, a: batch[b], b: batch[a]}, noise=noise))


def test_missing_camera_is_an_error_and_a_declared_one_is_masked() -> None:
    policy, batch, _ = make(cameras=("images.a", "images.b"))
    with pytest.raises(ValueError, match=r"images\.b.*empty_cameras"):
        policy.predict_action_chunk({k: v for k, v in batch.items() if k != "observation.images.b"})
    policy, batch, _ = make(empty_cameras=1)
    assert policy.config.cameras[-1] == "observation.images.empty_camera_0"
    noise = torch.randn(3, 6, 3)
    chunk = policy.predict_action_chunk(batch, noise=noise)
    # Whatever stood in the empty slot would not be seen.
    filled = {**batch, policy.config.cameras[-1]: torch.rand(3, 3, 9, 9)}
    filled[f"{policy.config.cameras[-1]}_padding_mask"] = torch.zeros(3, dtype=torch.bool)
    assert torch.allclose(chunk, policy.predict_action_chunk(filled, noise=noise), atol=1e-6)


def test_a_camera_of_a_base_that_the_data_lacks(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Trained on two of its three cameras, as after `--rename_map`: the third's slot is empty from then on."""
    base, batch, pipelines = make(cameras=("image", "images.b", "images.c"))
    batch = {key: value for key, value in batch.items() if key != "observation.images.b"}
    with pytest.raises(ValueError, match=r"camera 'observation.images.b' is not in the batch"):
        base.predict_action_chunk(batch)  # acting, it is missed
    base.train()
    value = loss(base, batch)
    assert "no pictures of ['observation.images.b']" in caplog.text
    assert base.config.cameras == ["observation.image", "observation.images.empty_camera_0", "observation.images.c"]
    caplog.clear()
    assert loss(base, batch) == value
    assert not caplog.text
    # Its pictures would change nothing, and the checkpoint knows.
    assert loss(base, {**batch, "observation.images.b": torch.rand(3, 3, 64, 80)}) == value
    base.save_pretrained(tmp_path)
    for pipeline in pipelines.values():
        pipeline.save_pretrained(tmp_path)
    trained = DeepFusionPolicy.from_pretrained(tmp_path)
    assert trained.config.cameras == base.config.cameras
    noise = torch.randn(3, 6, 3)
    assert torch.equal(trained.predict_action_chunk(batch, noise), base.predict_action_chunk(batch, noise))
    for key in ("observation.image", "observation.images.c"):
        with pytest.raises(ValueError, match=f"camera '{key}' is not in the batch"):
            trained.predict_action_chunk({name: value for name, value in batch.items() if name != key})


def test_the_config_s_class_is_that_of_the_annotation() -> None:
    """LeRobot's own tests take it from there, as a class and not as text."""
    assert inspect.signature(DeepFusionPolicy.__init__).parameters["config"].annotation is DeepFusionConfig


def test_absent_camera_equals_no_camera_at_all() -> None:
    """A masked slot leaves the numbers of a policy without that slot. Worst error: 9.5e-7."""
    one, batch, _ = make()
    two, padded, _ = make(empty_cameras=1)
    two.load_state_dict(one.state_dict())
    noise = torch.randn(3, 6, 3)
    expected = one.predict_action_chunk(batch, noise=noise)
    assert torch.allclose(two.predict_action_chunk(padded, noise=noise), expected, atol=1e-5)


def test_train_keeps_frozen_parts_in_eval() -> None:
    policy, _, _ = make(train_expert_only=True)
    assert policy.train() is policy
    assert policy.model.expert.training
    assert not policy.model.perception.training
    names = {name for name, p in policy.named_parameters() if p.requires_grad}
    assert names
    assert all(name.startswith("model.expert.") for name in names)
    assert sum(len(group["params"]) for group in policy.get_optim_params()) == len(names)
    policy, _, _ = make(freeze_vision_encoder=True)
    policy.train()
    assert not policy.model.perception.vision_tower.training
    assert policy.model.perception.language_model.training


def test_knowledge_insulation_cuts_the_gradient() -> None:
    """Exactly none of the expert's gradient reaches the VLM; the expert's own is the same to the bit."""
    policy, batch, _ = make(knowledge_insulation=True)
    open_, _, _ = make()
    for one in (policy, open_):
        loss(one, batch).backward()
    assert all(p.grad is None for p in policy.model.perception.parameters())
    assert any(p.grad.abs().max() > 0 for p in open_.model.perception.parameters())
    assert policy.model.expert.action_in_proj.weight.grad.any()
    for a, b in zip(policy.model.expert.parameters(), open_.model.expert.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


def test_knowledge_insulation_trains_the_expert_alone() -> None:
    """It is said so, the VLM counts as frozen, and adapters in it get no gradient."""
    policy, batch, _ = make(knowledge_insulation=True)
    assert all(group["name"] == "expert" for group in policy.get_optim_params())
    assert re.search(r"text model +0 +\S+ k", policy.describe())
    policy.config.pretrained_path = "somewhere"
    wrapped = policy.wrap_with_peft(peft_cli_overrides={"method_type": "LORA", "r": 2})
    loss(wrapped, batch).backward()
    trained = {name: p for name, p in wrapped.named_parameters() if p.requires_grad}
    reached = {name for name, p in trained.items() if p.grad is not None and p.grad.any()}
    assert any("lora_A" in name for name in trained)
    assert reached
    assert all(".expert." in name for name in reached)


def test_bfloat16_stays_inside_the_layers() -> None:
    """State, time, noisy actions and velocity are computed in float32 under autocast; the layers are not."""
    policy, batch, _ = make(dtype="bfloat16")
    expert, seen = policy.model.expert, {}
    for name in ("state_in_proj", "action_in_proj", "time_mlp", "action_out_proj"):
        expert.get_submodule(name).register_forward_hook(
            lambda _, given, out, name=name: seen.update({name: (given[0].dtype, out.dtype)})
        )
    expert.backbone.layers[0].mlp.register_forward_hook(lambda _, given, out: seen.update(mlp=out.dtype))
    policy.forward(batch)
    assert seen.pop("mlp") == torch.bfloat16
    assert len(seen) == 4
    assert set(seen.values()) == {(torch.float32, torch.float32)}


def test_bfloat16_is_near_float32() -> None:
    """Autocast moves the actions by about 1e-2, as rounding to 8 bits does; weights stay float32."""
    policy, batch, _ = make()
    noise = torch.randn(3, 6, 3)
    exact = policy.predict_action_chunk(batch, noise=noise)
    policy.config.dtype = "bfloat16"
    rounded = policy.predict_action_chunk(batch, noise=noise)
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).abs().max() < 0.1
    assert all(p.dtype == torch.float32 for p in policy.parameters())


def test_real_time_chunking_follows_the_old_chunk() -> None:
    """LeRobot's guidance pulls the start of the new chunk towards what is left of the old one."""
    policy, batch, _ = make()
    noise, old = torch.randn(3, 6, 3), torch.zeros(3, 6, 3)
    free = policy.predict_action_chunk(batch, noise=noise)
    assert policy.supports_rtc()
    policy.config.rtc_config = RTCConfig(enabled=True, execution_horizon=4)
    policy.init_rtc_processor()
    options = {"inference_delay": 2, "prev_chunk_left_over": old, "execution_horizon": 4}
    guided = policy.predict_action_chunk(batch, noise=noise, **options)
    assert guided[:, :2].abs().mean() < free[:, :2].abs().mean()
    assert not guided.requires_grad
    with pytest.raises(RuntimeError, match="predict_action_chunk"):
        policy.select_action(batch)


def test_expert_can_start_from_the_vlm() -> None:
    policy, _, _ = make(expert_init="vlm")
    text, expert = policy.model.perception.language_model, policy.model.expert.backbone
    assert torch.equal(text.layers[0].mlp.up_proj.weight, expert.layers[0].mlp.up_proj.weight)
    assert torch.equal(text.layers[-1].self_attn.k_proj.weight, expert.layers[-1].self_attn.k_proj.weight)


def test_adapter_targets_exist() -> None:
    """LoRA's defaults name the attention of the VLM, and the expert."""
    policy, _, _ = make()
    targets = policy._get_default_peft_targets()
    names = [name for name, _ in policy.named_modules()]
    adapted = [name for name in names if re.fullmatch(targets["target_modules"], name)]
    # Four projections in two whole VLM layers; the last has keys and values only.
    assert len(adapted) == 4 * 2 + 2
    assert [name for name in names if name.split(".")[-1] in targets["modules_to_save"]] == ["model.expert"]


def test_optimizer_is_fused_and_equals_the_plain_one() -> None:
    """Two steps of the preset against PyTorch's unfused AdamW. Worst difference: 6.7e-8, where they moved by 2e-4."""
    fused, batch, _ = make()
    plain, _, _ = make()
    preset = fused.config.get_optimizer_preset()
    first = preset.build(fused.get_optim_params())
    second = dataclasses.replace(preset, fused=False).build(plain.get_optim_params())
    assert first.defaults["fused"]
    for policy, optimizer in ((fused, first), (plain, second)):
        for _ in range(2):
            optimizer.zero_grad()
            loss(policy, batch).backward()
            optimizer.step()
    for a, b in zip(fused.parameters(), plain.parameters(), strict=True):
        assert (a - b).abs().max() < 1e-6


@pytest.fixture
def quick_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Vector instructions that are not tried out first, for which torch compiles and imports itself, 40 s in all; and
    no processes to compile in, of which each imports it too.
    """
    if torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512"):
        monkeypatch.setattr(cpu_vec_isa, "valid_vec_isa_list", lambda: [cpu_vec_isa.VecAVX2()])
    with torch._inductor.config.patch({"cpp.vec_isa_ok": True, "compile_threads": 1}):
        yield


@pytest.mark.slow
@pytest.mark.usefixtures("quick_compiler")
@pytest.mark.parametrize(
    "options",
    [
        {"fusion": "kv"},
        {"fusion": "hidden"},
        {"fusion": "late", "action_expert_type": "late_gemma", "action_attention": "causal"},
    ],
)
def test_compiled_denoise_step(options: dict) -> None:
    """One graph for all steps, chunks and episodes; actions equal the eager ones. Worst error: 5.4e-7.

    Two layers, since each is as much work again for the compiler.
    """
    options = {"fusion_layers": "first_2", **options}
    policy, batch, _ = make(**options, compile_model=True)
    eager, _, _ = make(**options)
    torch._dynamo.reset()
    counters.clear()
    with torch._dynamo.config.patch(error_on_recompile=True):
        for episode in range(3):
            policy.reset()
            for task in ("short", "a longer task"):
                pre = make_deepfusion_pre_post_processors(policy.config, STATS)[0]
                raw = {**make_batch(policy.config, training=False), "task": [task] * 3}
                batch, noise = pre(raw), torch.randn(3, 6, 3)
                compiled = policy.predict_action_chunk(batch, noise=noise)
                expected = eager.predict_action_chunk(batch, noise=noise)
                assert (compiled - expected).abs().max() < 1e-5, episode
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
