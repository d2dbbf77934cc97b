"""How much memory a model takes: weights counted, the rest of a step or a chunk seen on a fake copy (`few_layers`).

Not in it: the CUDA context (0.5 to 1 GB), the allocator's fragmentation, cuBLAS workspaces, the batch itself and the
temporaries of one operation. The kernels are a CPU's: on a GPU attention with a mask repeats grouped keys and values
for every query head (`attend`), and each layer of the expert keeps those.
"""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from ..network.lockstep import DeepFusionModel
from ..network.part_names import PARTS, TEXT, part_of
from ..training.adapters import LORA_TARGETS, TRAINED_WHOLE
from .fake_step import Setting, Workload
from .few_layers import peak_bytes

FLOAT32, BFLOAT16 = 4, 2


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


def trained_parts(model: nn.Module) -> set[str]:
    """The parts of which something is trained."""
    return {part for part, count in parameters(model, trained=True).items() if count}


def modulation_parameters(model: DeepFusionModel) -> int:
    """Parameters of the time modulations, which run once a chunk, before the layers."""
    return sum(p.numel() for name, p in model.expert.named_parameters() if ".modulation." in name)


def lora_parameters(model: nn.Module, rank: int) -> dict[str, int]:
    """Trained parameters of each part under LoRA: two factors for each matrix, and the copy of the expert."""
    counts = dict.fromkeys(PARTS, 0)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and re.fullmatch(LORA_TARGETS["target_modules"], f"model.{name}"):
            counts[part_of(name)] += rank * (module.in_features + module.out_features)
        elif name.split(".")[-1] in TRAINED_WHOLE:
            counts[part_of(f"{name}.")] += sum(parameter.numel() for parameter in module.parameters())
    return counts


# --- what the expert reads --------------------------------------------------------------------------------


def key_value_bytes(model: DeepFusionModel, load: Workload, half: bool) -> int:
    """Keys and values of the prefix that the expert reads while it acts: of each VLM layer read, or its own.

    `half` is bfloat16 autocast, in which a text model that is not frozen still rotates its keys in float32.
    """
    config: Any = model.expert.backbone.config
    sources = model.perception.sources
    layers = len(set(sources)) if model.perception.fusion == "kv" else len(sources)
    numbers = load.batch * load.prefix(model) * config.num_key_value_heads * config.head_dim
    return layers * numbers * (_residual(model, half) + (BFLOAT16 if half else FLOAT32))


def context_bytes(model: DeepFusionModel, load: Workload, half: bool) -> int:
    """What the VLM leaves for the expert: keys and values, or hidden states (under `late` the same for all)."""
    if model.perception.fusion == "kv":
        return key_value_bytes(model, load, half)
    states = 1 if model.perception.fusion == "late" else len(set(model.perception.sources))
    width = model.perception.config.text_config.hidden_size
    return states * load.batch * load.prefix(model) * width * _residual(model, half)


def _residual(model: DeepFusionModel, half: bool) -> int:
    """Bytes of an element of the text model's residual stream, which has the precision of its weights."""
    return BFLOAT16 if half and TEXT not in trained_parts(model) else FLOAT32


# --- totals -----------------------------------------------------------------------------------------------


def acting_bytes(model: DeepFusionModel, load: Workload, half: bool) -> int:
    """Peak of one chunk, weights among it: what requires gradients in float32, the rest in bfloat16 with `half`."""
    trained, frozen = (sum(parameters(model, trained=flag).values()) for flag in (True, False))
    setting = Setting(half, frozenset(trained_parts(model)), acting=True)
    return _weights(trained, frozen, half) + peak_bytes(model, load, setting)


def training_bytes(
    model: DeepFusionModel, load: Workload, half: bool, trained: set[str], checkpointing: bool, rank: int = 0
) -> int:
    """Peak of one training step with fused AdamW, which needs no copy of the weights, from its second step on.

    Args:
        model: real, or on the meta device; neither touched nor copied.
        load: of one step.
        half: bfloat16 autocast, with frozen weights in bfloat16 too.
        trained: the parts that are trained; with LoRA, those that have adapters.
        checkpointing: gradient checkpointing of the trained parts.
        rank: of LoRA in place of the parts' own weights, or 0.
    """
    whole = parameters(model)
    total = sum(lora_parameters(model, rank).values() if rank else (whole[part] for part in trained))
    # PEFT leaves in place the weights that it adapts, or trains a copy of.
    frozen = sum(whole.values()) - (0 if rank else total)
    # The optimizer's step needs the gradients alone, which are all there when the backward pass ends.
    step = peak_bytes(model, load, Setting(half, frozenset(trained), checkpointing, rank))
    return _weights(total, frozen, half) + 2 * FLOAT32 * total + step


def _weights(trained: int, frozen: int, half: bool) -> int:
    return FLOAT32 * trained + (BFLOAT16 if half else FLOAT32) * frozen
