"""The ladder of docs/space.md: its batches are LeRobot's, each arm sees what it says, and the road is whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lerobot.datasets.factory import resolve_delta_timestamps
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.utils.collate import lerobot_collate_fn
from torch import Tensor

import benchmarks.space.__main__ as space_ladder
from benchmarks.space import probe
from benchmarks.space.arms import ARMS, RUNGS, STATE, no_depth, other_depth, plan, pose_in_state, rays
from benchmarks.space.run import both, build
from benchmarks.study.data import Demonstrations
from benchmarks.study.results import load
from lerobot_deepfusion.inputs.depth_keys import depth_key, extrinsics_key, intrinsics_key
from tests.policies import INTRINSICS, POSE
from tests.small_data import columns, picture, vector, write

CAMERA = "observation.image"


@pytest.fixture(scope="module")
def moving(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Depth, and a camera that stands elsewhere in each episode."""
    depth = {**picture(channels=1), "info": {"is_depth_map": True}}
    features = columns(observation__image_depth=depth)
    features |= {intrinsics_key(CAMERA): vector(4), extrinsics_key(CAMERA): vector(12)}

    def told(key: str, episode: int, frame: int) -> list[float] | None:
        if key == extrinsics_key(CAMERA):
            return [*POSE[:11], 0.9 + episode / 10]
        return INTRINSICS if key == intrinsics_key(CAMERA) else None

    return write(tmp_path_factory.mktemp("moving") / "data", features, value=told)


def test_batches_equal_lerobots(moving: Path) -> None:
    """Depth in LeRobot's unit among all else, to the bit."""
    ours = Demonstrations(moving)
    config = build(ARMS["world"], ours)[0].config
    theirs = LeRobotDataset("local/x", root=moving, delta_timestamps=resolve_delta_timestamps(config, ours.meta))
    expected = lerobot_collate_fn([theirs[index] for index in range(len(theirs))])
    found = ours.batch(torch.arange(len(theirs)), config)
    assert depth_key(CAMERA) in found
    for key in found.keys() - {"task"}:
        assert torch.equal(found[key], expected[key]), key


@pytest.mark.parametrize("name", ARMS)
def test_every_arm_learns_from_what_it_sees(moving: Path, name: str) -> None:
    """A loss with a gradient; the state has the pose in it where that is what the arm is about."""
    data, arm = Demonstrations(moving), ARMS[name]
    policy, before, _ = build(arm, data)
    batch = data.batch(torch.tensor([0, 20]), policy.config)
    prepared = before(batch if arm.change is None else arm.change(batch))
    loss, _ = policy.forward(prepared)
    loss.backward()
    assert policy.config.position_3d == arm.position_3d
    assert prepared[STATE].shape[1] == (16 if name == "pose" else 4)
    tower = [weight.grad for weight in policy.model.perception.vision_tower.parameters()]
    assert any(grad is not None and grad.any() for grad in tower) == (arm.position_3d != "cloud")
    if name == "pose":  # normalised by the statistics of what was appended: the height differs between the episodes
        low, high = prepared[STATE][:, -1].tolist()
        assert low == pytest.approx(-high, abs=1e-3)
        assert abs(high) == pytest.approx(1, abs=1e-3)


def test_what_is_changed_at_test(moving: Path) -> None:
    """Another's depth comes with that one's camera; picture and state stay. A covered sensor gives zeros."""
    data = Demonstrations(moving)
    batch = data.batch(torch.tensor([0, 20]), build(ARMS["flat"], data)[0].config)
    other = other_depth(batch)
    for key in (depth_key(CAMERA), intrinsics_key(CAMERA), extrinsics_key(CAMERA)):
        assert torch.equal(other[key], batch[key].flip(0))
    assert torch.equal(other[CAMERA], batch[CAMERA])
    assert torch.equal(other[STATE], batch[STATE])
    assert not torch.equal(other[depth_key(CAMERA)], batch[depth_key(CAMERA)])
    assert (no_depth(batch)[depth_key(CAMERA)] == 0).all()
    assert torch.equal(no_depth(batch)[CAMERA], batch[CAMERA])
    assert (rays(batch)[depth_key(CAMERA)] == 1000).all()
    change = both(pose_in_state, no_depth)
    assert change is not None
    assert change(batch)[STATE].shape == (2, 16)


def test_plan() -> None:
    """Every run once, on rungs that are judged where the cameras may stand."""
    runs = list(plan())
    assert len({run.name for run in runs}) == len(runs)
    assert {run.rung for run in runs} == set(RUNGS)
    assert {run.arm for run in runs} == set(ARMS)


# --- where is a thing in the air? -------------------------------------------------------------------------


def drawn(count: int = 8) -> dict[str, Tensor]:
    """As `probe.pictures` gives them, of noise; every camera stands 2 m above a place and looks down."""
    generator = torch.Generator().manual_seed(0)
    place = torch.rand(count, 3, generator=generator, dtype=torch.float64)
    pose = torch.tensor([1.0, 0, 0, 0, 0, -1, 0, 0, 0, 0, -1, 0]).repeat(count, 1).view(count, 3, 4)
    pose[..., 3] = place.float() + torch.tensor([0, 0, 2.0])
    return {
        "picture": torch.randint(0, 255, (count, 96, 96, 3), dtype=torch.uint8, generator=generator),
        "depth": 500 + 1000 * torch.rand(count, 1, 96, 96, generator=generator),
        "intrinsics": torch.tensor(INTRINSICS).expand(count, 4),
        "pose": pose.view(count, 12),
        "place": place,
    }


def test_errors_along_the_ray_and_across() -> None:
    """3 cm below and 4 cm beside is 5 cm off."""
    data = drawn()
    found = data["place"].float() + torch.tensor([0.04, 0, -0.03])
    assert probe.errors(found, data) == "5.0 | 3.0 | 4.0"


@pytest.mark.parametrize("name", probe.ARMS)
def test_what_each_finder_looks_at(name: str) -> None:
    """Its answer hangs on the picture, and on depth where the arm has some; it is trained by a step."""
    data = drawn()
    pixels, points = probe.views(data, name)
    assert pixels.shape == (8, 1, 3, 96, 96)
    torch.manual_seed(0)
    finder = probe.Finder(name)
    probe.train(finder, pixels, points, torch.randn(8, 3), 3)
    before = finder(pixels, points)
    assert not torch.equal(finder(pixels.flip(-1), points), before)
    assert torch.equal(finder(pixels, points.flip(-1)), before) == (name == "flat")
    nearer = probe.views({**data, "depth": data["depth"] / 2}, name)[1]
    assert torch.equal(nearer, points) == (name == "rays")
    own = probe.views(data, "world")[1]
    assert torch.equal(points, own) == (name not in ("rays", "other_depth"))


@pytest.mark.slow
def test_smoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Recorded, trained, judged with and without depth; and not done again."""
    monkeypatch.setattr("sys.argv", ["space", "--smoke", "--lanes=1", f"--out={tmp_path}"])
    for _ in range(2):
        capsys.readouterr()
        with pytest.raises(SystemExit, match="0"):
            space_ladder.main()
    rows = load(tmp_path / "space_ladder.csv")
    assert [(row["cameras"], row["control"]) for row in rows] == [("fixed", ""), ("fixed", "no depth")]
    assert {row["steps"] for row in rows} == {2}
    assert "0 runs to do" in capsys.readouterr().out
