"""How much memory a model takes, counted from its geometry: no weight is read and no pass is run.

What is held when the forward pass ends is the activations and the context; the backward pass frees the parts, from
the expert to the vision tower, while their gradients come in. `training_bytes` takes the highest point of that.

Not in it: the CUDA context (0.5 to 1 GB), the allocator's fragmentation, cuBLAS workspaces, the batch itself and the
temporaries of one operation. Attention is taken to keep no scores; that is measured on a CPU, and not on a GPU, where
a mask with grouped queries may choose a kernel that does keep them.

Letters of sizes: d width, f MLP size, n query heads, c bytes of what a matrix multiplication reads.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from torch import nn

from .expert import TIME_FEATURES
from .fusion import vlm_layers_needed
from .lockstep import DeepFusionModel
from .tiny import TinyVisionConfig

VISION, PROJECTOR, TEXT, EXPERT = PARTS = ("vision tower", "projector", "text model", "expert")
PREFIXES = {"perception.vision_tower.": VISION, "perception.language_model.": TEXT, "expert.": EXPERT}
# What LoRA adapts: the attention of VLM and expert. What is new to the expert is trained whole, as a copy.
LORA_TARGETS: dict[str, Any] = {
    "target_modules": r".*\.(language_model|backbone)\.layers\.\d+\.self_attn\.(q|k|v|o)_proj",
    "modules_to_save": ["state_in_proj", "action_in_proj", "time_mlp", "action_out_proj", "modulation"],
}
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
        layer_input: of each layer under gradient checkpointing.
    """

    ends: int
    layers: tuple[int, ...] = ()
    layer_input: int = 0

    def held(self, checkpointing: bool) -> int:
        """At the end of the forward pass."""
        return self.ends + (len(self.layers) * self.layer_input if checkpointing else sum(self.layers))

    def recomputed(self, checkpointing: bool) -> int:
        """What the backward pass adds: under gradient checkpointing, one whole layer at a time."""
        return max(self.layers, default=0) if checkpointing else 0


# --- parameters -------------------------------------------------------------------------------------------


def part_of(name: str) -> str:
    """The part that a parameter or module of `DeepFusionModel` belongs to; an image newline is the projector's."""
    return next((part for prefix, part in PREFIXES.items() if name.startswith(prefix)), PROJECTOR)


def parameters(model: nn.Module, trained: bool | None = None) -> dict[str, int]:
    """Parameters of each part; with `trained`, of those that are trained, or frozen, alone.

    They are fewer than a LLaVA's own: no lm_head, the tower ends at the feature layer, and the text model after what
    the expert reads.
    """
    counts = dict.fromkeys(PARTS, 0)
    for name, parameter in model.named_parameters():
        if trained is None or parameter.requires_grad == trained:
            counts[part_of(name)] += parameter.numel()
    return counts


def matrix_parameters(model: nn.Module) -> dict[str, int]:
    """Parameters of each part that autocast casts: those of linear and convolutional layers, no embeddings."""
    counts = dict.fromkeys(PARTS, 0)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            counts[part_of(name)] += sum(parameter.numel() for parameter in module.parameters())
    return counts


def lora_parameters(model: nn.Module, rank: int) -> dict[str, int]:
    """Trained parameters of each part under LoRA: two factors for each matrix, and the whole copies."""
    counts = dict.fromkeys(PARTS, 0)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and re.fullmatch(LORA_TARGETS["target_modules"], f"model.{name}"):
            counts[part_of(name)] += rank * (module.in_features + module.out_features)
        elif name.split(".")[-1] in LORA_TARGETS["modules_to_save"]:
            counts[part_of(name)] += sum(parameter.numel() for parameter in module.parameters())
    return counts


# --- activations ------------------------------------------------------------------------------------------


def key_value_bytes(model: DeepFusionModel, load: Workload, precision: Precision) -> int:
    """Keys and values of the prefix that the expert reads while it acts, of all layers."""
    config: Any = model.expert.backbone.config
    heads = config.num_key_value_heads * config.head_dim
    key_value = precision.context + precision.compute
    return config.num_hidden_layers * load.batch * load.prefix(model) * heads * key_value


