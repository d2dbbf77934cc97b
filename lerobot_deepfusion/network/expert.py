"""The action expert: a Llama, or a Gemma, whose every layer also attends to the VLM.

Built from transformers' own Llama units; what differs is stated here and nothing else.

Axis letters: B batch, K flow samples, T actions of a chunk, X expert tokens of one flow sample,
S prefix tokens, D expert width, N query heads, G key/value heads, H head dim.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import (
    LlamaDecoderLayer,
    LlamaPreTrainedModel,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
)
from transformers.utils.generic import maybe_autocast

from .attention import DeepFusionLlamaAttention, project_key_value
from .fusion import KeyValue, VlmStates
from .given import Given
from .masks import expert_mask, expert_positions

TIME_FEATURES = 256
MIN_PERIOD, MAX_PERIOD = 4e-3, 4.0  # of the time features, as in openpi


def make_norm(config: LlamaConfig) -> Any:
    """A Gemma's norm is `1 + weight`; the rest of it, gated GELU and one key/value head, is in the config."""
    norm = GemmaRMSNorm if config.gemma else LlamaRMSNorm
    return norm(config.hidden_size, eps=config.rms_norm_eps)


class TimeModulation(nn.Linear):
    """Flow time -> scale, shift and gate of attention and MLP; a class of its own so that FSDP can shard it."""


