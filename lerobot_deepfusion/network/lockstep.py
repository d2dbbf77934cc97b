"""Two streams in lockstep: the VLM perceives, and layer by layer the expert acts on what it sees.

      images, prompt                     state, time, noisy actions
            |                                      |
       VLM layer 0   -- keys, values or h_0 -->  expert layer 0
            |                                      |
       VLM layer 1   -- keys, values or h_1 -->  expert layer 1
           ...                                    ...
                                                   v  velocity

The VLM never sees the expert. Its stream therefore runs first (`prefill`), in training as in acting, and the
expert's follows (`denoise`); training is `denoise` with gradients, and there is no second code path.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import LlamaConfig, PreTrainedConfig

from ..llava.empty_weights import empty_weights
from ..llava.reader import llava_config_from_dict
from .expert import DeepFusionActionExpert
from .fusion import Fusion, VlmStates, source_layers
from .given import Given
from .perception import Perception
from .positions import build_positions


class DeepFusionModel(nn.Module):
    """Perception and expert.

    Args:
        vlm_config: config of the whole LLaVA.
        fusion: `kv`, `hidden` or `late`.
        expert_width_multiplier: expert width and MLP size as a share of the text model's.
        time_conditioning: `token` or `adarms`.
        max_state_dim: padded state size.
        max_action_dim: padded action size.
        image_token_pooling: see `Perception`.
        empty_perception: build the perception under `empty_weights`, for a pretrained LLaVA's to come.
        fusion_layers: see `source_layers`.
        expert_num_layers: see `source_layers`.
        action_expert_type: `deep_llama` or `late_gemma`.
        action_attention: `bidirectional` or `causal`.
        position_3d: `none`, or the frame of the points that `prefill` is given; see `network.positions`.
        workspace_center: in that frame; see `build_positions`.
    """

    def __init__(
        self,
        vlm_config: PreTrainedConfig,
        fusion: Fusion,
        expert_width_multiplier: float,
        time_conditioning: str,
        max_state_dim: int,
        max_action_dim: int,
        image_token_pooling: int = 1,
        empty_perception: bool = False,
        fusion_layers: str = "all",
        expert_num_layers: int | None = None,
        action_expert_type: str = "deep_llama",
        action_attention: str = "bidirectional",
        position_3d: str = "none",
        workspace_center: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        depth = vlm_config.text_config.num_hidden_layers
        sources = source_layers(fusion, depth, fusion_layers, expert_num_layers)
        with empty_weights() if empty_perception else nullcontext():
            self.perception = Perception(
                vlm_config, fusion, image_token_pooling, sources, pictures=position_3d != "cloud"
            )
        config = expert_config(vlm_config, len(sources), expert_width_multiplier, action_expert_type == "late_gemma")
        config.adarms = time_conditioning == "adarms"
        config.causal = action_attention == "causal"
        config.context_is_hidden = fusion != "kv"
        self.expert = DeepFusionActionExpert(config, max_state_dim, max_action_dim)
        self.position_3d = build_positions(vlm_config, position_3d, image_token_pooling, workspace_center)

    def prefill(
        self,
        pixels: Tensor,
        token_ids: Tensor,
        valid: Tensor,
        right_padded: bool = True,
        points: Tensor | None = None,
    ) -> VlmStates:
        """One pass of the VLM; see `Perception.forward`.

        `points` [B, C, 4, height, width] are those of each pixel where the network is one that sees in 3D: x, y, z in
        metres and 1, or zeros where there is none.
        """
        positions = None
        if self.position_3d is not None and points is not None:
            positions = self.position_3d(points, pixels)
        return self.perception(pixels, token_ids, valid, right_padded, positions)

    def denoise(
        self,
        vlm_states: VlmStates,
        state: Tensor,
        noisy_actions: Tensor,
        time: Tensor,
        given: Given | None = None,
    ) -> Tensor:
        """Velocity of noisy actions at an embedded time; see `DeepFusionActionExpert.forward`."""
        return self.expert(vlm_states, state, noisy_actions, time, given)

    def embed_time(self, time: Tensor) -> Tensor:
        """Flow times for `denoise`; see `DeepFusionActionExpert.embed_time`."""
        return self.expert.embed_time(time)

    def project_contexts(self, vlm_states: VlmStates) -> VlmStates:
        """States whose hidden parts the expert has turned into keys and values, once for all steps."""
        return self.expert.backbone.project_contexts(vlm_states)

    def expert_from_vlm(self) -> None:
        """Start each expert layer at the weights of the VLM layer beside it, as far as they were kept.

        Raises:
            ValueError: if the two differ in width.
        """
        text, expert = self.perception.language_model, self.expert.backbone
        if expert.config.hidden_size != expert.config.context_width:
            raise ValueError(
                f"an expert of width {expert.config.hidden_size} can't start from a text model of width "
                f"{expert.config.context_width}"
            )
        for index, layer in zip(self.perception.sources, expert.layers, strict=True):
            if index < len(text.layers):
                layer.load_state_dict(text.layers[index].state_dict(), strict=False)

    def gradient_checkpointing_enable(self) -> None:
        """Recompute layers in the backward pass; of a frozen part there is no backward pass to serve."""
        for part in (self.perception.vision_tower, self.perception.language_model, self.expert.backbone):
            trained = any(parameter.requires_grad for parameter in part.parameters())
            # The gradient of positions comes through a text model that is frozen.
            trained |= self.position_3d is not None and part is self.perception.language_model
            if trained and part.supports_gradient_checkpointing and not part.is_gradient_checkpointing:
                part.gradient_checkpointing_enable({"use_reentrant": False})
                # Embeddings that require a gradient are for reentrant checkpointing; frozen ones cost a graph.
                part.disable_input_require_grads()


# What transformers and torch raise for a config whose fields have a wrong type, or contradict each other.
CANNOT_BUILD = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    StrictDataclassError,
    TypeError,
)


def build_model(config: Any, vlm: dict[str, Any], empty_perception: bool = False) -> DeepFusionModel:
    """The network that a policy's config describes, frozen where it says so.

    Args:
        config: a `DeepFusionConfig`; the network has no need of LeRobot, and so doesn't name the type.
        vlm: config of the whole LLaVA as `to_dict` gives it.
        empty_perception: see `DeepFusionModel`.

    Raises:
        ValueError: if `vlm` is no LLaVA that can be built and cut, or one beyond all bounds.
    """
    try:
        model = DeepFusionModel(
            llava_config_from_dict(vlm),
            config.fusion,
            config.expert_width_multiplier,
            config.time_conditioning,
            config.max_state_dim,
            config.max_action_dim,
            config.image_token_pooling,
            empty_perception,
            config.fusion_layers,
            config.expert_num_layers,
            config.action_expert_type,
            config.action_attention,
            config.position_3d,
            config.workspace_center,
        )
    except torch.OutOfMemoryError:
        raise
    except CANNOT_BUILD as error:
        raise ValueError(
            f"the config of the LLaVA (in a checkpoint: config.json, vlm_config.model) can't be built: "
            f"{type(error).__name__}: {error}"
        ) from error
    for module in frozen_modules(config, model):
        module.requires_grad_(False)
    return model


def frozen_modules(config: Any, model: DeepFusionModel) -> list[nn.Module]:
    """What training leaves as it is."""
    if not config.trains_vlm:
        return [model.perception]
    return [model.perception.vision_tower] if config.freeze_vision_encoder else []


def expert_config(
    vlm_config: PreTrainedConfig, num_layers: int, width_multiplier: float, gemma: bool = False
) -> LlamaConfig:
    """A Llama of the text model's attention geometry, and of its width times `width_multiplier`.

    Heads, key/value heads, head dim and rotary parameters are the VLM's own, so that under `kv` its keys and
    values need no projection whatever the expert's width (as in pi0). A Gemma has one key/value head, for keys and
    values of its own, and no biases.

    Raises:
        ValueError: for a width that is no multiple of the heads.
    """
    text = vlm_config.text_config
    heads = text.num_attention_heads
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // heads
    width = _multiple_of_eight(text.hidden_size * width_multiplier)
    if width % heads:
        step = math.lcm(8, heads)
        fits = step * max(1, round(width / step)) / text.hidden_size
        raise ValueError(
            f"policy.expert_width_multiplier={width_multiplier} makes an expert of width {width}, which the text "
            f"model's {heads} heads do not divide; use policy.expert_width_multiplier={fits:.6g}"
        )
    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=_multiple_of_eight(text.intermediate_size * width_multiplier),
        num_hidden_layers=num_layers,
        num_attention_heads=heads,
        num_key_value_heads=1 if gemma else text.num_key_value_heads,
        head_dim=head_dim,
        hidden_act="gelu_pytorch_tanh" if gemma else text.hidden_act,
        rms_norm_eps=text.rms_norm_eps,
        rope_parameters=copy.deepcopy(text.rope_parameters),
        max_position_embeddings=text.max_position_embeddings,
        initializer_range=text.initializer_range,
        # Qwen2 has biases on queries, keys and values without a field that says so.
        attention_bias=not gemma and (text.model_type == "qwen2" or getattr(text, "attention_bias", False)),
        vocab_size=1,
    )
    config.gemma = gemma
    config.context_width = text.hidden_size
    return config


def _multiple_of_eight(size: float) -> int:
    return max(8, 8 * round(size / 8))
