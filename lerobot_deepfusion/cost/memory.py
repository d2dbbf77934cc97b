"""How much memory a model takes, counted from its geometry: no weight is read and no pass is run.

What is held when the forward pass ends is the activations and the context; the backward pass frees the parts, from
the expert to the vision tower, while their gradients come in. `training_bytes` takes the highest point of that.

Not in it: the CUDA context (0.5 to 1 GB), the allocator's fragmentation, cuBLAS workspaces, the batch itself and the
temporaries of one operation.
"""

from __future__ import annotations

import re
from dataclasses import replace

from torch import nn

from ..network.lockstep import DeepFusionModel
from ..network.part_names import EXPERT, PARTS, PROJECTOR, TEXT, VISION, part_of
from ..training.adapters import LORA_TARGETS
from .activations import (
    FLOAT32,
    Precision,
    Stream,
    Workload,
    context_bytes,
    expert_stream,
    key_value_bytes,
    projector_stream,
    text_stream,
    vision_stream,
)

# --- parameters -------------------------------------------------------------------------------------------


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


def modulation_parameters(model: DeepFusionModel) -> int:
    """Parameters of the time modulations, which run before the layers and are not recomputed with them."""
    return sum(p.numel() for name, p in model.expert.named_parameters() if ".modulation." in name)


def lora_parameters(model: nn.Module, rank: int) -> dict[str, int]:
    """Trained parameters of each part under LoRA: two factors for each matrix, and the copy of the expert."""
    counts = dict.fromkeys(PARTS, 0)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and re.fullmatch(LORA_TARGETS["target_modules"], f"model.{name}"):
            counts[part_of(name)] += rank * (module.in_features + module.out_features)
        elif name.split(".")[-1] in LORA_TARGETS["modules_to_save"]:
            counts[part_of(f"{name}.")] += sum(parameter.numel() for parameter in module.parameters())
    return counts


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
        streams[EXPERT] = expert_stream(model, load, precision)
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
    if checkpointing and casts.get(EXPERT):  # of the modulations autograd saves the cast weights all the same
        outside = precision.compute * modulation_parameters(model)
        casts[EXPERT] -= outside
        streams[EXPERT] = replace(streams[EXPERT], ends=streams[EXPERT].ends + outside)
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
