"""An exponential moving average of the trained weights, with which a policy acts (Polyak & Juditsky 1992).

LeRobot 0.6.1 calls `policy.update()` after every step of the optimizer. Its later development tree averages by itself
(`--ema.enable`), with the same refusals: use one of the two.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

ADAPTERS = "policy.ema_decay averages whole weights and no adapters; with --peft give --policy.ema_decay=0"


class WeightAverage:
    """Of the weights of a module that are trained, kept beside it in float32 and no part of its state.

    Args:
        module: at its first update.
        decay: kept of the average at each update, once there were enough of them: of the first it keeps less, so
            that what they started from is forgotten.

    Raises:
        ValueError: for weights that are spread over processes, or adapters.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay, self.updates, self.shown = decay, 0, False
        self.parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        if any("lora_" in name for name in self.parameters):
            raise ValueError(ADAPTERS)
        sharded = any(isinstance(part, FullyShardedDataParallel) for part in module.modules())
        if sharded or any(isinstance(p, DTensor) for p in self.parameters.values()):
            raise ValueError(
                "policy.ema_decay averages whole weights, and these are spread over processes (FSDP); leave it out, "
                "or train with DDP"
            )
        self.values = {name: p.detach().clone() for name, p in self.parameters.items()}

    def update(self) -> None:
        """Take in the weights as they are now."""
        self.updates += 1
        decay = min(self.decay, self.updates / (10 + self.updates))
        average = get_ema_multi_avg_fn(decay)
        average(list(self.values.values()), [p.detach() for p in self.parameters.values()], self.updates)

    def show(self, shown: bool) -> None:
        """Put the average in the places of the weights, or those back into theirs."""
        if shown != self.shown:
            for name, parameter in self.parameters.items():
                parameter.data, self.values[name] = self.values[name], parameter.data
            self.shown = shown

    @contextmanager
    def showing(self, shown: bool) -> Iterator[None]:
        before = self.shown
        self.show(shown)
        try:
            yield
        finally:
            self.show(before)

    def load(self, values: Mapping[str, Tensor], updates: int) -> None:
        """Go on from an average that was saved."""
        for name, value in self.values.items():
            value.copy_(values[name])
        self.updates = updates
