"""`deepfusion info`: what it counts is counted on real models, and what it estimates is measured on them."""

from __future__ import annotations

import json
import re
import sys
from itertools import product
from pathlib import Path

import pytest
import torch

from benchmarks.memory_estimate import LOAD, WAYS, make_inputs, measured_peak, prepare, small_model
from lerobot_deepfusion.cli import main
from lerobot_deepfusion.cost import blueprint, few_layers, memory
from lerobot_deepfusion.cost.fake_step import Setting, stage_peaks
from lerobot_deepfusion.cost.few_layers import peak_bytes
from lerobot_deepfusion.cost.report import describe
from lerobot_deepfusion.modeling_deepfusion import DeepFusionPolicy
from lerobot_deepfusion.network.fusion import FUSIONS, VlmStates
from lerobot_deepfusion.network.lockstep import DeepFusionModel
from lerobot_deepfusion.network.part_names import EXPERT, PARTS, POSITIONS, PROJECTOR, TEXT, VISION
from lerobot_deepfusion.training.adapters import LORA_TARGETS
from tests import commands
from tests.commands import ROOT
from tests.llavas import MAKES, llava_config
from tests.policies import make_config

CONFIGS = ROOT / "configs" / "policy"
ALL = frozenset(PARTS)

# Rows of the switch that count otherwise than the fusions by themselves.
GEMMA = {"action_expert_type": "late_gemma"}
SWITCHES = (
    ("kv", {"fusion_layers": "every_2"}),
    ("kv", {"fusion_layers": "first_4", "expert_num_layers": 6, "action_attention": "causal"}),
    ("hidden", {"fusion_layers": "middle", "action_attention": "causal"}),
    ("hidden", {"fusion_layers": "every_2", "expert_num_layers": 6}),
    ("late", {"fusion_layers": "first_4", **GEMMA}),
    ("late", {"expert_num_layers": 3, **GEMMA, "action_attention": "causal"}),
)


# --- counted ----------------------------------------------------------------------------------------------


def storages(states: VlmStates) -> dict[int, int]:
    """Bytes of what the context holds, by address."""
    tensors = [t for state in states.context for t in ([state] if isinstance(state, torch.Tensor) else state)]
    return {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}


def assert_context_is_exact(model: DeepFusionModel, half: bool) -> None:
    """Bytes counted are those that a pass leaves."""
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=half):
        states = model.prefill(*(make_inputs(model)[name] for name in ("pixels", "tokens", "valid")))
        projected = model.project_contexts(states)
    assert memory.context_bytes(model, LOAD, half) == sum(storages(states).values())
    assert memory.key_value_bytes(model, LOAD, half) == sum(storages(projected).values())


@pytest.mark.medium
@pytest.mark.parametrize("fusion", FUSIONS)
def test_parameters_and_key_values_are_exact(fusion: str) -> None:
    """Parameters on the meta device, and context bytes, equal a real model's."""
    for make, half, (trained, _) in product(("clip_llama", "onevision"), (False, True), list(WAYS.values())[:2]):
        with torch.device("meta"):
            counts = memory.parameters(small_model(make, fusion))
        model = small_model(make, fusion)
        prepare(model, Setting(half, trained))
        for part, module in (
            (VISION, model.perception.vision_tower),
            (TEXT, model.perception.language_model),
            (EXPERT, model.expert),
        ):
            assert counts[part] == sum(parameter.numel() for parameter in module.parameters())
        assert sum(counts.values()) == sum(parameter.numel() for parameter in model.parameters())
        assert memory.parameters(model, trained=True) == {part: counts[part] * (part in trained) for part in PARTS}
        assert_context_is_exact(model, half)


@pytest.mark.medium
@pytest.mark.parametrize(("fusion", "switch"), SWITCHES)
def test_switch_is_counted(fusion: str, switch: dict) -> None:
    for half, (trained, _) in product((False, True), list(WAYS.values())[:2]):
        model = small_model("clip_llama", fusion, **switch)
        prepare(model, Setting(half, trained))
        assert_context_is_exact(model, half)


