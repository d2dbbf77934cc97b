"""The rows of the switch: which VLM layers the expert reads, of which architecture it is, and what its tokens see.

Each row is one model of a VLM with 6 layers, with enlarged weights (see conftest); together they cover the options in
combination.
"""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from transformers import GemmaConfig, GemmaModel, LlamaConfig, LlamaModel

from lerobot_deepfusion.cost import memory
from lerobot_deepfusion.modeling_deepfusion import DeepFusionPolicy
from lerobot_deepfusion.network.fusion import VlmStates, source_layers
from lerobot_deepfusion.network.lockstep import DeepFusionModel
from tests.checkpoints import IMAGE_ID, TEXT, write_llava
from tests.llavas import llava_config, plain_llava
from tests.network.reference import velocity as reference_velocity
from tests.network.test_lockstep import build, error, inputs, prefill, unpadded_row, velocity
from tests.policies import loss, make, make_config

DEPTH = 6
GEMMA = {"action_expert_type": "late_gemma"}
CAUSAL = {"action_attention": "causal"}
# Make, fusion, width, time and options; the VLM layer beside each expert layer, and how many layers the VLM keeps.
ROWS = {
    "every": ("siglip_qwen2", "kv", 0.5, "adarms", {"fusion_layers": "every_2"}, [1, 3, 5], 6),
    "deeper": (
        "clip_llama",
        "kv",
        1.0,
        "token",
        {"fusion_layers": "first_4", "expert_num_layers": 6, **CAUSAL},
        [0, 1, 1, 2, 3, 3],
        4,
    ),
    "shallow": ("onevision", "kv", 1.0, "adarms", {"fusion_layers": "middle", "expert_num_layers": 1}, [3], 4),
    "middle": (
        "onevision",
        "hidden",
        0.5,
        "adarms",
        {"fusion_layers": "middle", "expert_num_layers": 2, **CAUSAL},
        [2, 3],
        3,
    ),
    "hidden_every": ("clip_mistral", "hidden", 1.0, "token", {"fusion_layers": "every_3"}, [2, 5], 5),
    "late_first": ("siglip_qwen2", "late", 1.0, "adarms", {"fusion_layers": "first_2", **CAUSAL}, [0, 1], 2),
    "gemma": (
        "next_mistral",
        "late",
        1.0,
        "adarms",
        {"fusion_layers": "first_3", "expert_num_layers": 4, **GEMMA},
        [0, 1, 2, 2],
        3,
    ),
    "gemma_causal": (
        "clip_llama",
        "late",
        0.5,
        "token",
        {"expert_num_layers": 2, **GEMMA, **CAUSAL},
        [2, 5],
        6,
    ),
}


@pytest.fixture(params=ROWS)
def row(request: pytest.FixtureRequest) -> str:
    return request.param


def build_row(row: str) -> DeepFusionModel:
    make, fusion, width, time, options, *_ = ROWS[row]
    return build(make, fusion, width, time, DEPTH, **options)


# --- which layers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("depth", "layers", "experts", "expected"),
    [
        (4, "all", None, [0, 1, 2, 3]),
        (5, "every_2", None, [1, 3]),
        (24, "every_8", None, [7, 15, 23]),
        (24, "first_3", None, [0, 1, 2]),
        (24, "middle", None, list(range(6, 18))),
        (3, "middle", None, [0, 1]),
        (1, "middle", None, [0]),
        (6, "all", 3, [1, 3, 5]),
        (6, "all", 1, [5]),
        (6, "all", 4, [1, 2, 4, 5]),
        (2, "all", 5, [0, 0, 1, 1, 1]),
        (6, "every_2", 6, [1, 1, 3, 3, 5, 5]),
    ],
)
def test_sources(depth: int, layers: str, experts: int | None, expected: list[int]) -> None:
    assert source_layers("kv", depth, layers, experts) == expected


def test_sources_of_an_expert_of_any_depth() -> None:
    """In order, up to the deepest of all, and each if there are enough to read it."""
    for depth in range(1, 13):
        for experts in range(1, 25):
            found = source_layers("kv", depth, "all", experts)
            assert found == sorted(found)
            assert found[-1] == depth - 1
            assert len(set(found)) == min(depth, experts)


