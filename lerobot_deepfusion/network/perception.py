"""LLaVA as the eyes: images and prompt in, the states of each layer out.

Axis letters: B batch, C cameras, S prefix tokens, N image tokens of one camera, D text width.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedConfig
from transformers.models.auto.modeling_auto import AutoModel

from ..llava.geometry import image_tokens
from .attention import attend, project_key_value
from .fusion import Fusion, KeyValue, VlmStates, source_layers, vlm_layers_needed
from .masks import causal_mask, positions_from_valid

ATTENTION = "deepfusion"  # our attention function in transformers' registry


def attention_with_key_value(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, KeyValue]:
    """transformers' attention interface, with the keys and values in the place of the attention weights.

    They leave the layer as return values: taken as a side effect they would be lost to gradient
    checkpointing and break FSDP's hooks.
    """
    options = {"dropout_p": dropout, "is_causal": attention_mask is None, "scale": scaling}
    out = attend(query, key, value, attention_mask, module.num_key_value_groups, **options)
    return out.transpose(1, 2).contiguous(), (key, value)


AttentionInterface.register(ATTENTION, attention_with_key_value)


class _VlmLayer:
    """Mixed into the text model's decoder layer class: its forward also returns keys and values."""

    input_layernorm: nn.Module
    self_attn: nn.Module
    post_attention_layernorm: nn.Module
    mlp: nn.Module | None

    def __reduce__(self) -> tuple[Any, ...]:
        """Its class is made here, so that pickling and copying find it by the class that it was made of."""
        return _new_vlm_layer, (type(self).__mro__[2],), self.__dict__

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
    ) -> tuple[Tensor | None, KeyValue]:
        normed = self.input_layernorm(hidden_states)
        if self.mlp is None:  # the last layer under `kv`: nobody reads its output
            return None, project_key_value(self.self_attn, normed, position_embeddings)
        out, key_value = self.self_attn(
            hidden_states=normed, position_embeddings=position_embeddings, attention_mask=attention_mask
        )
        hidden_states = hidden_states + out
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states)), key_value


_vlm_layer_classes: dict[type, type] = {}


def _vlm_layer_class(base: type) -> type:
    # The name stays: FSDP and accelerate find layer classes by name.
    return _vlm_layer_classes.setdefault(base, type(base.__name__, (_VlmLayer, base), {}))


def _new_vlm_layer(base: type[nn.Module]) -> nn.Module:
    """One without its weights, which unpickling gives it next."""
    return base.__new__(_vlm_layer_class(base))


