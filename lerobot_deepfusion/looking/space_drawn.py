"""Points of a frame as a picture (PNG) and as a recording for Rerun, LeRobot's own viewer."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import yaml

from .points_seen import Seen, see, summary
from .pyplot import load_pyplot

# From above, from the side and from the front: which axes lie across and up, and from which end one looks.
VIEWS = {"from above": (0, 1, 2, 1), "along y": (0, 2, 1, -1), "along x": (1, 2, 0, -1)}
REACH = 1.2  # metres around the middle of the points; what is further is left out
CAMERA_AXES = 0.1  # metres, length as drawn


def look_at_space(
    root: Path,
    output_dir: Path,
    repo_id: str,
    episode: int,
    frame: int,
    frames: int,
    depth_range: tuple[float, float],
    camera_calibration: str | None,
) -> str:
    """What `deepfusion space` does; returns what it says.

    Raises:
        ImportError: without Matplotlib.
        ValueError: if the calibration is no YAML; see `points_seen.see`, too.
    """
    load_pyplot()
    try:
        calibration = None if camera_calibration is None else yaml.safe_load(camera_calibration)
    except yaml.YAMLError as error:
        raise ValueError(f"--camera-calibration={camera_calibration} is not YAML") from error
    with_rerun = find_spec("rerun") is not None
    wanted = range(frame, frame + frames) if with_rerun else [frame]
    seen = see(root, repo_id, episode, wanted, depth_range, calibration)
    output_dir.mkdir(parents=True, exist_ok=True)
    draw(seen[0], output_dir / "space.png")
    said = [summary(seen[0]), f"wrote {output_dir / 'space.png'}"]
    if with_rerun:
        record_for_rerun(seen, frame, output_dir / "space.rrd")
        said.append(f"wrote {output_dir / 'space.rrd'}; rerun {output_dir / 'space.rrd'} shows it")
    else:
        said.append("no space.rrd: pip install 'lerobot_policy_deepfusion[look]'")
    return "\n".join(said)


def draw(seen: Sequence[Seen], path: Path) -> None:
    """A row for each camera: picture, depth, and its points from three sides, in metres; cameras with a pose together
    in one more row.
    """
    plt = load_pyplot()
    posed = [one for one in seen if one.pose is not None]
    rows: list[list[Seen]] = [[one] for one in seen] + ([posed] if len(posed) > 1 else [])
    figure, axes = plt.subplots(len(rows), 5, figsize=(20, 4 * len(rows)), squeeze=False)
    for (picture, depth, *views), row in zip(axes, rows, strict=True):
        for axis, title in ((picture, row[0].camera), (depth, "depth, m")):
            axis.set_title(title)
            axis.axis("off")
        if len(row) > 1:
            picture.set_title("all cameras")
            depth.set_title("")
        else:
            picture.imshow(row[0].picture)
            figure.colorbar(depth.imshow(row[0].depth), ax=depth)
        for axis, (name, view) in zip(views, VIEWS.items(), strict=True):
            _draw_view(axis, row, *view)
            axis.set(title=name, aspect="equal", xlabel="xyz"[view[0]], ylabel="xyz"[view[1]])
    figure.tight_layout()
    figure.savefig(path, dpi=70)
    plt.close(figure)


def _draw_view(axis, row: Sequence[Seen], across: int, up: int, along: int, sign: int) -> None:  # type: ignore[no-untyped-def]
    """What is nearer to who looks is drawn later."""
    places, colours = (np.concatenate([getattr(one, name) for one in row]) for name in ("places", "colours"))
    order = np.argsort(sign * places[:, along])
    axis.scatter(places[order, across], places[order, up], s=2, c=colours[order], linewidths=0)
    if len(places):
        middle = np.median(places, axis=0)
        axis.set(xlim=(middle[across] - REACH, middle[across] + REACH), ylim=(middle[up] - REACH, middle[up] + REACH))
    axis.axhline(0, color="grey", linewidth=0.5)
    axis.axvline(0, color="grey", linewidth=0.5)
    for one in row:
        if one.pose is not None:
            at, ahead = one.pose[:, 3], one.pose[:, 2] * CAMERA_AXES
            axis.annotate(
                one.camera.rpartition(".")[2],
                (at[across] + ahead[across], at[up] + ahead[up]),
                (at[across], at[up]),
                arrowprops={"arrowstyle": "->"},
            )


def record_for_rerun(frames: Sequence[Sequence[Seen]], first: int, path: Path) -> None:
    """The points over time, frame `first` of the episode and those behind it, with cameras and the base's axes;
    `rerun <path>` shows them.

    Raises:
        ImportError: without Rerun.
    """
    import rerun as rr

    recording = rr.RecordingStream("deepfusion")
    recording.save(path)
    recording.log("base", rr.ViewCoordinates.RIGHT_HAND_Z_UP, static=True)
    recording.log("base/axes", rr.Arrows3D(vectors=0.2 * np.eye(3), colors=255 * np.eye(3)), static=True)
    for index, seen in enumerate(frames, first):
        recording.set_time("frame", sequence=index)
        for one in seen:
            where = f"{'base' if one.pose is not None else 'frame_of'}/{one.camera.rpartition('.')[2]}"
            recording.log(f"{where}/points", rr.Points3D(one.places, colors=one.colours, radii=0.002))
            recording.log(f"{where}/picture", rr.Image((255 * one.picture).astype(np.uint8)))
            if one.pose is not None:
                axes = CAMERA_AXES * one.pose[:, :3].T
                origins = np.tile(one.pose[:, 3], (3, 1))
                recording.log(f"{where}/axes", rr.Arrows3D(origins=origins, vectors=axes, colors=255 * np.eye(3)))
    recording.disconnect()
