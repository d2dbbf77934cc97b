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
    return norm.weight * x / (x.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon).sqrt()


def heads(linear: torch.nn.Module, x: Tensor, dim: int) -> Tensor:
    out = x @ linear.weight.T
    out = out if linear.bias is None else out + linear.bias
    return out.unflatten(-1, (-1, dim)).transpose(0, 1)


def layer(
    module: torch.nn.Module, x: Tensor, key_value: tuple[Tensor, Tensor], start: int, time: Tensor | None
) -> Tensor:
    """One expert layer for one flow sample of one observation: x [X, D], context [G, S, H] each."""
    attention = module.self_attn
    dim, theta = attention.head_dim, attention.config.rope_parameters["rope_theta"]
    one = [torch.ones(()), torch.zeros(()), torch.ones(())] * 2
    parts = one if time is None else module.modulation(time).chunk(6)
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
        weights = (query[head] @ key[group].T / dim**0.5).softmax(-1)
        out.append(weights @ value[group])
    x = x + gate_a * attention.o_proj(torch.cat(out, dim=-1))
    normed = rms_norm(module.post_attention_layernorm, x) * scale_m + shift_m
    mlp = module.mlp
    return x + gate_m * mlp.down_proj(torch.nn.functional.silu(mlp.gate_proj(normed)) * mlp.up_proj(normed))


def velocity(model, plain, pixels, token_ids, valid, state, noisy, time) -> Tensor:
    """Velocity [B, K, T, A] of a `DeepFusionModel` whose VLM has the weights of `plain`.

    `plain` is transformers' LLaVA text model given the prefix embeddings row by row, without padding.
    """
    expert = model.expert
    out = torch.zeros_like(noisy)
    for b in range(len(noisy)):
        keep = valid[b]
        embeds = model.perception.embed(pixels[b : b + 1], token_ids[b : b + 1])[:, keep]
        run = plain(inputs_embeds=embeds, output_hidden_states=True, use_cache=True)
        for k in range(noisy.shape[1]):
            out[b, k] = _one(
                expert, run, keep.sum().item(), state[b], noisy[b, k], time[b, k], model.perception.fusion
            )
    return out


def _one(expert, run, length, state, noisy, time, fusion) -> Tensor:
    from lerobot_deepfusion.expert import time_features  # tested on its own

    embedded = expert.time_mlp(time_features(time))
    tokens = [expert.state_in_proj(pad(state, expert.state_in_proj))[None]]
    if not expert.adarms:
        tokens.append(embedded[None])
    tokens.append(expert.action_in_proj(pad(noisy, expert.action_in_proj)))
    x = torch.cat(tokens)
    for index, module in enumerate(expert.backbone.layers):
        if fusion == "kv":
            cached = run.past_key_values.layers[index]
            context = cached.keys[0], cached.values[0]
        else:
            states = run.last_hidden_state if fusion == "late" else run.hidden_states[index]
            states = states[0]
            if module.context_proj is not None:
                states = states @ module.context_proj.weight.T
            states = rms_norm(module.input_layernorm, states)
            attention = module.self_attn
            theta = attention.config.rope_parameters["rope_theta"]
            key = rotate(heads(attention.k_proj, states, attention.head_dim), torch.arange(length), theta)
            context = key, heads(attention.v_proj, states, attention.head_dim)
        x = layer(module, x, context, length, embedded if expert.adarms else None)
    x = rms_norm(expert.backbone.norm, x)[-len(noisy) :]
    return expert.action_out_proj(x)[:, : noisy.shape[-1]]


def pad(x: Tensor, linear: torch.nn.Linear) -> Tensor:
    return torch.cat([x, x.new_zeros(*x.shape[:-1], linear.in_features - x.shape[-1])], dim=-1)