class Perception(nn.Module):
    """Vision tower, projector and text model of a LLaVA, cut after what the expert reads.

    Args:
        vlm_config: config of the whole LLaVA.
        fusion: what the expert reads.
        pooling: patches are averaged in blocks of `pooling` x `pooling` before the projector.
        sources: see `source_layers`; by default every layer. With the fusion it decides where the text model ends.
        pictures: whether there are towers for pictures; else all tokens of a camera are those of its points.

    Raises:
        ValueError: for a LLaVA that can't be cut exactly: features of several vision layers.
    """

    def __init__(
        self,
        vlm_config: PreTrainedConfig,
        fusion: Fusion,
        pooling: int = 1,
        sources: list[int] | None = None,
        pictures: bool = True,
    ) -> None:
        super().__init__()
        self.pooling, self.pictures = pooling, pictures
        self.fusion = fusion
        self.vlm_depth = vlm_config.text_config.num_hidden_layers  # before the cut
        self.sources = sources or source_layers(fusion, self.vlm_depth)
        self.config = _cut_config(vlm_config, fusion, self.sources)
        llava = AutoModel.from_config(self.config)
        self.vision_tower: Any = llava.vision_tower if pictures else nn.Identity()
        self.multi_modal_projector = llava.multi_modal_projector if pictures else nn.Identity()
        self.language_model = llava.language_model
        self.image_newline = getattr(llava, "image_newline", None)
        _drop_unread(self, fusion)
        for layer in self.language_model.layers:
            layer.__class__ = _vlm_layer_class(type(layer))

    @property
    def image_tokens(self) -> int:
        """Tokens of one camera."""
        return image_tokens(self.config, self.pooling)

    def embed_images(self, pixels: Tensor, positions: Tensor | None = None) -> Tensor:
        """Normalised images [B, C, 3, height, width] -> tokens [B, C * N, D], in one call of the tower.

        `positions` [B * C, N, D] is what `network.positions` makes of the points of these pictures.
        """
        batch, cameras = pixels.shape[:2]
        if not self.pictures:
            assert positions is not None
            return positions.reshape(batch, cameras * positions.shape[1], -1)
        features = self.vision_tower(pixels.flatten(0, 1)).last_hidden_state
        if self.config.vision_feature_select_strategy == "default":
            features = features[:, 1:]
        if self.pooling > 1:
            features = pool_patches(features, self.pooling)
        tokens = self.multi_modal_projector(features)
        if self.image_newline is not None:
            newline = self.image_newline.to(tokens.dtype).expand(len(tokens), 1, -1)
            tokens = torch.cat([tokens, newline], dim=1)
        if positions is not None:
            tokens = tokens + positions.to(tokens.dtype)
        return tokens.reshape(batch, cameras * tokens.shape[1], -1)

    def embed(self, pixels: Tensor, token_ids: Tensor, positions: Tensor | None = None) -> Tensor:
        """Prefix embeddings [B, S, D]: text embeddings with the image tokens put into their places.

        Args:
            pixels: [B, C, 3, height, width].
            token_ids: [B, S], with C * N image tokens in every row.
            positions: see `embed_images`.
        """
        embeds = self.language_model.embed_tokens(token_ids)
        images = self.embed_images(pixels, positions).to(embeds.dtype)
        places = token_ids == self.config.image_token_id
        return embeds.masked_scatter(places[..., None], images)

    def forward(
        self,
        pixels: Tensor,
        token_ids: Tensor,
        valid: Tensor,
        right_padded: bool = True,
        positions: Tensor | None = None,
    ) -> VlmStates:
        """Run the VLM once.

        Args:
            pixels: normalised images [B, C, 3, height, width].
            token_ids: [B, S].
            valid: bool [B, S]; False at padding and at the tokens of absent cameras.
            right_padded: whether invalid tokens stand at the right end only, so that causal attention
                needs no mask.
            positions: see `embed_images`.
        """
        x = self.embed(pixels, token_ids, positions)
        text = self.language_model
        position_embeddings = text.rotary_emb(x, positions_from_valid(valid))
        mask = None if right_padded else causal_mask(valid)
        # What a layer that is not read leaves is let go at once.
        read, states = set(self.sources), {}
        for index, layer in enumerate(text.layers):
            state = x
            x, key_value = layer(x, position_embeddings, mask)
            if index in read:
                states[index] = key_value if self.fusion == "kv" else state
        if self.fusion == "hidden":
            states[len(text.layers)] = x
        if self.fusion == "late":
            states = dict.fromkeys(read, text.norm(x))
        return VlmStates([states[index] for index in self.sources], valid, position_embeddings)


def pool_patches(features: Tensor, pooling: int) -> Tensor:
    """Average blocks of a square grid of patches: [B, side ** 2, D] -> [B, (side / pooling) ** 2, D]."""
    side = math.isqrt(features.shape[1])
    grid = features.transpose(1, 2).unflatten(2, (side, side))
    return F.avg_pool2d(grid, pooling).flatten(2).transpose(1, 2)


def _cut_config(vlm_config: PreTrainedConfig, fusion: Fusion, sources: list[int]) -> PreTrainedConfig:
    config = copy.deepcopy(vlm_config)
    layer = config.vision_feature_layer
    if not isinstance(layer, int):
        raise ValueError(f"vision_feature_layer={layer}: only one feature layer is supported")
    vision, text = config.vision_config, config.text_config
    vision.num_hidden_layers = layer if layer >= 0 else vision.num_hidden_layers + 1 + layer
    vision.vision_use_head = False  # SigLIP's attention pooling
    whole, key_value_only = vlm_layers_needed(fusion, sources)
    text.num_hidden_layers = whole + key_value_only
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[: text.num_hidden_layers]
    text._attn_implementation = ATTENTION
    vision._attn_implementation = "sdpa"
    return config


def _drop_unread(perception: Perception, fusion: Fusion) -> None:
    """Remove the parameters that no expert layer's input depends on."""
    # Features are the encoder's output; CLIP and SigLIP norm it only for their pooled output.
    tower = getattr(perception.vision_tower, "vision_model", perception.vision_tower)
    if hasattr(tower, "post_layernorm"):
        tower.post_layernorm = nn.Identity()
    text = perception.language_model
    if fusion != "late":
        text.norm = nn.Identity()
    if fusion == "kv":
        last = text.layers[-1]
        last.self_attn.q_proj = last.self_attn.o_proj = None
        last.mlp = last.post_attention_layernorm = None
