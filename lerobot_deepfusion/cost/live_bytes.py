"""The most bytes of tensors that live at once in a pass, as torch makes and frees them.

torch's own counter, `torch.distributed._tools.mem_tracker.MemTracker`, hooks the outputs of all modules: it fails on
one that requires no gradient, and so on every frozen part, and takes six to ten times as long (torch 2.11). Here is
what it does without modules: a storage is counted when an operation returns it, until the last to hold it, autograd
among them, lets go.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

Stage = tuple[str, int]  # the layer that was entered last, forward or backward, and how often it had been before


class LiveBytes(TorchDispatchMode):
    """Peak of each stage of a pass under `FakeTensorMode`, which it has to be entered after.

    What an operation needs only while it runs is not seen.

    Args:
        known: tensors that are there before, which are not counted.

    Attributes:
        peaks: most bytes at once, of each stage.
    """

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self.peaks: dict[Stage, int] = {}
        self._stage: Stage = ("", 0)
        self._entered: Counter[str] = Counter()
        self._live = 0
        self._seen = WeakIdKeyDictionary()
        for tensor in known:
            self._seen[tensor.untyped_storage()] = True

    def watch(self, layers: dict[str, nn.Module]) -> None:
        """Make a stage of each time that a layer is entered, forward, to be recomputed or backward."""
        for name, layer in layers.items():
            layer.register_forward_pre_hook(lambda *_, name=name: self._enter(name))
            layer.register_forward_hook(lambda *call, name=name: self._watch_backward(call[-1], name))

    def _enter(self, layer: str) -> None:
        self._stage = (layer, self._entered[layer])
        self._entered[layer] += 1

    def _watch_backward(self, output: Any, name: str) -> None:
        for tensor in tree_leaves(output):
            if isinstance(tensor, Tensor) and tensor.requires_grad:
                tensor.register_hook(lambda _: self._enter(name))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.prim.device.default:  # two of three calls; the fake mode's own answer is slow
            return args[0].fake_device
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage in self._seen:
            return
        self._seen[storage] = True
        self._live += storage.nbytes()
        weakref.finalize(storage, self._free, storage.nbytes()).atexit = False
        self.peaks[self._stage] = max(self.peaks.get(self._stage, 0), self._live)

    def _free(self, size: int) -> None:
        self._live -= size