@pytest.mark.parametrize(
    ("fusion", "layers", "message"),
    [
        ("kv", "first_7", "policy.fusion_layers=first_7: the VLM has 6 layers, choose at most 6"),
        ("hidden", "every_7", "policy.fusion_layers=every_7: the VLM has 6 layers"),
        ("hidden", "first_1", "no layer of the VLM would run"),
    ],
)
def test_layers_that_the_vlm_lacks_are_refused(fusion: str, layers: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DeepFusionModel(
            llava_config("clip_llama", num_hidden_layers=6), fusion, 1.0, "token", 4, 4, fusion_layers=layers
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fusion_layers": "last_2"}, "policy.fusion_layers='last_2': choose all, middle, every_<n> or first_<m>"),
        ({"fusion_layers": "every_0"}, "policy.fusion_layers='every_0': choose"),
        ({"fusion_layers": "first_99999"}, "policy.fusion_layers='first_99999': choose"),
        ({"fusion_layers": 3}, "policy.fusion_layers=3: choose"),
        ({"fusion": "late", "fusion_layers": "every_2"}, "policy.fusion_layers=every_2 chooses among the layers"),
        ({"fusion": "late", "fusion_layers": "middle"}, "policy.fusion_layers=middle chooses among the layers"),
        ({"action_expert_type": "gemma"}, "policy.action_expert_type='gemma': choose one of deep_llama, late_gemma"),
        ({"action_attention": "full"}, "policy.action_attention='full': choose one of bidirectional, causal"),
        (GEMMA, "it needs policy.fusion=late, found kv"),
        ({**GEMMA, "fusion": "late", "expert_init": "vlm"}, "which a Gemma has no place for"),
        (
            {"expert_init": "vlm", "expert_width_multiplier": 0.5},
            "needs policy.expert_width_multiplier=1.0, found 0.5",
        ),
        ({"expert_num_layers": 0}, "policy.expert_num_layers=0: needs at least 1"),
        ({"expert_num_layers": 1025}, "policy.expert_num_layers=1025: needs at most 1024"),
        ({"expert_num_layers": 2.5}, "policy.expert_num_layers=2.5: needs a whole number"),
    ],
)
def test_what_makes_no_sense_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_config(**changes)


def test_a_width_that_heads_do_not_divide_is_told_with_one_that_they_do() -> None:
    """It is the option's fault, and not the LLaVA's."""
    with pytest.raises(
        ValueError, match=r"width 16, .* 3 heads do not divide; use policy.expert_width_multiplier=0.25"
    ):
        DeepFusionPolicy(make_config(expert_width_multiplier=0.125))
    assert DeepFusionPolicy(make_config(expert_width_multiplier=0.25)).model.expert.backbone.config.hidden_size == 24


# --- exactness --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("left", [False, True])
@torch.no_grad()
def test_row_equals_reference(row: str, left: bool) -> None:
    """Joint pass against `reference.py`, and acting (contexts projected once) against the joint pass.

    The layers that are read stand in the table above, written out. Worst error measured: 1.9e-6.
    """
    make, _, _, _, options, sources, _ = ROWS[row]
    model, plain = build_row(row), plain_llava(make, llava_config(make, num_hidden_layers=DEPTH))
    x = inputs(model, left=left)
    names = ("pixels", "token_ids", "valid", "state", "noisy_actions", "time")
    causal = options.get("action_attention") == "causal"
    expected = reference_velocity(model, plain.model.language_model, *(x[n] for n in names), sources, causal)
    joint = velocity(model, x)
    assert error(joint, expected) < 1e-5
    states = model.project_contexts(prefill(model, x))
    assert error(model.denoise(states, x["state"], x["noisy_actions"], model.embed_time(x["time"])), joint) < 1e-5


@torch.no_grad()
def test_row_keeps_its_rows_and_its_vlm_apart(row: str) -> None:
    """A ragged batch of three equals its rows alone; a step leaves the VLM's states as they were, to the bit."""
    model = build_row(row)
    x = inputs(model, batch=3)
    states, together = prefill(model, x), velocity(model, x)
    before = copy.deepcopy(states.context)
    model.denoise(states, -x["state"], 100 * x["noisy_actions"], model.embed_time(1 - x["time"]))
    for a, b in zip(before, states.context, strict=True):
        assert all(torch.equal(left, right) for left, right in zip(a, b, strict=True))
    for index in range(3):
        assert error(velocity(model, unpadded_row(x, index)), together[index : index + 1]) < 1e-5


