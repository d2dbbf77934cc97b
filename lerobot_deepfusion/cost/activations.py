"""What each part of the network keeps between its forward and its backward pass, counted from its geometry.

Attention is taken to keep no scores, which is measured on a CPU. On a GPU, where `attend` repeats grouped keys and
values beside a mask, each layer of the expert keeps them once for every query head, which is not counted.

Letters of sizes: d width, f MLP size, n query heads, c bytes of what a matrix multiplication reads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ..llava.tiny import TinyVisionConfig
from ..network.expert import TIME_FEATURES
from ..network.fusion import vlm_layers_needed
from ..network.lockstep import DeepFusionModel

FLOAT32 = 4  # bytes of a trained weight, its gradient, each of AdamW's two states, and the residual stream


@dataclass(frozen=True)
class Workload:
    """What one step gives the model: `batch` observations and, for each, `samples` noisy chunks."""

    batch: int
    cameras: int
    text_tokens: int
    chunk: int
    samples: int = 1

    def prefix(self, model: DeepFusionModel) -> int:
        """Prefix tokens of one observation."""
        return self.cameras * model.perception.image_tokens + self.text_tokens

    def expert_tokens(self, model: DeepFusionModel) -> int:
        """Tokens of the expert for one observation: state, time if it is a token, actions."""
        return self.samples * (1 + (not model.expert.adarms) + self.chunk)


@dataclass(frozen=True)
class Precision:
    """Bytes of an element.

    Attributes:
        compute: of what a matrix multiplication reads: 2 under bfloat16 autocast, else 4.
        frozen: of a frozen weight.
        text_frozen: whether the text model's weights are frozen, and so what it hands to the expert.
    """

    compute: int = FLOAT32
    frozen: int = FLOAT32
    text_frozen: bool = False

    @property
    def context(self) -> int:
        """Of hidden states and rotated keys: the text model's residual stream has the precision of its weights."""
        return self.frozen if self.text_frozen else FLOAT32

    def inputs(self, matrices: int, normed: int = FLOAT32) -> int:
        """Of a norm's output of `normed` bytes as the saved input of so many matrices.

        Autocast casts it for each of them anew; if there is nothing to cast they share it.
        """
        return normed if self.compute == normed else matrices * self.compute


@dataclass(frozen=True)
class Stream:
    """Bytes that a stack of layers keeps for its backward pass.

    Attributes:
        ends: of what stands before and after the layers.
        layers: of each layer.
        inputs: of all layers' inputs, which gradient checkpointing keeps in their place.
    """

    ends: int
    layers: tuple[int, ...] = ()
    inputs: int = 0

    def held(self, checkpointing: bool) -> int:
        """At the end of the forward pass."""
        return self.ends + (self.inputs if checkpointing else sum(self.layers))

    def recomputed(self, checkpointing: bool) -> int:
        """What the backward pass adds: under gradient checkpointing, one whole layer at a time."""
        return max(self.layers, default=0) if checkpointing else 0


def key_value_bytes(model: DeepFusionModel, load: Workload, precision: Precision) -> int:
    """Keys and values of the prefix that the expert reads while it acts: of each VLM layer read, or its own."""
    config: Any = model.expert.backbone.config
    sources = model.perception.sources
    layers = len(set(sources)) if model.perception.fusion == "kv" else len(sources)
    heads = config.num_key_value_heads * config.head_dim
    key_value = precision.context + precision.compute
    return layers * load.batch * load.prefix(model) * heads * key_value


def context_bytes(model: DeepFusionModel, load: Workload, precision: Precision) -> int:
    """What the VLM leaves for the expert: keys and values, or hidden states (under `late` the same for all)."""
    if model.perception.fusion == "kv":
        return key_value_bytes(model, load, precision)
    config: Any = model.expert.backbone.config
    states = 1 if model.perception.fusion == "late" else len(set(model.perception.sources))
    return states * load.batch * load.prefix(model) * config.context_width * precision.context