@pytest.mark.medium
def test_parameters_of_published_shapes() -> None:
    """LLaVA-1.5 7B and OneVision 0.5B without lm_head, in billions, to the digits known of them.

    Under `late` the text models are whole; CLIP's tower, 0.304 in full, ends after layer 23 of 24. The layers
    of an expert of equal width with `token` are the text model's own.
    """
    for name, expected in (
        ("llava-1.5-7b", (0.291, 0.021, 6.61, 6.48)),
        ("onevision-0.5b", (0.398, 0.00184, 0.494, 0.358)),
    ):
        config, _ = blueprint.read_policy(name, {"fusion": "late", "time_conditioning": "token"})
        model = blueprint.build(config)
        assert all(parameter.is_meta for parameter in model.parameters())
        counts = memory.parameters(model)
        layers = sum(parameter.numel() for parameter in model.expert.backbone.parameters())
        found = (counts[VISION], counts[PROJECTOR], counts[TEXT], layers)
        assert tuple(float(f"{count / 1e9:.3g}") for count in found) == expected


# --- estimated --------------------------------------------------------------------------------------------

# Every make and fusion once, and each way to train under each dtype and with and without checkpointing.
STEPS = [
    (make, fusion, *list(product(WAYS, (False, True), (False, True)))[(index + 4 * (index // 12)) % 12])
    for index, (make, fusion) in enumerate(product(MAKES, FUSIONS))
]


@pytest.mark.medium
@pytest.mark.parametrize(("make", "fusion", "way", "half", "checkpointing"), STEPS)
def test_training_peak_is_what_is_allocated(
    make: str, fusion: str, way: str, half: bool, checkpointing: bool
) -> None:
    """Estimated bytes of activations and gradients are those that torch's profiler sees. LoRA is PEFT's own.

    Within 2%, and 4% in bfloat16: where the processor multiplies that itself, torch's kernels allocate for
    themselves, which was 2.9% of one of these. `python -m benchmarks.memory_estimate` prints each.
    """
    pytest.importorskip("peft")
    model = small_model(make, fusion, layers=3)
    trained, rank = WAYS[way]
    setting = Setting(half, trained, checkpointing, rank)
    estimate = peak_bytes(model, LOAD, setting)
    prepare(model, setting)
    assert estimate == pytest.approx(measured_peak(model, setting), rel=0.04 if half else 0.02)


@pytest.mark.medium
def test_positions_are_trained_through_a_frozen_vlm() -> None:
    """Whose backward pass is counted then: nearly twice what it takes without them."""
    setting = Setting(False, frozenset({EXPERT, POSITIONS}))
    model = small_model("clip_llama", "kv", layers=3, position_3d="camera")
    estimate = peak_bytes(model, LOAD, setting)
    prepare(model, setting)
    assert memory.trained_parts(model) == setting.trained
    assert estimate == pytest.approx(measured_peak(model, setting), rel=0.02)
    assert estimate > 1.5 * peak_bytes(small_model("clip_llama", "kv", layers=3), LOAD, setting)


@pytest.mark.medium
@pytest.mark.parametrize("fusion", FUSIONS)
def test_acting_peak_is_what_is_allocated(fusion: str) -> None:
    """Likewise of a chunk, where autocast keeps a copy of weights that are trained."""
    for half, trained in ((False, ALL), (True, ALL), (True, frozenset({EXPERT}))):
        model = small_model("siglip_qwen2", fusion, layers=3)
        setting = Setting(half, trained, acting=True)
        estimate = peak_bytes(model, LOAD, setting)
        prepare(model, setting)
        assert estimate == pytest.approx(measured_peak(model, setting), rel=0.02)


@pytest.mark.medium
@pytest.mark.parametrize(
    ("fusion", "switch", "setting"),
    [
        ("kv", {}, Setting(True, ALL)),
        ("hidden", {}, Setting(False, ALL, acting=True)),
        ("late", {"expert_num_layers": 6}, Setting(False, ALL, checkpointing=True)),
        ("kv", {"fusion_layers": "every_2"}, Setting(False, frozenset({TEXT, EXPERT}), rank=4)),
        ("hidden", {"fusion_layers": "first_6", "expert_num_layers": 12}, Setting(True, frozenset({EXPERT}))),
        ("kv", {"fusion_layers": "middle"}, Setting(False, frozenset({TEXT, EXPERT}), True)),
        ("late", {"position_3d": "camera"}, Setting(False, frozenset({EXPERT, POSITIONS}))),
    ],
)
def test_few_layers_stand_for_many(fusion: str, switch: dict, setting: Setting) -> None:
    """The peak read off two small depths is that of all layers run."""
    with torch.device("meta"):
        model = small_model("clip_llama", fusion, layers=10, **switch)
    assert max(len(row) for _, row in few_layers.repeated(model)) > few_layers.FEW + 1
    whole = max(stage_peaks(model, LOAD, setting).values())
    assert peak_bytes(model, LOAD, setting) == pytest.approx(whole, rel=0.001)


def test_layer_maps_repeat() -> None:
    for sources, expected in (
        ([0, 1, 2, 3], (1, 1)),
        ([1, 3, 5], (2, 1)),
        ([0, 0, 1, 1], (1, 2)),
        ([5, 5, 5], (0, 1)),
        ([2, 3, 4], (1, 1)),
        ([0, 1, 1, 2, 2], (3, 5)),
        ([7], (1, 1)),
    ):
        assert few_layers.period(sources) == expected


@pytest.mark.medium
def test_real_weights_are_not_touched() -> None:
    """The same tensors afterwards, no gradient, and no hook or flag left in the model."""
    model = small_model("clip_llama", "kv", layers=3)
    before = {name: (id(parameter), parameter.clone()) for name, parameter in model.named_parameters()}
    peak_bytes(model, LOAD, Setting(True, frozenset({TEXT, EXPERT}), True, 4))
    for name, parameter in model.named_parameters():
        assert id(parameter) == before[name][0]
        assert torch.equal(parameter, before[name][1])
        assert parameter.grad is None
        assert parameter.requires_grad
    assert not any(m._forward_hooks or getattr(m, "gradient_checkpointing", False) for m in model.modules())


def test_lora_adapts_what_the_policy_names() -> None:
    assert DeepFusionPolicy(make_config())._get_default_peft_targets() == LORA_TARGETS


def test_lora_parameters_are_exact() -> None:
    """As many as PEFT trains."""
    pytest.importorskip("peft")
    model = small_model("onevision", "kv", layers=3)
    counts = memory.lora_parameters(model, 4)
    prepare(model, Setting(False, *WAYS["LoRA"][:1], rank=4))
    assert sum(counts.values()) == sum(p.numel() for p in model.parameters() if p.requires_grad)


TWO_STEPS = """
import torch
from tests.llavas import llava_config
from benchmarks.memory_estimate import LOAD, make_inputs, step
from tests.cost.test_cost import ALL, DeepFusionModel, Setting, memory

def resident(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(name))

config = llava_config("clip_llama", hidden_size=512, intermediate_size=1536, num_hidden_layers=6, head_dim=128)
imports = resident("VmRSS")
model = DeepFusionModel(config, "kv", 1.0, "adarms", 8, 8).train()
optimizer = torch.optim.AdamW(model.parameters(), fused=True)
inputs = make_inputs(model)
for _ in range(2):
    step(model, inputs, Setting(False, ALL))
    optimizer.step()
    optimizer.zero_grad()
taken = resident("VmHWM") - imports
print("bytes", taken, memory.training_bytes(model, LOAD, False, ALL, checkpointing=False))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_resident_memory_of_training() -> None:
    """A process that trains a model of 193 MB for two steps takes what is estimated, within 15%.

    Not `ru_maxrss`, which a child process inherits.
    """
    said = commands.run("-c", TWO_STEPS, inside=commands.give_back_at_once)
    measured, estimate = (int(word) for word in said.split("bytes")[-1].split())
    assert estimate == pytest.approx(measured, rel=0.15)


# --- the command ------------------------------------------------------------------------------------------


@pytest.fixture
def no_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of what is said besides the figures of memory, of networks that take seconds to count."""
    monkeypatch.setattr(memory, "peak_bytes", lambda *_: 2**30)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    main(["info", *arguments])
    return capsys.readouterr().out


@pytest.mark.medium
@pytest.mark.usefixtures("no_passes")
def test_train_config(capsys: pytest.CaptureFixture[str]) -> None:
    """A YAML's flags, batch size and flow samples; of a published LLaVA nothing is looked up."""
    text = run(capsys, str(CONFIGS / "llava_1.5_7b.yaml"), "--cameras=2")
    for line in (
        "observation.images.<camera 2>: 336 x 336 pixels, 576 tokens",
        "64 tokens; 1216 with the images, of at most 4096",
        "expert 0-31 <- VLM 0-31, each its own: keys and values",
        "train, batch 8, flow samples 8",
    ):
        assert line in text
    assert re.search(r"text model +0 +6.44 B", text)
    chosen = [line for line in text.splitlines() if "GiB *" in line]
    assert len(chosen) == 1
    assert re.search(r"the expert +1.01 B +\S+ GiB +\S+ GiB \*$", chosen[0])
    assert re.search(r"LoRA, rank 16 .* \*$", run(capsys, str(CONFIGS / "llava_1.5_7b_lora.yaml")), re.MULTILINE)


@pytest.mark.usefixtures("no_passes")
def test_overrides_are_the_policys_own(capsys: pytest.CaptureFixture[str]) -> None:
    text = run(capsys, "onevision-0.5b", "--policy.fusion=late", "--policy.train_expert_only=true", "--batch-size=2")
    assert "expert 0-23 <- VLM 23: last hidden state, projected" in text
    assert "train, batch 2," in text
    assert re.search(r"vision tower +0 +398 M", text)
    assert "camera 1" in run(capsys, "tiny", "--policy.input_features=null")


@pytest.mark.parametrize(
    ("options", "lines"),
    [
        (
            ["fusion_layers=every_4"],
            ["expert 0-5 <- VLM 3, 7, ... 23, each its own: keys and values", "23 is cut to"],
        ),
        (
            ["fusion_layers=first_6", "expert_num_layers=12"],
            [
                "expert 0-11 <- VLM 0-5, each for 2 layers: keys",
                "VLM layer 5 is cut to those; VLM layers 6-23 are left",
            ],
        ),
        (["expert_num_layers=1"], ["expert 0 <- VLM 23, each its own: keys and values"]),
        (["fusion_layers=every_12"], ["expert 0-1 <- VLM 11, 23, each its own: keys"]),
        (
            ["fusion_layers=first_4", "expert_num_layers=3", "fusion=hidden"],
            ["expert 0-2 <- VLM 1-3, each its own: layer input, projected", "VLM layers 3-23 are left out"],
        ),
        (["fusion_layers=first_3", "expert_num_layers=5"], ["<- VLM 0, 1, 1, 2, 2, in this order: keys and values"]),
        (["fusion=hidden", "fusion_layers=middle"], ["<- VLM 6-17, each its own: layer input", "17-23 are left out"]),
        (
            ["fusion=late", "fusion_layers=first_8", "action_expert_type=late_gemma", "action_attention=causal"],
            [
                "expert 0-7 <- VLM 7: last hidden state, projected",
                "VLM layers 8-23 are left out",
                "late_gemma, 8 layers of 896, 14 heads, 1 for keys and values, causal",
            ],
        ),
    ],
)
@pytest.mark.usefixtures("no_passes")
def test_layer_map_is_true(options: list[str], lines: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    text = run(capsys, "onevision-0.5b", *(f"--policy.{option}" for option in options))
    assert [line for line in lines if line not in text] == [], text


@pytest.mark.medium
def test_checkpoint_needs_its_config_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What the command says of a checkpoint is what the policy logs; no weight is there to be read."""
    policy = DeepFusionPolicy(make_config(fusion="hidden"))
    policy.config.save_pretrained(tmp_path)
    text = run(capsys, str(tmp_path))
    assert text.startswith(describe(policy.config, policy.model))
    assert "observation.image: 96 x 96 pixels, 8 tokens" in text
    assert "4 dimensions, padded to 6" in text
    assert repr(policy.config.vlm_config["prompt"]) in text
    with pytest.raises(SystemExit, match=r"--cameras=2: the config has its own, observation\.image"):
        main(["info", str(tmp_path), "--cameras=2"])


@pytest.mark.medium
@pytest.mark.usefixtures("no_passes")
def test_llava_needs_its_config_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    llava_config("onevision").save_pretrained(tmp_path)
    assert "32 x 32 pixels, 17 tokens" in run(capsys, str(tmp_path))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nobody/nothing"], "'nobody/nothing': no config.json .* llava-1.5-7b and onevision-0.5b need neither"),
        (["tiny", "--policy.colour=1"], "colour"),
        (["tiny", "--policy.fusion=cross"], "policy.fusion='cross': choose one of kv, hidden, late"),
        (["tiny", "--policy.fusion_layers=first_9"], "policy.fusion_layers=first_9: the VLM has 3 layers"),
        (["{folder}"], "is a 'bert' model; expected a 'deepfusion' policy or one of llava"),
        (["{folder}/config.json"], "a train config has a `policy:` block"),
        (["{folder}/notes.txt"], "is not YAML, as a train config is"),
    ],
)
def test_errors_name_the_mend(arguments: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    (tmp_path / "notes.txt").write_text("a: [")
    with pytest.raises(SystemExit, match=message):
        main(["info", *(argument.replace("{folder}", str(tmp_path)) for argument in arguments)])


@pytest.mark.parametrize("option", ["--fusion=kv", "--policy.fusion", "--batch-size=0"])
def test_usage_errors(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["info", "tiny", option])
    assert option.partition("=")[0] in capsys.readouterr().err