def test_row_has_no_parameter_without_gradient(row: str) -> None:
    """The VLM ends behind the last layer that is read, and all that is kept has a say.

    Recomputing layers changes no gradient, to the bit. Under `late` nothing but the one state is read.
    """
    *_, sources, kept = ROWS[row]
    model = build_row(row).train()
    assert len(model.perception.language_model.layers) == kept
    assert len(model.expert.backbone.layers) == len(sources)
    x = inputs(model)

    def gradients() -> dict[str, torch.Tensor]:
        model.zero_grad()
        velocity(model, x).square().mean().backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    plain = gradients()
    assert [name for name, _ in model.named_parameters() if name not in plain or not plain[name].any()] == []
    model.gradient_checkpointing_enable()
    again = gradients()
    assert all(torch.equal(plain[name], again[name]) for name in plain)
    states = prefill(model, x)
    if model.perception.fusion == "late":
        assert all(state is states.context[0] for state in states.context)
        model.zero_grad()
        model.denoise(states.detach(), x["state"], x["noisy_actions"], model.embed_time(x["time"])).sum().backward()
        assert all(p.grad is None for p in model.perception.parameters())


def test_row_keeps_flow_samples_apart(row: str) -> None:
    """K = 2 equals two passes of K = 1, one of which needs no mask of its own unless it is causal."""
    model = build_row(row)
    x = inputs(model, samples=2)
    with torch.no_grad():
        joint = velocity(model, x)
        for k in range(2):
            one = {**x, "noisy_actions": x["noisy_actions"][:, k : k + 1], "time": x["time"][:, k : k + 1]}
            assert error(velocity(model, one), joint[:, k : k + 1]) < 1e-5


# --- the expert's architecture and attention --------------------------------------------------------------


@pytest.mark.parametrize("gemma", [False, True])
@torch.no_grad()
def test_causal_expert_without_context_is_transformers_own(gemma: bool) -> None:
    """On transformers' own Llama or Gemma weights, its layers give the same velocity. Worst error: 0.

    The mask is the expert's own. Gemma scales its embeddings, which the expert does not have, and nothing else.
    """
    options = {**GEMMA, **CAUSAL} if gemma else CAUSAL
    expert = build("clip_llama", "late" if gemma else "kv", time="token", **options).expert
    ours = expert.backbone.config
    config = (GemmaConfig if gemma else LlamaConfig)(
        **{name: getattr(ours, name) for name in ("hidden_size", "intermediate_size", "num_hidden_layers")},
        **{name: getattr(ours, name) for name in ("num_attention_heads", "num_key_value_heads", "head_dim")},
        **{name: getattr(ours, name) for name in ("rms_norm_eps", "rope_parameters", "max_position_embeddings")},
        vocab_size=1,
        pad_token_id=0,
    )
    plain = (GemmaModel if gemma else LlamaModel)(config).eval()
    assert plain.layers[0].self_attn.k_proj.out_features == (1 if gemma else 4) * ours.head_dim
    missing, unexpected = plain.load_state_dict(expert.backbone.state_dict(), strict=False)
    assert (missing, unexpected) == (["embed_tokens.weight"], [])
    nothing = VlmStates([None] * 3, torch.ones(2, 0, dtype=torch.bool), None)
    state, noisy, time = torch.randn(2, 5), torch.randn(2, 1, 6, 3), torch.rand(2, 1)
    embedded = expert.embed_time(time)
    found = []
    handle = expert.backbone.register_forward_pre_hook(lambda _, args: found.append(args[0][:, 0]))
    velocity_ours = expert(nothing, state, noisy, embedded)[:, 0]
    handle.remove()
    out = plain(inputs_embeds=found[0]).last_hidden_state
    assert error(velocity_ours, expert.action_out_proj(out[:, -6:])[..., :3]) < 1e-5


def test_new_gemma_has_norms_of_one() -> None:
    """A Gemma's norm weighs `1 + weight`: it starts as a norm, which transformers' default would double."""
    model = DeepFusionModel(llava_config("clip_llama"), "late", 1.0, "adarms", 4, 4, **GEMMA)
    x = torch.randn(5, 32)
    norms = [m for m in model.expert.backbone.modules() if "RMSNorm" in type(m).__name__]
    assert len(norms) == 2 * 3 + 1
    for norm in norms:
        assert torch.allclose(norm(x).square().mean(-1), torch.ones(5), atol=1e-4)


@pytest.mark.parametrize("attention", ["bidirectional", "causal"])
@pytest.mark.parametrize("samples", [1, 2])
def test_later_actions_have_no_say_if_causal(attention: str, samples: int) -> None:
    """The gradient of an action's velocity into the actions behind it is zero, exactly, and only if causal."""
    model = build("siglip_qwen2", "kv", action_attention=attention)
    x = inputs(model, samples=samples)
    noisy = x["noisy_actions"].requires_grad_()
    out = velocity(model, {**x, "noisy_actions": noisy})
    out[:, :, :3].square().sum().backward()
    assert bool(noisy.grad[:, :, 3:].any()) == (attention == "bidirectional")
    assert all(noisy.grad[:, :, index].any() for index in range(3))


