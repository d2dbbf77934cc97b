"""What `deepfusion open-loop` does: predicted against recorded actions, with controls that tell looking from luck."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lerobot.utils.constants import ACTION
from torch import Tensor

from ..inputs.dataset_facts import dimension_names
from .held_out import HELD_OUT, told
from .observations import load
from .open_loop_drawn import draw
from .predicted import Along, Course, enough, predict_along
from .pyplot import load_pyplot

COUNTS, SAMPLES = (1, 2, 5, 10), 4


def open_loop(
    checkpoint: str, dataset: Path, repo_id: str | None, episodes: str, stride: int | None, output_dir: Path
) -> str:
    """See `deepfusion open-loop --help`; returns what it says.

    Raises:
        ImportError: without Matplotlib.
        ValueError: for an episode that is not there, or a checkpoint that can't be had.
    """
    load_pyplot()
    policy, before, after = load(checkpoint)
    chosen = numbers(episodes)
    names = told(Path(checkpoint), dataset, repo_id, chosen)
    course = Course(policy, before, dataset, repo_id or "local/data", chosen, stride or policy.config.n_action_steps)
    dimensions = dimension_names(course.meta.features[ACTION]) or [
        str(index) for index in range(policy.config.action_feature.shape[0])
    ]
    flow = policy.config.objective == "flow"
    counts = COUNTS if flow else (2,) if policy.config.objective == "two_step" else (1,)
    along = predict_along(course, counts, SAMPLES if policy.config.objective != "two_step" else 1)
    found = summary(along, counts, names)
    ours, theirs = (_own_units(after, chunks) for chunks in (along.chunks[_most(counts)], along.recorded))
    off = (ours - theirs).abs().masked_fill(~along.valid[..., None], torch.nan).flatten(0, 1).nanmean(0)
    found["mean_absolute_error"] = dict(zip(dimensions, off.tolist(), strict=True))
    lines = say(found)
    output_dir.mkdir(parents=True, exist_ok=True)
    where = {"checkpoint": checkpoint, "dataset": str(dataset)}
    (output_dir / "open_loop.json").write_text(json.dumps({**where, **found}, indent=1) + "\n")
    draw(along, ours, theirs, dimensions, policy.config.n_action_steps, lines, output_dir / "open_loop.png")
    return "\n".join([*lines, f"wrote open_loop.png and open_loop.json in {output_dir}"])


def numbers(text: str) -> list[int]:
    """`0,3,7-9` as a list.

    Raises:
        ValueError: if it is none of that kind.
    """
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise ValueError(f"--episodes={text}: expected numbers such as 0,3,7-9")
        if int(last or first) < int(first):
            raise ValueError(f"--episodes={text}: {part.strip()} ends before it begins")
        found += range(int(first), int(last or first) + 1)
    return found


def summary(along: Along, counts: Sequence[int], names: dict[int, str]) -> dict[str, Any]:
    """Everything in numbers, errors in the units that the policy normalises to."""
    valid = along.valid[..., None].expand_as(along.recorded)
    return {
        "episodes": {str(episode): name for episode, name in names.items()},
        "held_out": all(name == HELD_OUT for name in names.values()),
        "error": {name: along.error(name) for name in along.chunks},
        "error_of_the_mean_action": along.recorded[valid].square().mean().sqrt().item(),
        "error_by_step": along.squared(_most(counts)).nanmean(0).sqrt().tolist(),
        "spread": along.spread[valid].square().mean().sqrt().item() if along.spread.isfinite().all() else None,
        "evaluations_that_suffice": enough(along, counts),
        "milliseconds": {str(count): 1e3 * seconds for count, seconds in along.seconds.items()},
        "chunks": len(along.frames),
    }


def say(found: dict[str, Any]) -> list[str]:
    """The numbers, in lines."""
    by_kind: dict[str, list[str]] = {}
    for episode, kind in found["episodes"].items():
        by_kind.setdefault(kind, []).append(episode)
    lines = ["; ".join(f"episodes {', '.join(episodes)}: {kind}" for kind, episodes in by_kind.items())]
    if not found["held_out"]:
        lines.append("so these are not known to be errors on held-out data")
    lines.append(f"error of {found['chunks']} chunks, in the units that the policy normalises to:")
    lines += [f"  {name:20} {error:.3f}" for name, error in found["error"].items()]
    lines.append(f"  {'always zero':20} {found['error_of_the_mean_action']:.3f} (the training mean, under MEAN_STD)")
    if found["spread"] is not None:
        spread = f"spread of {SAMPLES} samples {found['spread']:.3f}"
        lines.append(f"{spread}: several answers, or none that is sure, where it is large")
    times = found["milliseconds"]
    if len(times) > 1:
        lines += [
            f"as good as {max(map(int, times))} evaluations by this error: {found['evaluations_that_suffice']}",
            f"  a chunk takes {', '.join(f'{ms:.0f} ms with {count}' for count, ms in times.items())}",
            "  (a mean of several right answers has a small error too, and is none of them)",
        ]
    off = ", ".join(f"{name} {error:.3g}" for name, error in found["mean_absolute_error"].items())
    return [*lines, f"mean absolute error, in the data's units: {off}"]


def _most(counts: Sequence[int]) -> str:
    return f"{counts[-1]} evaluations"


def _own_units(after: Any, chunks: Tensor) -> Tensor:
    """Normalised actions [M, T, A] as the robot gets them."""
    return after(chunks.flatten(0, 1)).view_as(chunks)
