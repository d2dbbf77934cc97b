"""FSDP: where the network is cut into shards, and in which type it computes.

FSDP gathers a unit's weights while the unit is at work, and shards its gradients and optimizer state too. accelerate
takes the units from the policy's `_no_split_modules` (LeRobot after 0.6.1 from `_fsdp_wrap_modules` of its class),
and stops at a name that is not in the model.
"""

from __future__ import annotations

from collections.abc import Iterable

from accelerate.state import AcceleratorState
from torch import nn
from torch.distributed.fsdp import MixedPrecision, MixedPrecisionPolicy
from transformers.modeling_layers import GradientCheckpointingLayer

from ..network.expert import TimeModulation


def unit_classes(model: nn.Module, frozen: Iterable[nn.Module]) -> list[str]:
    """Names of the classes that FSDP makes units of: each layer, and each frozen part.

    A time modulation is one too, since it runs outside its layer. Frozen weights may be of another type than trained
    ones, and a unit has one type; what is in no unit, such as embeddings and projections, shares the root's.
    """
    units = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer | TimeModulation)]
    return sorted({type(module).__name__ for module in [*units, *frozen]})


def keep_types() -> None:
    """Have accelerate's FSDP cast nothing: weights, buffers and inputs stay as the policy made them.

    For bfloat16 it would cast them all, and gradients: rotary frequencies and actions would keep three digits, and
    images would be of a type that can't be resized. The policy's own autocast casts what can be, as without FSDP.
    """
    plugin = AcceleratorState._shared_state.get("fsdp_plugin")
    if plugin is not None:
        none = MixedPrecision() if plugin.fsdp_version == 1 else MixedPrecisionPolicy(cast_forward_inputs=False)
        plugin.mixed_precision_policy = none