def context_bytes(model: DeepFusionModel, load: Workload, precision: Precision) -> int:
    """What the VLM leaves for the expert: keys and values, or hidden states (under `late` the same for all)."""
    if model.perception.fusion == "kv":
        return key_value_bytes(model, load, precision)
    config: Any = model.expert.backbone.config
    states = 1 if model.perception.fusion == "late" else config.num_hidden_layers
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
    return Stream(ends, (tokens * layer,) * config.num_hidden_layers, tokens * d * FLOAT32)


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
    fusion, tokens = model.perception.fusion, load.batch * load.prefix(model)
    c, x = precision.compute, precision.context
    whole, key_value_only = vlm_layers_needed(fusion, expert.num_hidden_layers)
    d, heads = config.hidden_size, config.num_key_value_heads * expert.head_dim
    layer, layer_input = _llama_layer(config, expert.head_dim, x, x, precision, rank), d * x
    if fusion != "kv":
        layer += 2 * heads * c
    elif x != c:
        layer += heads * c  # the keys once more, as attention reads them
    if fusion == "hidden":  # a layer's input is the context
        layer, layer_input = layer - (layer_input if x == FLOAT32 else 0), 0
    norm = FLOAT32 * (d + 1) + (0 if rank else d * x)
    layers = (tokens * layer,) * whole
    if key_value_only:
        layers += (tokens * (norm + d * precision.inputs(2, x)),)
    return Stream(tokens * norm * (fusion == "late"), layers, tokens * layer_input)


def expert_stream(model: DeepFusionModel, load: Workload, precision: Precision, rank: int = 0) -> Stream:
    """Of the expert, without the context. With a rank: LoRA, all else frozen but the modulation.

    Its tokens come out of linear layers, so that autocast makes its residual stream bfloat16.
    """
    config: Any = model.expert.backbone.config
    prefix, own, c = load.prefix(model), load.expert_tokens(model), precision.compute
    d, heads = config.hidden_size, config.num_key_value_heads * config.head_dim
    normed = max(c, precision.frozen) if rank else FLOAT32
    # Keys and values of prefix and own tokens; the mask as numbers, one row for all tokens of a single sample.
    layer = (prefix + own) * c * (2 * heads + (own if load.samples > 1 else 1))
    layer += own * _llama_layer(config, config.head_dim, c, normed, precision, rank)
    if config.adarms:
        # Normed x and gated output, of attention and MLP; six modulations and two times 1 + scale a flow sample.
        layer += own * 2 * d * (normed + c) + load.samples * 8 * d * c
    if config.context_is_hidden:
        layer += prefix * _projected_context(config, normed, precision, rank)
    # Last norm and what the output projection reads; the flow time's features and MLP; the mask as booleans.
    ends = own * d * (FLOAT32 + c + c) + load.samples * (TIME_FEATURES + 3 * d) * c + own * (prefix + own)
    layers = (load.batch * layer,) * config.num_hidden_layers
    return Stream(load.batch * ends, layers, load.batch * own * d * c)


def _llama_layer(config: Any, head_dim: int, x: int, normed: int, precision: Precision, rank: int) -> int:
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
    return size + 2 * d * x + d * precision.inputs(2, normed) + f * c


def _projected_context(config: Any, normed: int, precision: Precision, rank: int) -> int:
    """Of one prefix token in an expert layer that projects hidden states itself."""
    d, c, context = config.hidden_size, precision.compute, precision.context
    narrower = config.context_width != d
    size = FLOAT32 + d * precision.inputs(2, normed)
    if not rank:
        size += d * (c if narrower else context)  # for the gradient of the norm
        size += config.context_width * c if narrower and context != c else 0  # the context, cast
    if narrower or (rank and context != FLOAT32):
        size += d * FLOAT32  # what the norm reads, in float32
    return size


# --- totals -----------------------------------------------------------------------------------------------