def vision_stream(model: DeepFusionModel, load: Workload, precision: Precision) -> Stream:
    """Of the vision tower, CLIP, SigLIP or the tiny one."""
    config: Any = model.perception.config.vision_config
    c = precision.compute
    images = load.batch * load.cameras
    pixels = images * 3 * config.image_size**2
    if isinstance(config, TinyVisionConfig):
        sides = [math.ceil(config.image_size / 2**depth) for depth in range(1, len(config.channels) + 1)]
        maps = images * sum(width * side**2 for width, side in zip(config.channels, sides, strict=True))
        flat = images * config.channels[-1] * sides[-1] ** 2
        # Each map twice: into GELU and out of it; the flattened one again out of its norm.
        return Stream(pixels * c + 2 * maps * c + flat * (c if c == FLOAT32 else FLOAT32 + 2 * c))
    clip = config.model_type == "clip_vision_model"
    tokens = images * ((config.image_size // config.patch_size) ** 2 + clip)
    d, f, n = config.hidden_size, config.intermediate_size, config.num_attention_heads
    # x and its norm's two numbers, before attention and MLP; logarithm of the softmax's sum.
    layer = FLOAT32 * (2 * d + 4 + n)
    # Inputs of q, k, v and of the MLP; q, k, v and attention's output.
    layer += d * (precision.inputs(3) + precision.inputs(1) + 4 * c)
    # Into and out of the activation; CLIP's is x * sigmoid(1.7 x) and keeps the sigmoid.
    layer += c * f * (3 if config.hidden_act == "quick_gelu" else 2)
    ends = pixels * c + tokens * d * (FLOAT32 * clip)
    layers = config.num_hidden_layers
    return Stream(ends, (tokens * layer,) * layers, layers * tokens * d * FLOAT32)


def projector_stream(model: DeepFusionModel, load: Workload, precision: Precision) -> Stream:
    """Of the projector: features, and its hidden layer before and after the activation."""
    config: Any = model.perception.config
    tokens = load.batch * load.cameras * model.perception.image_tokens
    size = config.vision_config.hidden_size + 2 * config.text_config.hidden_size
    return Stream(tokens * size * precision.compute)


def text_stream(model: DeepFusionModel, load: Workload, precision: Precision, rank: int = 0) -> Stream:
    """Of the text model, without what it shares with the context. With a rank: LoRA, all else frozen."""
    config: Any = model.perception.config.text_config
    expert: Any = model.expert.backbone.config
    fusion, sources, tokens = model.perception.fusion, model.perception.sources, load.batch * load.prefix(model)
    c, x = precision.compute, precision.context
    whole, key_value_only = vlm_layers_needed(fusion, sources)
    d, heads = config.hidden_size, config.num_key_value_heads * expert.head_dim
    layer = _llama_layer(config, expert.head_dim, x, x, precision, rank) + 2 * heads * c
    if fusion == "kv":  # keys and values are in the context; the keys once more, as attention reads them
        read = layer - 2 * heads * c + (heads * c if x != c else 0)
    else:  # under `hidden` a layer's input is in the context
        read = layer - (d * x if fusion == "hidden" and x == FLOAT32 else 0)
    norm = FLOAT32 * (d + 1) + (0 if rank else d * x)
    layers = tuple(tokens * (read if index in sources else layer) for index in range(whole))
    if key_value_only:
        layers += (tokens * (norm + d * precision.inputs(2, x)),)
    inputs = len(layers) - (len(set(sources) & set(range(whole))) if fusion == "hidden" else 0)
    return Stream(tokens * norm * (fusion == "late"), layers, inputs * tokens * d * x)


def expert_stream(model: DeepFusionModel, load: Workload, precision: Precision) -> Stream:
    """Of the expert, without the context.

    Its tokens are rounded to what autocast computes in, and so is its residual stream.
    """
    config: Any = model.expert.backbone.config
    prefix, own, c = load.prefix(model), load.expert_tokens(model), precision.compute
    d, heads = config.hidden_size, config.num_key_value_heads * config.head_dim
    normed = c if config.gemma else FLOAT32  # a Gemma's norms give back the type that they were given
    # Keys and values of prefix and own tokens; the mask as numbers, one row where all tokens see the same.
    layer = (prefix + own) * c * (2 * heads + (own if load.samples > 1 or config.causal else 1))
    layer += own * _llama_layer(config, config.head_dim, c, normed, precision)
    if config.adarms:
        # Normed x and gated output, of attention and MLP; two times 1 + scale a flow sample.
        layer += own * 2 * d * (normed + c) + load.samples * 2 * d * c
    if config.context_is_hidden:
        layer += prefix * _projected_context(config, normed, precision)
    # Last norm and what the output projection reads; the flow time's features and MLP; the mask as booleans.
    # A Gemma's norm keeps what it weighs in float32.
    ends = own * d * (2 * FLOAT32 + (FLOAT32 if config.gemma else c))
    ends += load.samples * (TIME_FEATURES + 3 * d) * FLOAT32
    ends += own * (prefix + own)
    layers = config.num_hidden_layers
    if config.adarms:  # six modulations a flow sample and layer, which are computed before the first layer
        ends += load.samples * layers * 6 * d * c
    return Stream(load.batch * ends, (load.batch * layer,) * layers, layers * load.batch * own * d * c)


def _llama_layer(config: Any, head_dim: int, x: int, normed: int, precision: Precision, rank: int = 0) -> int:
    """Of one token in a Llama layer, without its own keys and values.

    Args:
        config: of the model.
        head_dim: of its heads.
        x: bytes of an element of the residual stream.
        normed: the same, behind a norm and its weights.
        precision: of the rest.
        rank: of LoRA on attention, all else frozen; or 0.
    """
    d, f, n, c = config.hidden_size, config.intermediate_size, config.num_attention_heads, precision.compute
    # x in float32 and its root mean square, before attention and MLP; logarithm of the softmax's sum.
    size = FLOAT32 * (2 * d + 2 + n)
    # Input of q, k, v; q and attention's output; in the MLP gate, silu(gate) and up.
    size += d * precision.inputs(3, normed) + 2 * n * head_dim * c + 3 * f * c
    if rank:
        return size + 4 * rank * c
    # For the gradients of norms and MLP: normed x twice, the MLP's input, what its last matrix reads.
    norm = FLOAT32 if getattr(config, "gemma", False) else x
    return size + 2 * d * norm + d * precision.inputs(2, normed) + f * c


def _projected_context(config: Any, normed: int, precision: Precision) -> int:
    """Of one prefix token in an expert layer that projects hidden states itself."""
    d, c, context = config.hidden_size, precision.compute, precision.context
    narrower = config.context_width != d
    size = FLOAT32 + d * precision.inputs(2, normed)
    size += d * (FLOAT32 if config.gemma else c if narrower else context)  # for the gradient of the norm
    if narrower:
        size += config.context_width * c if context != c else 0  # the context, cast
        size += d * FLOAT32  # what the norm reads, in float32
    return size
