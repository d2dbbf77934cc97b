"""One scene by every way that LeRobot has to a policy: the same points under the same picture, and the same chunk."""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.datasets.streaming_dataset import StreamingLeRobotDataset
from lerobot.policies.factory import make_pre_post_processors
from torch import Tensor
from torch.utils.data import default_collate

from lerobot_deepfusion.inputs import points
from lerobot_deepfusion.inputs.depth_keys import depth_key
from lerobot_deepfusion.modeling_deepfusion import DeepFusionPolicy
from lerobot_deepfusion.processor_deepfusion import make_deepfusion_pre_post_processors
from tests.llavas import enlarge
from tests.policies import STATS, make_config
from tests.serving.fakerobot import FRAME, STATE, FakeRobot
from tests.serving.served import running
from tests.serving.test_serving import (
    CAMERA,
    RTC,
    TASK,
    alone,
    connect,
    next_chunk,
    robot_config,
    rollout_options,
    turned_away,
)

__all__ = ["alone"]

CALIBRATION = {CAMERA: {"intrinsics": [0.7, 1.2, 0.5, 0.5], "pose": [1.0, 0, 0, 0.2, 0, 0, 1, -0.4, 0, -1, 0, 0.6]}}


def save(folder: Path, frame: str = "world", camera: tuple[int, int] = FRAME[:2]) -> Path:
    config = make_config(("images.front",), position_3d=frame, camera_calibration=CALIBRATION)
    for feature in config.image_features.values():
        feature.shape = (feature.shape[0], *camera)
    torch.manual_seed(0)
    policy = DeepFusionPolicy(config)
    if frame != "none":
        enlarge(policy.model.position_3d)
    for part in (policy, *make_deepfusion_pre_post_processors(config, STATS)):
        part.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("space"))


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The points that policies were given."""
    found: list[Tensor] = []

    def noted(*arguments: Any) -> Tensor | None:
        stacked = points.stack_points(*arguments)
        if stacked is not None:
            found.append(stacked)
        return stacked

    monkeypatch.setattr("lerobot_deepfusion.modeling_deepfusion.stack_points", noted)
    return found


def at_once(checkpoint: Path, robot: FakeRobot, **changed: Any) -> tuple[Tensor, Tensor]:
    """Points and chunk of a robot's observation in millimetres, given to the policy by hand."""
    policy = DeepFusionPolicy.from_pretrained(checkpoint)
    pre, post = make_pre_post_processors(policy.config, pretrained_path=str(checkpoint))
    batch = {
        CAMERA: torch.from_numpy(robot.frame).permute(2, 0, 1)[None] / 255,
        depth_key(CAMERA): torch.from_numpy(robot.depth.astype(np.float32)).permute(2, 0, 1)[None],
        "observation.state": torch.ones(1, len(STATE)),
        "task": [TASK],
        **changed,
    }
    batch = pre(batch)
    stacked = points.stack_points(policy.config, batch, 96)
    torch.manual_seed(3)
    return stacked, post(policy.predict_action_chunk(batch))[0]


