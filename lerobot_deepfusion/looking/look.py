"""What `deepfusion look` does: a policy is shown observations, and what it looks at is drawn and written down."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
import torch

from .look_drawn import draw_heads, draw_layers, draw_strip, film, record_for_rerun
from .observations import env_config, load, look_at_data, look_at_episode
from .pyplot import load_pyplot
from .sight import Looker, Sight

WIDTH = 100  # letters of a line under a picture


def look(
    checkpoint: str,
    dataset: Path | None,
    repo_id: str,
    episode: int,
    env: dict[str, Any],
    seed: int,
    frames: int,
    occlusion: bool,
    percent: float,
    output_dir: Path,
) -> str:
    """See `deepfusion look --help`; returns what it says.

    Raises:
        ImportError: without Matplotlib.
        ValueError: for an episode, an environment or a checkpoint that can't be had.
    """
    load_pyplot()
    simulator = env_config(env) if env else None
    torch.manual_seed(seed)
    policy, before, after = load(checkpoint)
    looker = Looker(policy, before, after, occlusion, percent, frames)
    where: dict[str, Any] = {"checkpoint": checkpoint, "by": "occlusion" if looker.by_occlusion else "attention"}
    if simulator is None:
        assert dataset is not None
        steps = look_at_data(looker, dataset, repo_id, episode, frames)
        where |= {"dataset": str(dataset), "episode": episode}
        what = f"episode {episode} of {dataset}, frames {steps[0]} to {steps[-1]}"
    else:
        steps, success = look_at_episode(looker, simulator, seed)
        where |= {"env": env, "seed": seed, "success": success}
        what = f"an episode of {simulator.task or simulator.type}, which {'succeeded' if success else 'failed'}"
    sights = looker.sights
    found = summary(sights, percent)
    output_dir.mkdir(parents=True, exist_ok=True)
    written = ["strip.png", "layers.png", "look.mp4"]
    draw_strip(sights, steps, f"{where['by']}: {found['said']}", output_dir / "strip.png")
    middle = len(sights) // 2
    draw_layers(
        sights[middle], f"{where['by']}, frame {steps[middle]}{_words(sights[middle])}", output_dir / "layers.png"
    )
    if not looker.by_occlusion:
        written.append("heads.png")
        draw_heads(sights[middle], output_dir / "heads.png")
    film(sights, output_dir / "look.mp4")
    if find_spec("rerun") is not None:
        written.append("look.rrd")
        record_for_rerun(sights, steps, output_dir / "look.rrd")
    each = [{"frame": step, **_numbers(sight)} for step, sight in zip(steps, sights, strict=True)]
    (output_dir / "look.json").write_text(json.dumps({**where, **found, "frames": each}, indent=1) + "\n")
    lines = [f"{what}: heat by {where['by']}"]
    if looker.by_occlusion and not occlusion:
        lines.append("(the tokens of this vision tower have no places, so that attention has no map)")
    lines += ["actions attend to " + ", ".join(f"{name} {share:.0%}" for name, share in found["shares"].items())]
    lines += [found["said"], f"wrote {', '.join([*written, 'look.json'])} in {output_dir}"]
    return "\n".join(lines)


def summary(sights: Sequence[Sight], percent: float) -> dict[str, Any]:
    """Means over observations: shares of attention, and how far the chunk moves by what is hidden."""
    shares = {name: float(np.mean([np.mean(sight.shares[name]) for sight in sights])) for name in sights[0].shares}
    moved = {name: float(np.mean([sight.moved[name] for sight in sights])) for name in sights[0].moved}
    times = moved["most"] / max(moved["least"], 1e-9)
    said = (
        f"the hottest {percent:g}% of the cells hidden moves the chunk by {moved['most']:.3f}, the coldest by "
        f"{moved['least']:.3f} ({times:.1f} times less), any by {moved['random']:.3f}"
    )
    return {"shares": shares, "moved": moved, "times": times, "percent": percent, "said": said}


def _words(sight: Sight) -> str:
    """What of the attention each word has, for under a picture."""
    return "\n" + fill(
        "attention to words: " + "  ".join(f"{word} {share:.2%}" for word, share in sight.words), WIDTH
    )


def _numbers(sight: Sight) -> dict[str, Any]:
    return {
        "shares_by_layer": sight.shares,
        "words": [{"word": word, "share": share} for word, share in sight.words],
        "moved": sight.moved,
        "state": sight.state.tolist(),
        "chunk": sight.chunk.tolist(),
    }