def test_expert_starts_at_the_layers_that_it_reads() -> None:
    """`expert_init=vlm`: expert layer i has the weights of the VLM layer beside it, as far as that was kept."""
    model = build("clip_llama", "kv", depth=DEPTH, fusion_layers="every_2", expert_num_layers=4)
    before = model.expert.backbone.layers[3].mlp.up_proj.weight.clone()
    model.expert_from_vlm()
    text, expert = model.perception.language_model.layers, model.expert.backbone.layers
    for index, source in enumerate((1, 3, 5, 5)):
        assert torch.equal(expert[index].self_attn.k_proj.weight, text[source].self_attn.k_proj.weight)
        if source < 5:
            assert torch.equal(expert[index].mlp.up_proj.weight, text[source].mlp.up_proj.weight)
    assert torch.equal(before, expert[3].mlp.up_proj.weight)  # of the last VLM layer the keys and values are kept


# --- around it --------------------------------------------------------------------------------------------

POLICIES = [
    {"fusion_layers": "every_2", "expert_num_layers": 2, "action_attention": "causal"},
    {"fusion": "hidden", "fusion_layers": "first_2", "expert_width_multiplier": 0.5},
    {"fusion": "late", "fusion_layers": "first_2", **GEMMA, "expert_num_layers": 3},
]


@pytest.mark.medium
@pytest.mark.parametrize("changes", POLICIES)
def test_policy_acts_the_same_compiled_in_half_and_from_disk(changes: dict, tmp_path: Path) -> None:
    """One graph without breaks; bfloat16 moves the actions by about a hundredth; a checkpoint gives them again."""
    policy, batch, _ = make(**changes)
    noise = torch.randn(3, 6, 3)
    exact = policy.predict_action_chunk(batch, noise=noise)
    policy._denoise = torch.compile(policy.model.denoise, fullgraph=True, dynamic=False, backend="eager")
    assert torch.allclose(policy.predict_action_chunk(batch, noise=noise), exact, atol=1e-6)
    policy._denoise = policy.model.denoise
    policy.save_pretrained(tmp_path)
    again = type(policy).from_pretrained(tmp_path)
    assert torch.equal(again.predict_action_chunk(batch, noise=noise), exact)
    policy.config.dtype = "bfloat16"
    assert 0 < (policy.predict_action_chunk(batch, noise=noise) - exact).abs().max() < 0.1
    with pytest.raises(ValueError, match=rf"{next(iter(changes))}='.*' \(checkpoint: "):
        type(policy).from_pretrained(tmp_path, config=make_config())


def test_cut_vlm_takes_its_part_of_a_llava_on_disk(tmp_path: Path) -> None:
    """Of three layers on disk two are kept, one of them for its keys and values; the expert starts at both."""
    folder = write_llava(tmp_path, "clip_llama")
    config = make_config(expert_init="vlm", fusion_layers="first_2")
    config.vlm_path = str(folder)
    policy = DeepFusionPolicy(config)
    plain = plain_llava("clip_llama", llava_config("clip_llama", IMAGE_ID, **TEXT)).model.language_model.layers
    text, expert = policy.model.perception.language_model.layers, policy.model.expert.backbone.layers
    assert len(text) == len(expert) == 2
    for index in range(2):
        assert torch.equal(text[index].self_attn.k_proj.weight, plain[index].self_attn.k_proj.weight)
        assert torch.equal(expert[index].self_attn.v_proj.weight, plain[index].self_attn.v_proj.weight)


@pytest.mark.parametrize("changes", POLICIES)
def test_policy_takes_adapters(changes: dict) -> None:
    """LoRA on every row: as many trained parameters as are counted, and each has a gradient."""
    pytest.importorskip("peft")
    policy, batch, _ = make(**changes)
    policy.config.pretrained_path = "somewhere"
    counted = memory.lora_parameters(policy.model, 2)
    wrapped = policy.wrap_with_peft(peft_cli_overrides={"method_type": "LORA", "r": 2})
    trained = {name: p for name, p in wrapped.named_parameters() if p.requires_grad}
    assert sum(p.numel() for p in trained.values()) == sum(counted.values())
    with torch.no_grad():
        for name, parameter in trained.items():
            if ".lora_B." in name or ".modulation." in name:  # start at zero, which hides gradients before them
                parameter.normal_(std=0.1)
    loss(wrapped, batch).backward()
    assert [name for name, p in trained.items() if p.grad is None or not p.grad.any()] == []