@pytest.mark.medium
@pytest.mark.parametrize("way", ["images", "video", "streamed images"])
def test_data_sets(checkpoint: Path, tmp_path: Path, way: str) -> None:
    """Pictures give millimetres to the bit; videos of 12 bits within 1.3 mm, which moves points by at most 2 mm.

    Streamed videos are LeRobot's torchcodec alone, which needs an FFmpeg; they were not tried.
    """
    video = way == "video"
    robot = FakeRobot(robot_config(depth=True))
    kind = {"dtype": "video" if video else "image", "names": ["height", "width", "channels"]}
    features = {
        CAMERA: {**kind, "shape": FRAME},
        depth_key(CAMERA): {**kind, "shape": (*FRAME[:2], 1), "info": {"is_depth_map": True}},
        "observation.state": {"dtype": "float32", "shape": (len(STATE),), "names": list(STATE)},
        "action": {"dtype": "float32", "shape": (3,), "names": list("abc")},
    }
    data = LeRobotDataset.create("local/depth", fps=10, features=features, root=tmp_path / "data", use_videos=video)
    for _ in range(3):
        numbers = {"observation.state": np.ones(len(STATE), np.float32), "action": np.zeros(3, np.float32)}
        data.add_frame({CAMERA: robot.frame, depth_key(CAMERA): robot.depth, **numbers, "task": TASK})
    data.save_episode()
    data.finalize()
    if way == "streamed images":
        rows = iter(StreamingLeRobotDataset("local/depth", root=tmp_path / "data", shuffle=False, buffer_size=1))
    else:
        rows = iter([LeRobotDataset("local/depth", root=tmp_path / "data")[1]])
    sample = default_collate([next(rows)])
    expected, chunk = at_once(checkpoint, robot)
    found, same = at_once(checkpoint, robot, **{depth_key(CAMERA): sample[depth_key(CAMERA)]})
    off = (found - expected).abs()
    print(f"{off[:, :, :3].max() * 1000:.2f} mm")
    if not video:
        assert torch.equal(found, expected)
        assert torch.equal(same, chunk)
    assert off[:, :, :3].max() < 2e-3
    assert torch.equal(found[:, :, 3] > 0.5, expected[:, :, 3] > 0.5)


@pytest.mark.medium
@pytest.mark.parametrize("inference", [("--inference.type=sync",), RTC])
def test_rollouts(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seen: list[Tensor], inference: tuple
) -> None:
    """The installed command, with a robot that sends 16 bits."""
    options = rollout_options(checkpoint, tmp_path / "plugins", *inference, "--robot.depth=true", "--duration=2")
    monkeypatch.syspath_prepend(tmp_path / "plugins")
    monkeypatch.setattr(sys, "argv", ["lerobot-rollout", *options])
    (command,) = importlib.metadata.entry_points(group="console_scripts", name="lerobot-rollout")
    command.load()()
    expected, _ = at_once(checkpoint, FakeRobot(robot_config(depth=True)))
    assert seen
    assert all(torch.equal(found, expected) for found in seen)


@pytest.mark.medium
def test_served(checkpoint: Path, seen: list[Tensor]) -> None:
    """LeRobot's client: the chunk of the policy, to the bit."""
    with running() as service:
        client = connect(service.address, checkpoint, depth=True)
        assert client.start()
        torch.manual_seed(3)
        served = next_chunk(client)
        client.stop()
    expected, chunk = at_once(checkpoint, FakeRobot(robot_config(depth=True)))
    assert torch.equal(seen[0], expected)
    assert torch.equal(served, chunk[:5])


@pytest.mark.medium
def test_served_at_another_resolution(tmp_path: Path, seen: list[Tensor]) -> None:
    """Trained at half the size: of every other pixel the nearest, and no point in between; within half a pixel."""
    checkpoint = save(tmp_path / "half", camera=(FRAME[0] // 2, FRAME[1] // 2))
    with running() as service:
        client = connect(service.address, checkpoint, depth=True)
        assert client.start()
        assert next_chunk(client).isfinite().all()
        client.stop()
    expected, _ = at_once(checkpoint, FakeRobot(robot_config(depth=True)))
    whole = (seen[0][:, :, 3] == 1) & (expected[:, :, 3] == 1)
    assert whole.any()
    assert (seen[0] - expected)[:, :, :3].movedim(2, -1)[whole].abs().max() < 0.02


@pytest.mark.medium
def test_a_flat_policy_takes_a_robot_with_depth(tmp_path: Path) -> None:
    """It is left aside, and the robot is served as one without."""
    flat, chunks = save(tmp_path / "flat", "none"), []
    for depth in (True, False):
        with running() as service:
            client = connect(service.address, flat, depth=depth)
            assert client.start()
            torch.manual_seed(3)
            chunks.append(next_chunk(client))
            client.stop()
    assert torch.equal(*chunks)


def test_a_robot_without_depth_is_turned_away(checkpoint: Path) -> None:
    with running() as service:
        turned_away(connect(service.address, checkpoint), r"sends the cameras .*_depth")
