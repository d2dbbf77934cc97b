"""A few frames of a film, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .pyplot import load_pyplot

COLUMNS = 6


def read_film(path: Path) -> list[np.ndarray]:
    """Frames of a video file, [H, W, 3] uint8."""
    import av

    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return frames


def draw_film_strip(films: Sequence[Path], said: Sequence[str], path: Path) -> None:
    """A row of frames for each film, evenly spread from the first to the last, under what is said of it.

    Raises:
        ImportError: without Matplotlib.
    """
    plt = load_pyplot()
    title_height = 0.3 if any(said) else 0.0  # inches
    height = (2.5 + title_height) * len(films)
    figure, axes = plt.subplots(len(films), COLUMNS, figsize=(2.5 * COLUMNS, height), squeeze=False)
    figure.subplots_adjust(0, 0, 1, 1 - title_height / height, wspace=0.02, hspace=0.01 + title_height / 2.5)
    for row, film, title in zip(axes, films, said, strict=True):
        frames = read_film(film)
        for column, axis in enumerate(row):
            axis.imshow(frames[round(column * (len(frames) - 1) / (COLUMNS - 1))])
            axis.axis("off")
        if title:
            row[0].set_title(title, loc="left", fontsize=11)
    figure.savefig(path, dpi=90 if len(films) == 1 else 50)
    plt.close(figure)