class DeepFusionLlamaDecoderLayer(LlamaDecoderLayer):
    """Llama or Gemma decoder layer that passes the VLM's states down to attention.

    With `time_conditioning="adarms"` the two norms are scaled and shifted, and the two residuals gated, by
    the flow time (adaLN-Zero, Peebles & Xie 2023; in RMS form pi0.5, 2025). That modulation depends on
    nothing else, so it is computed outside, for as many times at once as are known.
    """

    def __init__(self, config: LlamaConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.self_attn = DeepFusionLlamaAttention(config, layer_idx)
        self.input_layernorm, self.post_attention_layernorm = make_norm(config), make_norm(config)
        self.modulation = TimeModulation(self.hidden_size, 6 * self.hidden_size) if config.adarms else None
        narrower = config.context_width != self.hidden_size and config.context_is_hidden
        self.context_proj = nn.Linear(config.context_width, self.hidden_size, bias=False) if narrower else None

    def project_context(self, hidden_BSD: Tensor, position_embeddings: tuple[Tensor, Tensor]) -> KeyValue:
        """Keys and values of VLM hidden states; the flow time has no part in them."""
        if self.context_proj is not None:
            hidden_BSD = self.context_proj(hidden_BSD)
        return project_key_value(self.self_attn, self.input_layernorm(hidden_BSD), position_embeddings)

    def forward(  # type: ignore[override]
        self,
        hidden_states: Tensor | None,
        cross_key_value_states: KeyValue | Tensor | None = None,
        context_position_embeddings: tuple[Tensor, Tensor] | None = None,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        attention_mask: Tensor | None = None,
        modulation: Tensor | None = None,
        given: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor | KeyValue:
        """
        Args:
            hidden_states: own tokens [B, K, X, D]; None asks for the context's keys and values alone.
            cross_key_value_states: keys and values, or VLM hidden states [B, S, D] to project here.
            context_position_embeddings: cosine and sine at the context's positions, for hidden states.
            position_embeddings: cosine and sine of the own tokens.
            attention_mask: see `DeepFusionLlamaAttention`.
            modulation: `self.modulation` of the flow time, [B or 1, K, 6 * D], with AdaRMS.
            given: which of the tokens have another one, bool [B or 1, X], and that, [1, 1, 6 * D].
        """
        if isinstance(cross_key_value_states, Tensor):
            assert context_position_embeddings is not None
            cross_key_value_states = self.project_context(cross_key_value_states, context_position_embeddings)
        if hidden_states is None:
            assert cross_key_value_states is not None
            return cross_key_value_states
        x = hidden_states
        if modulation is None:
            x = x + self.self_attn(
                self.input_layernorm(x), position_embeddings, attention_mask, cross_key_value_states
            )
            return x + self.mlp(self.post_attention_layernorm(x))
        # One row for all tokens of a flow sample, or one for each.
        rows = modulation[:, :, None]
        if given is not None:
            mask, theirs = given
            rows = torch.where(mask[:, None, :, None], theirs[:, :, None], rows)
        scale_a, shift_a, gate_a, scale_m, shift_m, gate_m = rows.chunk(6, dim=-1)
        normed = self.input_layernorm(x) * (1 + scale_a) + shift_a
        x = x + gate_a * self.self_attn(normed, position_embeddings, attention_mask, cross_key_value_states)
        normed = self.post_attention_layernorm(x) * (1 + scale_m) + shift_m
        return x + gate_m * self.mlp(normed)


class DeepFusionLlamaModel(LlamaPreTrainedModel):
    """Walks its layers beside the VLM's: layer l reads entry l of the VLM's states."""

    _no_split_modules = ["DeepFusionLlamaDecoderLayer"]
    main_input_name = "inputs_embeds"  # there are no token embeddings for transformers to look for

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.layers = nn.ModuleList(
            DeepFusionLlamaDecoderLayer(config, index) for index in range(config.num_hidden_layers)
        )
        self.norm = make_norm(config)
        self.rotary_emb = LlamaRotaryEmbedding(config)
        self.gradient_checkpointing = False
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, GemmaRMSNorm):
            nn.init.zeros_(module.weight)
        if isinstance(module, DeepFusionLlamaDecoderLayer) and module.modulation is not None:
            # Gates start at one and the rest at zero, so that the first forward pass is a plain Llama's.
            nn.init.zeros_(module.modulation.weight)
            bias = torch.zeros(6, self.config.hidden_size)
            bias[[2, 5]] = 1.0
            with torch.no_grad():
                module.modulation.bias.copy_(bias.flatten())

    def forward(
        self,
        inputs_embeds: Tensor,
        vlm_states: VlmStates,
        position_ids: Tensor,
        attention_mask: Tensor | None = None,
        modulations: Tensor | None = None,
        given: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Own tokens [B, K, X, D] and, with AdaRMS, modulations [L, B or 1, K, 6 * D] -> normed output.

        `given` is which of the tokens have modulations of their own, bool [B or 1, X], and those, [L, 1, 1, 6 * D].
        """
        x = inputs_embeds
        position_embeddings = self.rotary_emb(x, position_ids)
        for index, (layer, context) in enumerate(zip(self.layers, vlm_states.context, strict=True)):
            x = layer(
                x,
                context,
                vlm_states.position_embeddings,
                position_embeddings,
                attention_mask,
                None if modulations is None else modulations[index],
                None if given is None else (given[0], given[1][index]),
            )
        return self.norm(x)

    def project_contexts(self, vlm_states: VlmStates) -> VlmStates:
        """The same states with every context as keys and values: once per observation, not per step."""
        context = [
            layer(None, state, vlm_states.position_embeddings)
            for layer, state in zip(self.layers, vlm_states.context, strict=True)
        ]
        return replace(vlm_states, context=context)


@lru_cache
def _frequencies() -> tuple[list[float], list[float], list[float]]:
    """Turns within [0, 1] of each time feature, and the same as an eighth's multiple and what is left of it."""
    half = TIME_FEATURES // 2
    exact = [(MAX_PERIOD / MIN_PERIOD) ** -(index / (half - 1)) / MIN_PERIOD for index in range(half)]
    coarse = [round(8 * turns) / 8 for turns in exact]
    return exact, coarse, [turns - part for turns, part in zip(exact, coarse, strict=True)]


def time_features(time: Tensor) -> Tensor:
    """Sine and cosine features of the flow time: [...] -> [..., `TIME_FEATURES`].

    Periods go geometrically from `MIN_PERIOD` to `MAX_PERIOD`, as in openpi. The shortest turns 250 times within
    [0, 1], of which float32 would leave an angle wrong by 1e-4, and Apple's GPUs have no float64. So time and turns
    are split: the product of the coarse parts (13 and 11 bits) is exact, and so is what is left of it without its
    whole turns; the rest is small. Against float64 the worst error is 4.2e-7.
    """
    exact, coarse, rest = (torch.tensor(part, dtype=torch.float32, device=time.device) for part in _frequencies())
    time = time.float()[..., None]
    start = (time * 4096).round() / 4096
    turns = start * coarse
    turns = turns - turns.round() + (start * rest + (time - start) * exact)
    angle = 2 * math.pi * (turns - turns.round())
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


def exactly(module: nn.Module, x: Tensor) -> Tensor:
    """A small module in the precision of its weights, under autocast too: it costs little, and states, actions and
    velocities, rounded to the eight bits of bfloat16, are off by up to a hundredth of their spread.
    """
    with maybe_autocast(x.device.type, enabled=False):
        return module(x.to(next(module.parameters()).dtype))


class DeepFusionActionExpert(nn.Module):
    """State, time and noisy actions in, velocity out, with the VLM's states beside every layer.

    Under autocast the layers alone compute in bfloat16, and what is embedded is rounded to it; what stands before and
    behind them is exact.
    """

    def __init__(self, config: LlamaConfig, max_state_dim: int, max_action_dim: int) -> None:
        super().__init__()
        width = config.hidden_size
        self.adarms, self.causal = config.adarms, config.causal
        self.state_in_proj = nn.Linear(max_state_dim, width)
        self.action_in_proj = nn.Linear(max_action_dim, width)
        self.time_mlp = nn.Sequential(nn.Linear(TIME_FEATURES, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.backbone = DeepFusionLlamaModel(config)
        self.action_out_proj = nn.Linear(width, max_action_dim)

    def embed_time(self, time: Tensor) -> Tensor:
        """What the layers need to know of flow times in [0, 1], where 1 is noise.

        Args:
            time: [B, K]; when acting, all times of the schedule in the place of K.

        Returns:
            Under `token` one token a time, [1, B, K, D]; under `adarms` every layer's modulation, [L, B, K, 6 * D].
        """
        embedding = exactly(self.time_mlp, time_features(time))
        if not self.adarms:
            return embedding[None]
        layers: Any = self.backbone.layers
        return torch.stack([layer.modulation(embedding) for layer in layers])

    def forward(
        self,
        vlm_states: VlmStates,
        state: Tensor,
        noisy_actions: Tensor,
        time: Tensor,
        given: Given | None = None,
    ) -> Tensor:
        """
        Args:
            vlm_states: of the B observations.
            state: [B, P], of any size up to the padded one.
            noisy_actions: [B, K, T, A], likewise.
            time: as `embed_time` gives it; its B may be 1 for a time that all share.
            given: actions that take the place of noisy ones, at their own flow time: the layers' modulation of those
                tokens is theirs under `adarms`, and under `token`, where one token has the time of all others, they
                are given the difference.

        Returns:
            What the objective asks for, a velocity or the chunk itself, [B, K, T, A].
        """
        if given is not None:
            noisy_actions = given.put(noisy_actions)
        samples, chunk, action_dim = noisy_actions.shape[1:]
        state = _pad_last(state, self.state_in_proj.in_features)
        noisy_actions = _pad_last(noisy_actions, self.action_in_proj.in_features)
        tokens = [exactly(self.state_in_proj, state)[:, None, None].expand(-1, samples, -1, -1)]
        if not self.adarms:
            tokens.append(time[0][:, :, None].expand(len(state), -1, -1, -1))
        tokens.append(exactly(self.action_in_proj, noisy_actions))
        if given is not None and not self.adarms:
            tokens[-1] = tokens[-1] + (given.time - time)[0][:, :, None] * given.mask[:, None, :, None]
        x = torch.cat(tokens, dim=2)  # [B, K, X, D]
        if x.device.type != "meta" and torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        valid, size = vlm_states.valid, x.shape[2]
        out = self.backbone(
            x,
            vlm_states,
            position_ids=expert_positions(valid, size, samples),
            attention_mask=expert_mask(valid, size, samples, self.causal),
            modulations=time if self.adarms else None,
            given=(F.pad(given.mask, (size - chunk, 0)), given.time) if given is not None and self.adarms else None,
        )
        return exactly(self.action_out_proj, out[:, :, -chunk:])[..., :action_dim]


def _pad_last(x: Tensor, size: int) -> Tensor:
    return F.pad(x, (0, size - x.shape[-1]))
