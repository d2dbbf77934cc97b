"""Few layers stand for many: a network is run at two small depths, and its peak read off for its own.

A layer adds the same bytes wherever it stands among layers that are alike. So the peak of each stage of a pass (the
forward or backward pass of one of the layers that are always run) grows evenly with their number, and the largest of
these straight lines at the real depth is the peak: between the first stages of a stack and its last it only rises or
falls. A whole LLaVA takes up to thirty thousand operations a step, each a fifth of a millisecond to fake.
"""

from __future__ import annotations

from torch import nn

from ..network.lockstep import DeepFusionModel
from ..network.part_names import EXPERT, POSITIONS, TEXT, VISION
from .fake_step import Setting, Workload, stage_peaks

FEW = 3  # the first, and the last two: the last may be cut, and then the one before is the first that goes backward

Unit = list[nn.Module]


def peak_bytes(model: DeepFusionModel, load: Workload, setting: Setting) -> int:
    """Most bytes of activations and gradients at once; see `stage_peaks`."""
    rows = [(part, row) for part, row in repeated(model) if len(row) > FEW + 1]
    middle = {id(layer): layer for _, row in rows for unit in row[1 : 1 - FEW] for layer in unit}
    few = stage_peaks(model, load, setting, list(middle.values()))
    peaks = dict(few)
    kept = {EXPERT, *setting.trained}
    if model.position_3d is not None and POSITIONS in kept:
        kept.add(TEXT)  # through which their gradient comes, frozen or not
    for part, row in rows:
        if part not in kept:
            continue  # without gradient, and read by nobody, it leaves nothing
        one_more = {id(layer) for layer in row[1]}
        more = stage_peaks(model, load, setting, [layer for key, layer in middle.items() if key not in one_more])
        for stage, bytes_few in few.items():
            peaks[stage] += (len(row) - FEW) * (more[stage] - bytes_few)
    return max(peaks.values())


def repeated(model: DeepFusionModel) -> list[tuple[str, list[Unit]]]:
    """Rows of layers, or groups of layers, that are alike but for the last, and the part that each is of.

    The expert's are groups: expert layers with the text model's that they alone read, and those that lead to these.
    """
    text, expert = list(model.perception.language_model.layers), list(model.expert.backbone.layers)
    sources = model.perception.sources
    step, size = period(sources)
    start = sources[size - 1] + 1 - step  # of the first group; the text layers before it are not read
    groups = [
        text[start + index * step : start + (index + 1) * step] + expert[index * size : (index + 1) * size]
        for index in range(len(expert) // size)
    ]
    vision = next((stack for stack in model.perception.vision_tower.modules() if _is_stack(stack)), ())
    return [(VISION, [[layer] for layer in vision]), (TEXT, [[layer] for layer in text[:start]]), (EXPERT, groups)]


def period(sources: list[int]) -> tuple[int, int]:
    """After how many text layers and expert layers the layer map repeats; if it does not, all that it spans.

    Example: `[1, 3, 5]` is (2, 1), `[0, 0, 1, 1]` is (1, 2), `[5, 5, 5]` is (0, 1), `[0, 1, 1]` is (2, 3).
    """
    for size in range(1, len(sources)):
        steps = {after - before for before, after in zip(sources, sources[size:], strict=False)}
        if len(sources) % size == 0 and len(steps) == 1:
            return steps.pop(), size
    return sources[-1] + 1 - sources[0], len(sources)


def _is_stack(module: nn.Module) -> bool:
    return isinstance(module, nn.ModuleList)
