"""accelerate's FSDP on a CPU: torch can, accelerate takes it for GPUs alone.

Only what a CPU needs differs from a run on GPUs:

- accelerate reads its FSDP settings for several CPU processes too;
- its device is `cpu` without an index, since FSDP compares it with that of the weights;
- no weights are sent from the first process, which FSDP refuses; LeRobot's seed gives all the same;
- a gathered unit is not moved to the CPU when a checkpoint is gathered: torch frees what it has moved from;
- gathered optimizer state is copied, as a move from a GPU would: its buffer is used again for the next one.
"""

from __future__ import annotations

import os
from contextlib import nullcontext
from typing import Any

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch.distributed.fsdp import _optim_utils
from torch.distributed.fsdp._flat_param import FlatParamHandle


def allow() -> None:
    """Make accelerate use FSDP for CPU processes when `accelerate launch` asks for it."""
    take_plugin()
    os.environ["FSDP_SYNC_MODULE_STATES"] = "false"
    FlatParamHandle.to_cpu = lambda self: nullcontext()
    unflatten = _optim_utils._unflatten_orig_param_states

    def unflatten_and_copy(unit: Any, states: dict[str, dict[str, Any]], name: str, *args: Any) -> None:
        unflatten(unit, states, name, *args)
        for state in states.values():
            state[name] = state[name].clone()

    _optim_utils._unflatten_orig_param_states = unflatten_and_copy


def take_plugin() -> None:
    """Make accelerate use an FSDP plugin, of either version, for CPU processes as it does for `MULTI_GPU`."""
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    original = AcceleratorState.__init__

    def init(
        self: AcceleratorState, *args: Any, fsdp_plugin: FullyShardedDataParallelPlugin | None = None, **kwargs: Any
    ) -> None:
        original(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
            if self._mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self._mixed_precision)
            self.fsdp_plugin = fsdp_plugin

    AcceleratorState.__init__ = init
