"""Heat over the cameras' pictures, as pictures (PNG), a film (MP4) and a recording for Rerun."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .pyplot import load_pyplot
from .sight import ACTIONS, Sight

COLUMNS = 8  # observations in a strip
LEAST_HEIGHT = 288  # pixels of a film
FPS = 4


def overlay(picture: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Heat in colour over a picture in grey, [H, W, 3] in [0, 1]; the hottest pixel is the brightest."""
    from matplotlib import colormaps

    share = (heat / max(heat.max(), 1e-12))[..., None]
    grey = 0.7 * picture.mean(-1, keepdims=True)
    return grey + 0.7 * share * (colormaps["inferno"](0.3 + 0.6 * share[..., 0])[..., :3] - grey)


def draw_strip(sights: Sequence[Sight], steps: Sequence[int], said: str, path: Path) -> None:
    """A column for each of some observations: each camera's picture, and the heat over it."""
    chosen = np.unique(np.linspace(0, len(sights) - 1, min(COLUMNS, len(sights))).round().astype(int))
    cameras = list(sights[0].pictures)
    figure, axes = _axes(2 * len(cameras), len(chosen), 1.7)
    for column, index in zip(axes.T, chosen, strict=True):
        sight = sights[index]
        column[0].set_title(f"frame {steps[index]}", fontsize=8)
        for row, camera in enumerate(cameras):
            column[2 * row].imshow(sight.pictures[camera])
            column[2 * row + 1].imshow(overlay(sight.pictures[camera], sight.heat(camera)))
    _save(figure, said, path)


def draw_layers(sight: Sight, said: str, path: Path) -> None:
    """For each camera a row of layers, and one of all, for each of some actions of the chunk; where there are no
    layers, one row of actions.
    """
    layers = len(next(iter(sight.cells.values())))
    stack = [("all layers", None), *((f"layer {layer}", layer) for layer in range(layers))]
    rows: list[tuple[str, str, list[tuple[str, int | None, str]]]] = []  # camera, label, and by column what is seen
    for camera in sight.pictures:
        name = camera.rpartition(".")[2]
        if layers == 1:
            rows.append((camera, name, [(f"{action} of the chunk", None, action) for action in ACTIONS]))
        else:
            rows += [(camera, f"{name}\n{action}", [(*at, action) for at in stack]) for action in ACTIONS]
    figure, axes = _axes(len(rows), len(rows[0][2]), 1.6)
    for axis, (title, _, _) in zip(axes[0], rows[0][2], strict=True):
        axis.set_title(title, fontsize=8)
    for row, (camera, label, columns) in zip(axes, rows, strict=True):
        row[0].text(-0.08, 0.5, label, **_left(row[0]))
        for axis, (_, layer, action) in zip(row, columns, strict=True):
            axis.imshow(overlay(sight.pictures[camera], sight.heat(camera, layer, action=action)))
    _save(figure, said, path)


def draw_heads(sight: Sight, path: Path) -> None:
    """For each camera a row of heads for each layer, the mean over the actions."""
    layers, heads = next(iter(sight.cells.values())).shape[:2]
    rows = [(camera, layer) for camera in sight.pictures for layer in range(layers)]
    figure, axes = _axes(len(rows), heads, 1.0)
    for row, (camera, layer) in zip(axes, rows, strict=True):
        for head, axis in enumerate(row):
            axis.imshow(overlay(sight.pictures[camera], sight.heat(camera, layer, head)))
        row[0].text(-0.08, 0.5, f"{camera.rpartition('.')[2]}\nlayer {layer}", **_left(row[0]))
    _save(figure, "attention by layer (down) and head (across)", path)


def film(sights: Sequence[Sight], path: Path) -> None:
    """Pictures of all cameras beside the heat over them, a few observations a second."""
    from lerobot.utils.io_utils import write_video

    frames = []
    for sight in sights:
        views = [
            _enlarged(view)
            for camera, picture in sight.pictures.items()
            for view in (picture, overlay(picture, sight.heat(camera)))
        ]
        height = max(len(view) for view in views)  # under lower ones stays black
        whole = np.concatenate([np.pad(view, ((0, height - len(view)), (0, 0), (0, 0))) for view in views], axis=1)
        frames.append(np.pad(whole, ((0, height % 2), (0, whole.shape[1] % 2), (0, 0))))  # codecs want even sides
    write_video(path, frames, FPS)


def record_for_rerun(sights: Sequence[Sight], steps: Sequence[int], path: Path) -> None:
    """Cameras, heat, state and the planned chunk over time; `rerun <path>` shows them.

    Raises:
        ImportError: without Rerun.
    """
    import rerun as rr

    recording = rr.RecordingStream("deepfusion")
    recording.save(path)
    for step, sight in zip(steps, sights, strict=True):
        recording.set_time("frame", sequence=step)
        for camera, picture in sight.pictures.items():
            name = camera.rpartition(".")[2]
            recording.log(f"{name}/picture", rr.Image((255 * picture).astype(np.uint8)))
            heat = overlay(picture, sight.heat(camera))
            recording.log(f"{name}/heat", rr.Image((255 * heat.clip(0, 1)).astype(np.uint8)))
        recording.log("state", rr.Scalars(sight.state))
        recording.log("action", rr.Scalars(sight.chunk[0]))
        recording.log("chunk", rr.Tensor(sight.chunk, dim_names=("step", "dimension")))
        for part in ("text", "state", "own"):
            recording.log(f"attention/{part}", rr.Scalars(float(np.mean(sight.shares[part]))))
    recording.disconnect()


def _axes(rows: int, columns: int, inches: float) -> tuple[Any, Any]:
    plt = load_pyplot()
    size = (inches * columns + 0.7, inches * rows + 0.5)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    return figure, axes


def _left(axis: Any) -> dict[str, Any]:
    """Text at the left of a row."""
    return {"transform": axis.transAxes, "ha": "right", "va": "center", "fontsize": 7}


def _save(figure: Any, said: str, path: Path) -> None:
    from matplotlib import pyplot as plt

    figure.suptitle(said, fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _enlarged(picture: np.ndarray) -> np.ndarray:
    """As bytes, by whole pixels, at least `LEAST_HEIGHT` high."""
    times = -(-LEAST_HEIGHT // len(picture))
    return (255 * picture.clip(0, 1)).astype(np.uint8).repeat(times, 0).repeat(times, 1)
