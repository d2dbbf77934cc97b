"""The founding plan written out with nothing shared: the reference that the fast code is compared with.

Attention is a matrix product and a softmax over `[context | own tokens]`, with a loop over the batch and over
the flow samples and without padding, masks, caches, fused kernels or broadcasting over heads. Only the
weights come from the model under test.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rotate(x: Tensor, positions: Tensor, theta: float) -> Tensor:
    """Rotary embedding of [heads, tokens, dim] (Su et al. 2021, in Llama's half-split layout)."""
    half = x.shape[-1] // 2
    frequency = theta ** (-torch.arange(half, dtype=x.dtype) / half)
    angle = positions[:, None].to(x.dtype) * frequency
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()], -1)


def rms_norm(norm: torch.nn.Module, x: Tensor) -> Tensor:
    if is_gemma(norm):
        return (1 + norm.weight) * x / (x.pow(2).mean(-1, keepdim=True) + norm.eps).sqrt()
    return norm.weight * x / (x.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon).sqrt()


def is_gemma(norm: torch.nn.Module) -> bool:
    return "Gemma" in type(norm).__name__


def gelu(x: Tensor) -> Tensor:
    """Gemma's, by tanh (Hendrycks & Gimpel 2016)."""
    return x / 2 * (1 + ((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)).tanh())


def heads(linear: torch.nn.Module, x: Tensor, dim: int) -> Tensor:
    out = x @ linear.weight.T
    out = out if linear.bias is None else out + linear.bias
    return out.unflatten(-1, (-1, dim)).transpose(0, 1)


def layer(
    module: torch.nn.Module,
    x: Tensor,
    key_value: tuple[Tensor, Tensor],
    start: int,
    time: Tensor | None,
    causal: bool = False,
) -> Tensor:
    """One expert layer for one flow sample of one observation: x [X, D], context [G, S, H] each."""
    attention = module.self_attn
    dim, theta = attention.head_dim, attention.config.rope_parameters["rope_theta"]
    one = [torch.ones(()), torch.zeros(()), torch.ones(())] * 2
    parts = one if time is None else module.modulation(time).chunk(6, dim=-1)
    scale_a, shift_a, gate_a = (parts[0] + 1 if time is not None else parts[0]), parts[1], parts[2]
    scale_m, shift_m, gate_m = (parts[3] + 1 if time is not None else parts[3]), parts[4], parts[5]

    normed = rms_norm(module.input_layernorm, x) * scale_a + shift_a
    positions = start + torch.arange(len(x))
    query = rotate(heads(attention.q_proj, normed, dim), positions, theta)
    key = torch.cat([key_value[0], rotate(heads(attention.k_proj, normed, dim), positions, theta)], dim=1)
    value = torch.cat([key_value[1], heads(attention.v_proj, normed, dim)], dim=1)
    out = []
    for head in range(len(query)):
        group = head * len(key) // len(query)
        rows = []
        for index in range(len(x)):
            seen = len(key[group]) - (len(x) - 1 - index if causal else 0)
            weights = (query[head, index] @ key[group, :seen].T / dim**0.5).softmax(-1)
            rows.append(weights @ value[group, :seen])
        out.append(torch.stack(rows))
    x = x + gate_a * attention.o_proj(torch.cat(out, dim=-1))
    normed = rms_norm(module.post_attention_layernorm, x) * scale_m + shift_m
    mlp = module.mlp
    activation = gelu if is_gemma(module.input_layernorm) else torch.nn.functional.silu
    return x + gate_m * mlp.down_proj(activation(mlp.gate_proj(normed)) * mlp.up_proj(normed))


def velocity(
    model,
    plain,
    pixels,
    token_ids,
    valid,
    state,
    noisy,
    time,
    sources: list[int] | None = None,
    causal: bool = False,
    given: tuple[list[int], Tensor] | None = None,
) -> Tensor:
    """Velocity [B, K, T, A] of a `DeepFusionModel` whose VLM has the weights of `plain`.

    `plain` is transformers' whole LLaVA text model given the prefix embeddings row by row, without padding.
    `sources` has the VLM layer beside each expert layer, by default the one of its own depth. `given` has how many
    first actions of each chunk are given, and what they are.
    """
    expert, fusion = model.expert, model.perception.fusion
    sources = sources or list(range(len(expert.backbone.layers)))
    assert len(sources) == len(expert.backbone.layers)
    out = torch.zeros_like(noisy)
    for b in range(len(noisy)):
        keep = valid[b]
        embeds = model.perception.embed(pixels[b : b + 1], token_ids[b : b + 1])[:, keep]
        run = plain(inputs_embeds=embeds, output_hidden_states=True, use_cache=True)
        for k in range(noisy.shape[1]):
            contexts = [read(plain, run, fusion, index, sources[-1]) for index in sources]
            clean = noisy[b, k][:0] if given is None else given[1][b, : given[0][b]]
            out[b, k] = _one(expert, contexts, keep.sum().item(), state[b], noisy[b, k], time[b, k], causal, clean)
    return out


def read(plain, run, fusion: str, index: int, last: int) -> Tensor | tuple[Tensor, Tensor]:
    """What an expert layer reads of a run of the whole VLM."""
    if fusion == "kv":
        cached = run.past_key_values.layers[index]
        return cached.keys[0], cached.values[0]
    if fusion == "hidden":
        return run.hidden_states[index][0]
    whole = last + 1 == len(plain.layers)  # then transformers has normed it
    return run.last_hidden_state[0] if whole else rms_norm(plain.norm, run.hidden_states[last + 1])[0]


def _one(expert, contexts, length, state, noisy, time, causal, clean) -> Tensor:
    from lerobot_deepfusion.network.expert import time_features  # tested on its own

    embedded = expert.time_mlp(time_features(time))
    tokens = [expert.state_in_proj(pad(state, expert.state_in_proj))[None]]
    if not expert.adarms:
        tokens.append(embedded[None])
    chunk = torch.cat([clean, noisy[len(clean) :]])
    own = expert.time_mlp(time_features(torch.tensor([0.0] * len(clean) + [float(time)] * (len(chunk) - len(clean)))))
    actions = expert.action_in_proj(pad(chunk, expert.action_in_proj))
    tokens.append(actions if expert.adarms else actions + own - embedded)
    x = torch.cat(tokens)
    times = torch.cat([embedded[None], own])
    for module, context in zip(expert.backbone.layers, contexts, strict=True):
        if isinstance(context, Tensor):
            states = context
            if module.context_proj is not None:
                states = states @ module.context_proj.weight.T
            states = rms_norm(module.input_layernorm, states)
            attention = module.self_attn
            theta = attention.config.rope_parameters["rope_theta"]
            key = rotate(heads(attention.k_proj, states, attention.head_dim), torch.arange(length), theta)
            context = key, heads(attention.v_proj, states, attention.head_dim)
        x = layer(module, x, context, length, times if expert.adarms else None, causal)
    x = rms_norm(expert.backbone.norm, x)[-len(noisy) :]
    return expert.action_out_proj(x)[:, : noisy.shape[-1]]


def pad(x: Tensor, linear: torch.nn.Linear) -> Tensor:
    return torch.cat([x, x.new_zeros(*x.shape[:-1], linear.in_features - x.shape[-1])], dim=-1)
