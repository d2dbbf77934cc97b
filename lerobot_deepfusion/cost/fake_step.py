"""A training step or a chunk on a fake copy of the network: same code, same shapes, no weights, no arithmetic."""

from __future__ import annotations

import copy
import gc
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ..network.lockstep import DeepFusionModel
from ..network.part_names import EXPERT, POSITIONS, part_of
from ..training.adapters import LORA_TARGETS
from .live_bytes import LiveBytes, Stage


@dataclass(frozen=True)
class Workload:
    """What one pass gives the model: `batch` observations and, for each, `samples` noisy chunks."""

    batch: int
    cameras: int
    text_tokens: int
    chunk: int
    samples: int = 1

    def prefix(self, model: DeepFusionModel) -> int:
        """Prefix tokens of one observation."""
        return self.cameras * model.perception.image_tokens + self.text_tokens


@dataclass(frozen=True)
class Setting:
    """How the network runs.

    Attributes:
        half: bfloat16 autocast, with frozen weights in bfloat16 too.
        trained: the parts that are trained; with LoRA, those that have adapters.
        checkpointing: gradient checkpointing of the trained parts.
        rank: of LoRA in place of the parts' own weights, or 0.
        acting: a chunk, of one step, in place of a training step.
    """

    half: bool
    trained: frozenset[str]
    checkpointing: bool = False
    rank: int = 0
    acting: bool = False


class Lora(nn.Module):
    """What PEFT, which need not be installed, puts in the place of a linear layer."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = self.base(x)
        return (out + self.up(self.down(x.to(self.down.weight.dtype))) * 1.0).to(out.dtype)


def stage_peaks(
    model: DeepFusionModel, load: Workload, setting: Setting, left_out: Collection[nn.Module] = ()
) -> dict[Stage, int]:
    """Most bytes of activations and gradients at once, of each stage.

    Args:
        model: real, or on the meta device; neither touched nor copied.
        load: of the pass.
        setting: of the pass.
        left_out: layers that are not run.
    """
    with _without_collections(), FakeTensorMode():
        copied, layers = fake_copy(model, setting, left_out)
        inputs = _inputs(copied, load)
        live = LiveBytes([*copied.parameters(), *copied.buffers(), *inputs])
        live.watch(layers)
        with live, torch.set_grad_enabled(not setting.acting):
            _run(copied, inputs, setting)
    return live.peaks


@contextmanager
def _without_collections() -> Iterator[None]:
    """Each would look through all that LeRobot imported, and free what is in circles at no certain time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _run(model: DeepFusionModel, inputs: list[Tensor], setting: Setting) -> None:
    pixels, tokens, valid, state, noisy, time, *points = inputs
    with torch.autocast("cpu", torch.bfloat16, enabled=setting.half):
        states = model.prefill(pixels, tokens, valid, points=points[0] if points else None)
        if setting.acting:
            states = model.project_contexts(states)
        velocity = model.denoise(states, state, noisy, model.embed_time(time))
    del states
    if not setting.acting:
        velocity.float().square().mean().backward()


def _inputs(model: DeepFusionModel, load: Workload) -> list[Tensor]:
    side, tokens = model.perception.config.vision_config.image_size, load.prefix(model)
    expert, batch = model.expert, load.batch
    in_space = model.position_3d is not None
    return [
        torch.empty(batch, load.cameras, 3, side, side),
        torch.empty(batch, tokens, dtype=torch.long),
        torch.empty(batch, tokens, dtype=torch.bool),
        torch.empty(batch, expert.state_in_proj.in_features),
        torch.empty(batch, load.samples, load.chunk, expert.action_in_proj.in_features),
        torch.empty(batch, load.samples),
        *([torch.empty(batch, load.cameras, 4, side, side)] if in_space else []),
    ]


# --- the copy ---------------------------------------------------------------------------------------------


def fake_copy(
    model: DeepFusionModel, setting: Setting, left_out: Collection[nn.Module]
) -> tuple[DeepFusionModel, dict[str, nn.Module]]:
    """The network under the fake mode that is on, and those of its layers that are stages, by their names in `model`.

    What `left_out` has is gone from it, and the expert's layers read what they read before.
    """
    memo: dict[int, object] = {id(layer): None for layer in left_out}  # deepcopy puts these where it meets the keys
    unread = {id(tensor) for layer in left_out for tensor in (*layer.parameters(), *layer.buffers())}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if id(tensor) not in unread:
            memo[id(tensor)] = _fake(name, tensor, setting)
    copied = copy.deepcopy(model, memo)
    layers = _close_gaps(copied)
    if setting.rank:
        _adapt(copied, setting.rank)
    copied.train(not setting.acting)
    if setting.checkpointing:
        copied.gradient_checkpointing_enable()
    return copied, layers


def _fake(name: str, tensor: Tensor, setting: Setting) -> Tensor:
    if not isinstance(tensor, nn.Parameter):
        return torch.empty(tensor.shape, dtype=tensor.dtype)
    trained = part_of(name) in ({EXPERT, POSITIONS} if setting.rank else setting.trained)
    dtype = torch.bfloat16 if setting.half and not trained else torch.float32
    return nn.Parameter(torch.empty(tensor.shape, dtype=dtype), requires_grad=trained)


def _close_gaps(model: DeepFusionModel) -> dict[str, nn.Module]:
    perception, text = model.perception, model.perception.language_model
    kept = [index for index, layer in enumerate(text.layers) if layer is not None]
    pairs = zip(perception.sources, model.expert.backbone.layers, strict=True)
    # A source may stand behind the last layer (`hidden`): it is as many places on as layers are before it.
    perception.sources = [sum(k < source for k in kept) for source, layer in pairs if layer is not None]
    layers: dict[str, nn.Module] = {}
    for name, stack in list(model.named_modules()):
        if isinstance(stack, nn.ModuleList):
            there = {f"{name}.{index}": layer for index, layer in enumerate(stack) if layer is not None}
            layers |= there
            model.set_submodule(name, nn.ModuleList(there.values()))
    return layers


def _adapt(model: DeepFusionModel, rank: int) -> None:
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and re.fullmatch(LORA_TARGETS["target_modules"], f"model.{name}"):
            model.set_submodule(name, Lora(module, rank))
