"""The founding plan taken literally: the baseline that shows what its shortcuts are worth.

The VLM is a stock causal language model with all its layers, `output_hidden_states=True` and the logits that come
with it. Every denoise step joins the hidden states of each depth with the expert's own tokens and projects all of
them to keys and values; attention is eager, over repeated heads. Given the weights of a `DeepFusionModel` with
`fusion="hidden"` and `time_conditioning="token"` it computes the same velocity.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from lerobot.policies.common.flow_matching import euler_integrate
from torch import Tensor, nn
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb, repeat_kv

from lerobot_deepfusion.network.expert import time_features
from lerobot_deepfusion.network.flow import flow_error, interpolate
from lerobot_deepfusion.network.lockstep import DeepFusionModel
from lerobot_deepfusion.network.masks import positions_from_valid

from .arms import TrainedArm, deepfusion_model
from .shapes import Inputs, Shape

Rotary = tuple[Tensor, Tensor]


class LiteralPlan(nn.Module):
    """The plan around the weights of `model`, which are shared.

    Args:
        model: with `fusion="hidden"` and `time_conditioning="token"`.
    """

    def __init__(self, model: DeepFusionModel) -> None:
        super().__init__()
        perception = model.perception
        config = copy.deepcopy(perception.config.text_config)
        config.num_hidden_layers += 1  # the last layer, which nothing reads
        config._attn_implementation = "eager"
        self.vlm = LlamaForCausalLM(config)
        self.vlm.model.load_state_dict(
            perception.language_model.state_dict(keep_vars=True), strict=False, assign=True
        )
        self.tower, self.projector = perception.vision_tower, perception.multi_modal_projector
        self.expert = model.expert
        self._embed = perception.embed

    def perceive(self, pixels: Tensor, tokens: Tensor, valid: Tensor) -> tuple[Tensor, ...]:
        """Hidden states [B, S, D], one for each depth."""
        run = self.vlm(
            inputs_embeds=self._embed(pixels, tokens),
            attention_mask=valid.long(),
            position_ids=positions_from_valid(valid),
            output_hidden_states=True,
            use_cache=False,
        )
        return run.hidden_states

    def velocity(
        self, hidden: tuple[Tensor, ...], valid: Tensor, state: Tensor, noisy: Tensor, time: Tensor
    ) -> Tensor:
        """Velocity [B, T, A] of noisy actions [B, T, A] at `time` [B]."""
        expert = self.expert
        x = torch.cat(
            [
                expert.state_in_proj(state)[:, None],
                expert.time_mlp(time_features(time))[:, None],
                expert.action_in_proj(noisy),
            ],
            dim=1,
        )
        own = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        seen = torch.cat([valid, own], dim=1)
        bias = torch.zeros(seen.shape, device=x.device).masked_fill(~seen, torch.finfo(torch.float32).min)
        rotary = expert.backbone.rotary_emb(x, positions_from_valid(seen))
        for layer, state_of_depth in zip(expert.backbone.layers, hidden, strict=False):
            x = _layer(layer, x, state_of_depth, rotary, bias[:, None, None])
        return expert.action_out_proj(expert.backbone.norm(x)[:, -noisy.shape[1] :])


def _layer(layer: Any, x: Tensor, context: Tensor, rotary: Rotary, bias: Tensor) -> Tensor:
    """One expert layer over `[VLM hidden states | own tokens]`."""
    attention, prefix = layer.self_attn, context.shape[1]
    normed = layer.input_layernorm(torch.cat([context, x], dim=1))
    query, key, value = (
        projection(normed).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    query, key = apply_rotary_pos_emb(query, key, *rotary)
    query = query[:, :, prefix:]
    key, value = (repeat_kv(states, attention.num_key_value_groups) for states in (key, value))
    weights = (query @ key.transpose(2, 3) * attention.scaling + bias).softmax(-1)
    x = x + attention.o_proj((weights @ value).transpose(1, 2).flatten(2))
    return x + layer.mlp(layer.post_attention_layernorm(x))


class Literal(TrainedArm):
    """`LiteralPlan` at a shape."""

    model: LiteralPlan

    def __init__(self, shape: Shape, inputs: Inputs) -> None:
        self.inputs = inputs
        self.model = LiteralPlan(deepfusion_model(shape, "hidden", "token")).to(inputs.state.device)
        self.vlm = nn.ModuleList([self.model.vlm, self.model.tower])
        self.valid = torch.ones_like(inputs.tokens, dtype=torch.bool)

    def loss(self) -> Tensor:
        x = self.inputs
        noisy, target = interpolate(x.actions, x.noise[:, :1], x.time[:, :1])
        hidden = self.model.perceive(x.pixels, x.tokens, self.valid)
        velocity = self.model.velocity(hidden, self.valid, x.state, noisy[:, 0], x.time[:, 0])
        return flow_error(velocity[:, None], target).mean()

    @torch.no_grad()
    def act(self, steps: int) -> Tensor:
        x = self.inputs
        hidden = self.model.perceive(x.pixels, x.tokens, self.valid)
        return euler_integrate(
            lambda noisy, time: self.model.velocity(hidden, self.valid, x.state, noisy, time), x.noise[:, 0], steps
        )
