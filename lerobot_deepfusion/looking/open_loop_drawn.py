"""Predicted and recorded actions on one page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from .predicted import Along
from .pyplot import load_pyplot

COLUMNS, MOST = 3, 16  # of the page; action dimensions that are drawn


def draw(
    along: Along,
    predicted: Tensor,
    recorded: Tensor,
    names: Sequence[str],
    executed: int,
    lines: Sequence[str],
    path: Path,
) -> None:
    """A curve for each dimension over the first episode, the error over the chunk, and what was said.

    Args:
        along: what was predicted.
        predicted, recorded: [M, T, A], in the data's units.
        names: of the dimensions.
        executed: actions of a chunk that the robot would execute.
        lines: to be written under it.
        path: of the PNG.
    """
    plt = load_pyplot()
    names = names[:MOST]
    rows, words = -(-(len(names) + 1) // COLUMNS), 0.17 * (len(lines) + 1)
    height = 2.6 * rows + words
    figure, axes = plt.subplots(rows, COLUMNS, figsize=(5 * COLUMNS, height), squeeze=False)
    for axis in axes.flat[len(names) + 1 :]:
        axis.axis("off")
    first = [index for index, episode in enumerate(along.episodes) if episode == along.episodes[0]]
    for dimension, (axis, name) in enumerate(zip(axes.flat, names, strict=False)):
        for index in first:
            frame, valid = along.frames[index], int(along.valid[index].sum())
            ours, theirs = (values[index, :valid, dimension] for values in (predicted, recorded))
            at = range(frame, frame + valid)
            axis.plot(at, theirs, color="black", linewidth=1.2)
            axis.plot(at, ours, color="tab:orange", linewidth=0.6, alpha=0.6)
            axis.plot(at[:executed], ours[:executed], color="tab:orange", linewidth=1.6)
        axis.set_title(f"{name}, episode {along.episodes[0]}", fontsize=9)
        axis.set_xlabel("frame", fontsize=8)
    axes.flat[0].legend(["recorded", "predicted chunk", "of it executed"], fontsize=7)
    horizon = axes.flat[len(names)]
    for condition in along.chunks:
        horizon.plot(along.squared(condition).nanmean(0).sqrt(), label=condition, marker=".")
    horizon.set_title("error over the chunk, normalised", fontsize=9)
    horizon.set_xlabel("action of the chunk", fontsize=8)
    horizon.set_ylim(bottom=0)
    horizon.legend(fontsize=7)
    figure.text(0.02, 0.02, "\n".join(lines), fontsize=9, family="monospace")
    figure.tight_layout(rect=(0, words / height, 1, 1))
    figure.savefig(path, dpi=80)
    plt.close(figure)