def acting_bytes(model: DeepFusionModel, load: Workload, precision: Precision) -> int:
    """Peak of one chunk: weights, the expert's context and the largest layer at work.

    Under autocast weights that require gradients keep their bfloat16 copy until the chunk is there.
    """
    trained = parameters(model, trained=True)
    total = sum(trained.values())
    weights = total * FLOAT32 + sum(parameters(model, trained=False).values()) * precision.frozen
    if precision.compute != FLOAT32:
        matrices = matrix_parameters(model)
        weights += precision.compute * sum(matrices[part] for part in PARTS if trained[part])
    context = context_bytes(model, load, precision)
    if model.perception.fusion != "kv":
        context += key_value_bytes(model, load, precision)
    streams = (build(model, load, precision) for build in (vision_stream, text_stream, expert_stream))
    return weights + context + max(stream.recomputed(True) for stream in streams)


def activations(
    model: DeepFusionModel, load: Workload, precision: Precision, trained: set[str], rank: int = 0
) -> dict[str, Stream]:
    """Streams of the parts that the backward pass goes through, in its order."""
    streams = {}
    if EXPERT in trained:
        streams[EXPERT] = expert_stream(model, load, precision, rank)
    if TEXT in trained:
        streams[TEXT] = text_stream(model, load, precision, rank)
    if PROJECTOR in trained:
        streams[PROJECTOR] = projector_stream(model, load, precision)
    if VISION in trained:
        streams[VISION] = vision_stream(model, load, precision)
    return streams


def training_bytes(
    model: DeepFusionModel,
    load: Workload,
    precision: Precision,
    trained: set[str],
    checkpointing: bool,
    rank: int = 0,
) -> int:
    """Peak of one training step with fused AdamW, which needs no copy of the weights, from its second step on.

    Args:
        model: real, or on the meta device.
        load: of one step.
        precision: of the elements.
        trained: the parts that are trained; with LoRA, those that have adapters.
        checkpointing: gradient checkpointing of the trained parts.
        rank: of LoRA in place of the parts' own weights, or 0.
    """
    whole = parameters(model)
    counts = lora_parameters(model, rank) if rank else {part: whole[part] for part in trained}
    total = sum(counts.values())
    # PEFT leaves in place the weights that it adapts, or trains a copy of.
    frozen = sum(whole.values()) - (0 if rank else total)
    streams = activations(model, load, precision, trained, rank)
    casts = dict.fromkeys(streams, 0)
    if precision.compute != FLOAT32:  # of float32 weights; frozen ones have no need
        casts = {
            part: precision.compute * count for part, count in (counts if rank else matrix_parameters(model)).items()
        }
    gradients = {part: FLOAT32 * counts[part] for part in streams}
    context = context_bytes(model, load, precision)
    # The step itself needs the gradients alone, which are all there when the backward pass ends.
    backward = _backward_peak(streams, gradients, casts, context, checkpointing)
    return frozen * precision.frozen + total * 3 * FLOAT32 + backward


def _backward_peak(
    streams: dict[str, Stream],
    gradients: dict[str, int],
    casts: dict[str, int],
    context: int,
    checkpointing: bool,
) -> int:
    """Most bytes of activations, context, cast weights and gradients at once, between forward pass and step.

    Autograd saves the cast weights; those of checkpointed layers live in autocast's cache until the forward pass
    ends, and then in the layer that is recomputed.
    """
    held, live, forward = {}, {}, 0
    for part, stream in streams.items():
        held[part], live[part] = stream.held(checkpointing), stream.recomputed(checkpointing)
        if live[part]:
            forward += casts[part]
            live[part] += casts[part] // len(stream.layers)
        else:
            held[part] += casts[part]
    held[TEXT if TEXT in held else EXPERT] += context
    peak, arrived = forward + sum(held.values()), 0
    for part in streams:
        # The gradient of the context is there, whole, between expert and text model.
        peak = max(peak, arrived + sum(held.values()) + live[part] + (context if part == TEXT else 0))
        del held[part]
        arrived += gradients[part]
        peak = max(peak, arrived + sum(held.values()) + live[part])
    return peak
