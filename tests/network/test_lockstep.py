"""Exactness of the two streams, in float32 with enlarged weights (see conftest)."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from transformers import LlamaConfig, LlamaModel
from transformers.models.llama.modeling_llama import repeat_kv

from lerobot_deepfusion.network.attention import attend
from lerobot_deepfusion.network.flow import flow_error
from lerobot_deepfusion.network.fusion import VlmStates
from lerobot_deepfusion.network.given import Given
from lerobot_deepfusion.network.lockstep import DeepFusionModel
from tests.llavas import IMAGE_TOKEN_ID, MAKES, PAD_TOKEN_ID, enlarge, llava_config, plain_image_tokens, plain_llava
from tests.network.reference import rms_norm
from tests.network.reference import velocity as reference_velocity

STATE_DIM, ACTION_DIM, CHUNK = 5, 3, 6


def build(
    make: str, fusion: str, width: float = 1.0, time: str = "adarms", depth: int = 3, **switch
) -> DeepFusionModel:
    torch.manual_seed(0)
    config = llava_config(make, num_hidden_layers=depth)
    model = DeepFusionModel(config, fusion, width, time, STATE_DIM + 2, ACTION_DIM + 1, **switch).eval()
    source = plain_llava(make, config).model.state_dict()
    perception = model.perception
    perception.load_state_dict({key: source[key] for key in perception.state_dict()})
    enlarge(model.expert)
    with torch.no_grad():  # sharper attention with a larger say, so that what it reads wrongly shows
        for layer in model.expert.backbone.layers:
            layer.self_attn.q_proj.weight.mul_(2)
            layer.self_attn.k_proj.weight.mul_(2)
            layer.self_attn.o_proj.weight.mul_(4)
    return model


def inputs(model: DeepFusionModel, cameras: int = 2, samples: int = 2, left: bool = False, batch: int = 4) -> dict:
    """A ragged batch: texts of 3, 5, 7, ... tokens around the image tokens, padded at one end."""
    generator = torch.Generator().manual_seed(3)
    images = [IMAGE_TOKEN_ID] * (model.perception.image_tokens * cameras)
    rows = []
    for index in range(batch):
        text = torch.randint(1, IMAGE_TOKEN_ID, (3 + 2 * index,), generator=generator).tolist()
        rows.append([text[0], *images, *text[1:]])
    size = max(map(len, rows))
    padded = [[PAD_TOKEN_ID] * (size - len(r)) + r if left else r + [PAD_TOKEN_ID] * (size - len(r)) for r in rows]
    token_ids = torch.tensor(padded)
    vision = model.perception.config.vision_config.image_size
    return {
        "pixels": torch.randn(batch, cameras, 3, vision, vision, generator=generator),
        "token_ids": token_ids,
        "valid": token_ids != PAD_TOKEN_ID,
        "right_padded": not left,
        "state": torch.randn(batch, STATE_DIM, generator=generator),
        "noisy_actions": torch.randn(batch, samples, CHUNK, ACTION_DIM, generator=generator),
        "time": torch.rand(batch, samples, generator=generator),
    }


def prefill(model: DeepFusionModel, x: dict) -> VlmStates:
    return model.prefill(x["pixels"], x["token_ids"], x["valid"], x["right_padded"])


def velocity(model: DeepFusionModel, x: dict) -> torch.Tensor:
    return model.denoise(prefill(model, x), x["state"], x["noisy_actions"], model.embed_time(x["time"]))


def rows(x: dict, index: slice) -> dict:
    return {key: value[index] if isinstance(value, torch.Tensor) else value for key, value in x.items()}


def unpadded_row(x: dict, index: int) -> dict:
    """One row of the inputs, without its padding."""
    row = rows(x, slice(index, index + 1))
    keep = row["valid"][0]
    return {**row, "token_ids": row["token_ids"][:, keep], "valid": row["valid"][:, keep]}


def error(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference relative to the largest entry."""
    return ((a - b).abs().max() / b.abs().max()).item()


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("cameras", [1, 3])
def test_vlm_stream_equals_transformers(make: str, cameras: int, left: bool) -> None:
    """Hidden states of each layer, the keys and values, and the last state, against plain LLaVA.

    Worst error measured: 0, bit for bit. The tolerance of 1e-5 catches a wrong position or feature layer (> 0.1).
    """
    plain = plain_llava(make)
    models = {fusion: build(make, fusion) for fusion in ("kv", "hidden", "late")}
    x = inputs(models["kv"], cameras, left=left)
    positions = (x["valid"].long().cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        images = models["hidden"].perception.embed_images(x["pixels"])
        assert error(images.flatten(0, 1), plain_image_tokens(plain, make, x["pixels"].flatten(0, 1))) < 1e-5
        embeds = models["hidden"].perception.embed(x["pixels"], x["token_ids"])
        text = plain.model.get_input_embeddings()(x["token_ids"])
        assert torch.equal(embeds[x["token_ids"] != IMAGE_TOKEN_ID], text[x["token_ids"] != IMAGE_TOKEN_ID])
        assert torch.equal(embeds[x["token_ids"] == IMAGE_TOKEN_ID], images.flatten(0, 1))
        out = plain.model.language_model(
            inputs_embeds=embeds,
            attention_mask=x["valid"].long(),
            position_ids=positions,
            output_hidden_states=True,
            use_cache=True,
        )
        states = {fusion: prefill(model, x) for fusion, model in models.items()}
    valid = x["valid"]
    for index in range(len(models["kv"].expert.backbone.layers)):
        assert error(states["hidden"].context[index][valid], out.hidden_states[index][valid]) < 1e-5
        assert error(states["late"].context[index][valid], out.last_hidden_state[valid]) < 1e-5
        cached = out.past_key_values.layers[index]
        for ours, theirs in zip(states["kv"].context[index], (cached.keys, cached.values), strict=True):
            assert error(ours.transpose(1, 2)[valid], theirs.transpose(1, 2)[valid]) < 1e-5


@pytest.mark.medium
@pytest.mark.parametrize("time", ["adarms", "token"])
@pytest.mark.parametrize("width", [1.0, 0.5])
@pytest.mark.parametrize("left", [False, True])
@torch.no_grad()
def test_velocity_equals_reference(make: str, fusion: str, width: float, time: str, left: bool) -> None:
    """The whole pass against `reference.py`: no padding, masks, caches or fused attention there.

    Worst error measured: 8.5e-7. What 1e-5 catches is measured in `test_mutations_are_seen`.
    """
    model = build(make, fusion, width, time)
    x = inputs(model, left=left)
    names = ("pixels", "token_ids", "valid", "state", "noisy_actions", "time")
    expected = reference_velocity(model, plain_llava(make).model.language_model, *(x[name] for name in names))
    assert error(velocity(model, x), expected) < 1e-5


@pytest.mark.parametrize("time", ["adarms", "token"])
@torch.no_grad()
def test_given_actions_equal_reference(time: str) -> None:
    """The first actions of a chunk clean and at their own flow time, as many as each row has: 0, 1, 3, 5 of 6.

    Worst error measured: 4e-7. With the flow time of the others it is above 0.01, and what is noisy under a given
    action counts for nothing.
    """
    model = build("siglip_qwen2", "kv", 0.5, time)
    x = inputs(model)
    counts, actions = [0, 1, 3, 5], torch.randn(4, CHUNK, ACTION_DIM)
    mask = torch.arange(CHUNK) < torch.tensor(counts)[:, None]
    names = ("pixels", "token_ids", "valid", "state", "noisy_actions", "time")
    plain = plain_llava("siglip_qwen2").model.language_model
    expected = reference_velocity(model, plain, *(x[name] for name in names), given=(counts, actions))

    def found(noisy: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
        times = model.embed_time(x["time"])
        return model.denoise(prefill(model, x), x["state"], noisy, times, Given(mask, actions, clean))

    clean = model.embed_time(torch.zeros(1, 1))
    assert error(found(x["noisy_actions"], clean), expected) < 1e-5
    assert error(found(x["noisy_actions"], model.embed_time(torch.ones(1, 1))), expected) > 0.01
    other = torch.where(mask[:, None, :, None], 7.0, x["noisy_actions"])
    assert torch.equal(found(other, clean), found(x["noisy_actions"], clean))
    nothing = Given(torch.zeros_like(mask), actions, clean)
    plain_pass = velocity(model, x)
    assert torch.equal(
        model.denoise(prefill(model, x), x["state"], x["noisy_actions"], model.embed_time(x["time"]), nothing),
        plain_pass,
    )


@torch.no_grad()
def test_cached_contexts_equal_joint_pass(make: str, fusion: str) -> None:
    """Acting (contexts projected once) and training (projected in the layer). Worst error: 0."""
    model = build(make, fusion)
    x = inputs(model, samples=1)
    states = model.project_contexts(prefill(model, x))
    cached = model.denoise(states, x["state"], x["noisy_actions"], model.embed_time(x["time"]))
    assert error(cached, velocity(model, x)) < 1e-5


@torch.no_grad()
def test_batch_composition_does_not_matter(make: str, fusion: str) -> None:
    """A ragged batch of four equals four batches of one without padding. Worst error: 8.9e-7."""
    model = build(make, fusion)
    x = inputs(model)
    together = velocity(model, x)
    for index in range(4):
        assert error(velocity(model, unpadded_row(x, index)), together[index : index + 1]) < 1e-5


def test_flow_samples_are_separate(fusion: str) -> None:
    """K = 3 equals three passes of K = 1, values (worst 2.8e-7) and mean gradient (6.8e-7)."""
    model = build("siglip_qwen2", fusion)
    x = inputs(model, samples=3)
    target = torch.randn(x["noisy_actions"].shape, generator=torch.Generator().manual_seed(9))
    joint = velocity(model, x)
    flow_error(joint, target).mean().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    for k in range(3):
        one = {**x, "noisy_actions": x["noisy_actions"][:, k : k + 1], "time": x["time"][:, k : k + 1]}
        out = velocity(model, one)
        assert error(out, joint[:, k : k + 1]) < 1e-5
        (flow_error(out, target[:, k : k + 1]).mean() / 3).backward()
    # Against the largest gradient: a key's bias has none in exact arithmetic, only rounding.
    largest = max(gradient.norm() for gradient in gradients.values())
    for name, parameter in model.named_parameters():
        assert (parameter.grad - gradients[name]).norm() <= 1e-5 * largest, name


@torch.no_grad()
def test_vlm_never_sees_the_actions(make: str, fusion: str) -> None:
    """What it left for the expert is the same to the bit after a step with other state, noise and time."""
    model = build(make, fusion)
    x = inputs(model)
    states = prefill(model, x)
    before = copy.deepcopy(states.context)
    model.denoise(states, -x["state"], 100 * x["noisy_actions"], model.embed_time(1 - x["time"]))
    for a, b in zip(before, states.context, strict=True):
        for left, right in zip(a, b, strict=True):
            assert torch.equal(left, right)


def test_gradient_reaches_only_what_is_read(fusion: str) -> None:
    """`late` reads the last state alone; nothing is kept that has no gradient, in any fusion.

    Exact: a parameter without influence has gradient None or zero, and those kept all have one.
    """
    model = build("clip_llama", fusion)
    x = inputs(model)
    states = prefill(model, x)
    if fusion == "late":
        assert all(context is states.context[0] for context in states.context)
        # Cut before the last state: no layer reaches the velocity by another way.
        out = model.denoise(states.detach(), x["state"], x["noisy_actions"], model.embed_time(x["time"]))
        out.square().mean().backward()
        assert all(p.grad is None for p in model.perception.parameters())
        model.zero_grad()
    velocity(model, x).square().mean().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # A class token's query is never read, but its position embedding shares a table with those that are.
    assert without == []


@torch.no_grad()
def test_grouped_queries_without_a_kernel_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside a mask on a GPU keys and values are repeated for every head, which is the same attention; without one,
    or on a CPU, they are not. Worst difference: 3e-7.
    """
    query, mask = torch.randn(2, 6, 5, 8), torch.rand(2, 1, 5, 7) < 0.7
    key, value = torch.randn(2, 2, 2, 7, 8).unbind()
    mask[..., 0] = True
    expected = attend(query, key, value, mask, 3, scale=0.3)
    asked = []

    def attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, enable_gqa: bool, **options):
        asked.append((key.shape[1], enable_gqa))
        if key.device.type == "meta":
            return torch.empty_like(query)
        return native(query, key, value, enable_gqa=enable_gqa, **options)

    native = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attention)
    meta = [x.to("meta") for x in (query, key, value, mask)]
    attend(query, key, value, mask, 3)
    attend(*meta, 3)
    attend(*meta[:3], None, 3)
    assert asked == [(2, True), (6, False), (2, True)]
    monkeypatch.undo()
    repeated = attend(query, repeat_kv(key, 3), repeat_kv(value, 3), mask, 1, scale=0.3)
    assert (repeated - expected).abs().max() < 2e-6


@torch.no_grad()
def test_expert_without_context_is_a_plain_llama() -> None:
    """A copied expert that reads nothing equals transformers' Llama. Worst error: 0."""
    text = LlamaConfig(**llava_config("clip_llama").text_config.to_dict())
    torch.manual_seed(0)
    plain = LlamaModel(text).eval()
    enlarge(plain)
    backbone = build("clip_llama", "kv", time="token").expert.backbone
    missing, _ = backbone.load_state_dict(plain.state_dict(), strict=False)
    assert missing == []
    x = torch.randn(2, 7, text.hidden_size)
    nothing = VlmStates([None] * len(backbone.layers), torch.ones(2, 0, dtype=torch.bool), None)
    causal = torch.ones(7, 7, dtype=torch.bool).tril()[None, None]
    ours = backbone(x, nothing, torch.arange(7)[None].expand(2, -1), causal)
    assert error(ours, plain(inputs_embeds=x).last_hidden_state) < 1e-5


def test_gradients_equal_finite_differences(fusion: str) -> None:
    """Directional derivatives over all parameters at once. Worst relative error: 1.5e-6.

    Everything runs in float64; Llama's norms, which compute in float32 whatever they are given, are replaced
    by the same formula. A context detached or masked wrongly in the backward pass gives errors of order one.
    """
    model = build("siglip_qwen2", fusion).double()
    x = {
        key: v.double() if isinstance(v, torch.Tensor) and v.is_floating_point() else v
        for key, v in inputs(model).items()
    }
    model.perception.language_model.rotary_emb.float(), model.expert.backbone.rotary_emb.float()
    for module in model.modules():
        if "RMSNorm" in type(module).__name__:
            module.forward = partial(rms_norm, module)
    parameters = [p for p in model.parameters() if p.requires_grad]
    velocity(model, x).square().mean().backward()
    generator = torch.Generator().manual_seed(5)
    for _ in range(3):
        direction = [
            torch.randn(p.shape, generator=generator, dtype=torch.float64) * p.detach().abs() for p in parameters
        ]
        analytic = sum((p.grad * d).sum() for p, d in zip(parameters, direction, strict=True)).item()
        values = []
        for step in (1e-6, -1e-6):
            with torch.no_grad():
                torch._foreach_add_(parameters, direction, alpha=step)
                values.append(velocity(model, x).square().mean().item())
                torch._foreach_add_(parameters, direction, alpha=-step)
        numeric = (values[0] - values[1]) / 2e-6
        assert abs(numeric - analytic) < 1e-5 * abs(analytic)


@pytest.mark.parametrize("fused", MAKES)
def test_gradient_checkpointing_changes_nothing(fused: str, fusion: str) -> None:
    """Gradients with recomputation equal those without, bit for bit, and layers really run twice."""
    model = build(fused, fusion).train()
    x = inputs(model)
    calls = []
    target = model.expert.backbone.layers[0].mlp, model.perception.language_model.layers[0].mlp
    hooks = [module.register_forward_pre_hook(lambda *_: calls.append(1)) for module in target]

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        velocity(model, x).square().mean().backward()
        return [p.grad.clone() for p in model.parameters()]

    plain = gradients()
    assert len(calls) == 2
    model.gradient_checkpointing_enable()
    for a, b in zip(plain, gradients(), strict=True):
        assert torch.equal(a, b)
    assert len(calls) == 6
    for hook in hooks:
        hook.remove()


@torch.no_grad()
def test_mutations_are_seen(fusion: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the tolerance of 1e-5 would catch: each mistake moves the output by > 0.1."""
    from lerobot_deepfusion.network import expert, perception

    model = build("siglip_qwen2", fusion)
    x = inputs(model, left=True)
    right = velocity(model, x)

    def moved() -> float:
        return error(velocity(model, x), right)

    with monkeypatch.context() as patch:  # positions that count padding
        patch.setattr(perception, "positions_from_valid", lambda v: torch.arange(v.shape[1]).expand(v.shape))
        assert moved() > 0.1
    with monkeypatch.context() as patch:  # the expert's positions start again at zero
        patch.setattr(expert, "expert_positions", lambda v, n, k: torch.arange(n).repeat(k).expand(len(v), -1))
        assert moved() > 0.1
    with monkeypatch.context() as patch:  # padding is attended to
        patch.setattr(expert, "expert_mask", lambda v, n, k, _: None if k == 1 else expert_mask_all(v, n, k))
        assert moved() > 0.1
    states = prefill(model, x)
    if fusion != "late":  # layers swapped
        wrong = copy.copy(states)
        wrong.context = [states.context[i] for i in (1, 0, 2)]
        assert error(model.denoise(wrong, x["state"], x["noisy_actions"], model.embed_time(x["time"])), right) > 0.1


def expert_mask_all(valid: torch.Tensor, tokens: int, samples: int) -> torch.Tensor:
    from lerobot_deepfusion.network.masks import expert_mask

    return expert_mask(torch.ones_like(valid), tokens, samples)
