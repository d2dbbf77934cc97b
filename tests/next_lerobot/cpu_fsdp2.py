"""`lerobot-train` of a LeRobot after 0.6.1 by FSDP2 on CPU processes, which accelerate takes for GPUs alone."""

from __future__ import annotations

import os
from typing import Any

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType


def allow() -> None:
    """Make accelerate use an FSDP plugin for CPU processes, as it does for those on GPUs."""
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    original = AcceleratorState.__init__

    def init(self: AcceleratorState, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
        original(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
            if self._mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self._mixed_precision)
            self.fsdp_plugin = fsdp_plugin

    AcceleratorState.__init__ = init


if __name__ == "__main__":
    allow()
    from lerobot.scripts.lerobot_train import main

    main()
