"""`deepfusion space`: the table is where it is, a wrong pose shows, and what a policy would refuse is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rerun.recording import load_recording

from lerobot_deepfusion.cli import main
from lerobot_deepfusion.inputs.depth_keys import depth_key
from lerobot_deepfusion.looking.points_seen import apart, see
from tests.small_data import columns, picture, write

TOP, SIDE = "observation.images.top", "observation.images.side"
INTRINSICS = [0.9, 1.2, 0.5, 0.5]
POSE = [0.0, -1, 0, 0.1, -1, 0, 0, 0.2, 0, 0, -1, 0.9]  # looks straight down from 0.9 m above the base's plane
LIFTED = [*POSE[:11], 0.95]  # the same, 5 cm too high


def data(folder: Path, **poses: list[float] | None) -> Path:
    """A table in the base's plane, 0.9 m below cameras that stand at the same place, whatever they say of it."""
    features = columns(observation__image=None)
    for name, pose in poses.items():
        camera = {"intrinsics": INTRINSICS, **({"pose": pose} if pose else {})}
        features[f"observation.images.{name}"] = picture()
        features[f"observation.images.{name}_depth"] = {
            **picture(channels=1),
            "info": {"is_depth_map": True, "camera": camera},
        }
    return write(folder, features, ((3, "pick"),), value=lambda key, *_: _depth() if "depth" in key else None)


def _depth() -> np.ndarray:
    """Millimetres; the right half has no return."""
    depth = np.full((48, 64, 1), 900, np.uint16)
    depth[:, 32:] = 0
    return depth


def space(root: Path, out: Path, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    main(["space", str(root), "--output-dir", str(out), *more])
    return capsys.readouterr().out


def test_the_table_is_where_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = data(tmp_path / "data", top=POSE, side=LIFTED)
    said = space(root, tmp_path / "out", capsys, "--frame=1")
    assert f"{TOP}: 50% of the pixels have a point; metres in the robot's base" in said
    assert "100% of them lie at a height of 0.00 m" in said
    assert "100% of them lie at a height of 0.05 m" in said
    assert f"{SIDE}'s points lie 5.0 cm beside {TOP}'s" in said
    drawn = np.asarray(Image.open(tmp_path / "out/space.png").convert("RGB"))
    assert drawn.std() > 10
    (seen, _), (later, _) = see(root, "local/small", 0, [1, 2, 3], (0.02, 5.0), None)
    assert seen.places.shape == (48 * 32, 3)
    # The left half of the picture is at greater y (the picture's right is the base's -y), around the camera's 0.2.
    assert (seen.places[:, 1] > 0.2).all()
    assert np.abs(seen.places[:, 2]).max() < 1e-6
    assert np.isnan(seen.depth[:, 32:]).all()
    assert not np.array_equal(seen.colours, later.colours)


def test_for_rerun(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Points of every frame, by camera, in LeRobot's own viewer's format."""
    assert "space.rrd shows it" in space(data(tmp_path / "data", top=POSE), tmp_path / "out", capsys)
    recorded = load_recording(tmp_path / "out/space.rrd")
    names = {column.entity_path for column in recorded.schema().component_columns()}
    assert {"/base/top/points", "/base/top/picture", "/base/top/axes"} <= names


def test_frames_are_those_of_the_episode(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[int] = []
    monkeypatch.setattr("rerun.RecordingStream.set_time", lambda *_, sequence: told.append(sequence))
    space(data(tmp_path / "data", top=POSE), tmp_path / "out", capsys, "--frame=1")
    assert told == [1, 2]


def test_without_a_pose(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In the camera's own frame, or where the option puts it."""
    root = data(tmp_path / "data", top=None)
    assert "metres in the camera's own frame" in space(root, tmp_path / "out", capsys)
    option = f"{{{TOP}: {{intrinsics: {INTRINSICS}, pose: {LIFTED}}}}}"
    assert "a height of 0.05 m" in space(root, tmp_path / "out", capsys, "--camera-calibration", option)


def test_what_stops(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = data(tmp_path / "data", top=POSE)
    for arguments, message in (
        (("--frame=3",), "--frame=3: episode 0 has the frames 0 to 2"),
        (("--camera-calibration", f"{{{TOP}: {{pose: [1]}}}}"), "pose is [1]; expected 12 finite numbers"),
    ):
        with pytest.raises(SystemExit, match=message.replace("[", r"\[").replace("]", r"\]")):
            space(root, tmp_path / "out", capsys, *arguments)
    flat = write(tmp_path / "flat", columns(), ((3, "pick"),))
    with pytest.raises(SystemExit, match=f"has depth; expected a feature such as {depth_key('observation.image')}"):
        space(flat, tmp_path / "out", capsys)


def test_apart_counts_the_nearer_half() -> None:
    """Two planes 3 cm apart, of which one camera sees twice as much; against the whole distance matrix."""
    grid = torch.cartesian_prod(torch.linspace(0, 1, 40), torch.linspace(0, 1, 40))
    one = torch.cat([grid, torch.zeros(1600, 1)], dim=1)
    other = torch.cat([grid * torch.tensor([2.0, 1]), torch.full((1600, 1), 0.03)], dim=1)
    nearest = torch.cdist(other, one).amin(1).sort().values
    assert apart(one.numpy(), other.numpy()) == pytest.approx(nearest[:800].median().item())
