"""Modules built without memory for their weights, which are to come from a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import nn
from torch.overrides import TorchFunctionMode


class _EmptyOnMeta(TorchFunctionMode):
    """`torch.empty`, from which layers make their parameters, gives no memory."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        return function(*args, **(kwargs | {"device": "meta"} if function is torch.empty else kwargs))


@contextmanager
def empty_weights() -> Iterator[None]:
    """Within it modules are built without memory for their parameters; buffers are real."""
    # accelerate alone lets each parameter be allocated and then moves it, which a hostile size would not survive.
    with init_empty_weights(include_buffers=False), _EmptyOnMeta():
        yield


def fill_empty(module: nn.Module) -> None:
    """Zeros for what was built without weights, which something else will overwrite."""
    module._apply(lambda tensor: torch.zeros_like(tensor, device="cpu") if tensor.is_meta else tensor)
