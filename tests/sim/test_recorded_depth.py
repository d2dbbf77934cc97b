"""Depth that is recorded is what evaluation shows, and a depth stream as LeRobot knows them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("metaworld")

from lerobot_deepfusion.inputs.depth_keys import depth_key, extrinsics_key, intrinsics_key
from lerobot_deepfusion.sim import recording
from lerobot_deepfusion.sim.camera_names import ON_THE_HAND
from lerobot_deepfusion.sim.metaworld_fast import MetaworldFastEnv


@pytest.fixture(scope="module", params=[("corner2,gripperPOV", "fixed"), ("corner2", "wide_train")])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, MetaworldFastEnv]:
    """One demonstration, merged as `deepfusion demos` merges its parts, and the environment to evaluate in."""
    from lerobot.datasets.aggregate import aggregate_datasets

    cameras, poses = request.param
    recipe = recording.Recipe(
        "metaworld", ("push-v3",), 1, 32, 100_000, 0.1, cameras, goal_markers=False, depth=True, camera_poses=poses
    )
    folder = tmp_path_factory.mktemp("depth")
    part = next(recipe.parts())
    recording.record_part(recipe, part, folder)
    aggregate_datasets(["local/part"], "local/merged", roots=[folder / part.name], aggr_root=folder / "merged")
    config = MetaworldFastEnv(
        observation_size=32, cameras=cameras, goal_markers=False, depth=True, camera_poses=poses
    )
    return folder / "merged", config


@pytest.mark.slow
def test_recorded_depth_equals_evaluated_one(case: tuple[Path, MetaworldFastEnv]) -> None:
    """Depth, intrinsics and pose of the first frames, through lerobot-eval's conversion and LeRobot's reader, bit for
    bit; those of a camera that stands still come from the data set's own entry of its depth.
    """
    from lerobot.datasets.lerobot_dataset import LeRobotDataset
    from lerobot.envs.utils import preprocess_observation

    root, config = case
    data = LeRobotDataset("local/x", root=root)
    env = config.create_envs(1)["push-v3"][0]
    names = dict(zip(data.meta.camera_keys[: len(config.camera_names)], config.camera_names, strict=True))
    observation, _ = env.reset(seed=[100_000])
    noise = np.random.default_rng(100_000).normal(0, 0.1, 3)
    for index in range(2):
        seen, frame = preprocess_observation(observation), data[index]
        for camera, name in names.items():
            assert torch.equal(seen[camera][0], frame[camera])
            depth, intrinsics, extrinsics = depth_key(camera), intrinsics_key(camera), extrinsics_key(camera)
            assert torch.equal(seen[depth][0], frame[depth])
            known = data.meta.features[depth]["info"]["camera"]
            assert torch.equal(seen[intrinsics][0], torch.tensor(known["intrinsics"]))
            if name in ON_THE_HAND or config.camera_poses != "fixed":
                assert "pose" not in known
                assert torch.equal(seen[intrinsics][0], frame[intrinsics])
                assert torch.equal(seen[extrinsics][0], frame[extrinsics])
            else:
                assert torch.equal(seen[extrinsics][0], torch.tensor(known["pose"]))
                assert extrinsics not in frame
        action = frame["action"].numpy().copy()
        action[:3] += noise
        observation, *_ = env.step(np.clip(action, -1, 1)[None])
    env.close()


@pytest.mark.slow
def test_recorded_depth_is_a_depth_stream_of_lerobots(case: tuple[Path, MetaworldFastEnv]) -> None:
    """Known to LeRobot as depth, stored in metres, given back in millimetres, with statistics in millimetres."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    root, config = case
    data = LeRobotDataset("local/x", root=root)
    pictures = [key for key in data.meta.camera_keys if key not in data.meta.depth_keys]
    assert data.meta.depth_keys == [depth_key(key) for key in pictures]
    assert len(pictures) == len(config.camera_names)
    for key in data.meta.depth_keys:
        feature = data.meta.features[key]
        assert (feature["dtype"], tuple(feature["shape"])) == ("image", (32, 32, 1))
        assert feature["info"]["is_depth_map"]
        assert feature["info"]["depth_unit"] == "m"
        depth = data[0][key]
        assert depth.dtype == torch.float32
        assert depth.shape == (1, 32, 32)
        assert 50 < depth.median() < 3000
