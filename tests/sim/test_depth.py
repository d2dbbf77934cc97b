"""The simulator as a depth camera: points of its depth lie where MuJoCo's own rays end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import mujoco
import numpy as np
import pytest
import torch

pytest.importorskip("metaworld")

from lerobot_deepfusion.inputs.depth_keys import depth_key, extrinsics_key, intrinsics_key
from lerobot_deepfusion.sim import depth_camera, experts_by_name, metaworld_env
from lerobot_deepfusion.sim.metaworld_fast import MetaworldFastEnv

CAMERAS = ("corner", "corner2", "corner3", "topview", "gripperPOV")
SIZE = 96
DRAWN = np.array([1, 1, 1, 0, 0, 0], np.uint8)  # groups of geoms that renderers draw, and so what rays may hit


def keys_of(camera: str) -> tuple[str, str, str]:
    return depth_key(camera), intrinsics_key(camera), extrinsics_key(camera)


def moved(env: Any) -> dict[str, Any]:
    """The observation after five steps from seed 3, under the keys of a batch."""
    env.reset(seed=3)
    for _ in range(5):
        observation, *_ = env.step(np.array([0.5, 0.5, -0.5, 0.2], np.float32))
    return {f"observation.{key}": value for key, value in observation.items()}


def rays(intrinsics: np.ndarray, extrinsics: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """As the convention has it, origin [3] and the way to each pixel at a depth of 1 m [size, size, 3]; float64."""
    fx, fy, cx, cy = intrinsics.astype(np.float64)
    share = (np.arange(size) + 0.5) / size
    x, y = np.meshgrid((share - cx) / fx, (share - cy) / fy)
    pose = extrinsics.astype(np.float64).reshape(3, 4)
    return pose[:, 3], np.stack([x, y, np.ones_like(x)], axis=-1) @ pose[:, :3].T


@pytest.fixture(scope="module", params=["fixed", "wide_train"])
def room(request: pytest.FixtureRequest) -> Iterator[tuple[Any, dict[str, Any]]]:
    config = MetaworldFastEnv(
        observation_size=SIZE,
        cameras=",".join(CAMERAS),
        goal_markers=False,  # they are in no ray's way
        depth=True,
        camera_poses=request.param,
    )
    env = config.make("push-v3")
    yield env, moved(env)
    env.close()


@pytest.mark.medium
@pytest.mark.parametrize("camera", CAMERAS)
def test_depth_ends_where_rays_end(room: tuple[Any, dict[str, Any]], camera: str) -> None:
    """The worst median is 0.0088 mm, of which a quantum's rounding is 0.0076; 99 of 100 are within 0.045 mm.

    At most 0.4% are off by more than 1 mm, and graze an edge. A principal point in the middle, as if the small pixel
    that is taken were the whole one, has medians of 0.1 to 4 mm; topview's is still 0, most of what it sees being
    flat, and 99 of 100 are within 310 mm. Averaged depths: 34 to 680 mm. behindGripper is not among the cameras: at
    first it is inside the robot (right_l0), of which rays meet the inner side and a picture does not.
    """
    env, seen = room
    depth, intrinsics, extrinsics = (seen[key] for key in keys_of(f"observation.images.{camera}"))
    origin, ways = rays(intrinsics, extrinsics, SIZE)
    hit = np.zeros(1, np.int32)
    far = np.array(
        [mujoco.mj_ray(env._env.model, env._env.data, origin, way, DRAWN, 1, -1, hit) for way in ways.reshape(-1, 3)]
    ).reshape(SIZE, SIZE)
    near = depth[0] < 10_000
    assert ((far >= 0) != near).mean() < 0.003
    error = np.abs(far * 1000 - depth[0])[near & (far >= 0)]
    assert near.mean() > 0.5
    assert np.median(error) < 0.02
    assert np.percentile(error, 99) < 0.2


@pytest.fixture(scope="module")
def plain() -> mujoco.MjModel:
    return mujoco.MjModel.from_xml_string("<mujoco><statistic extent='2'/><worldbody/></mujoco>")


def points(buffer: np.ndarray, model: mujoco.MjModel, factor: int, upside_down: bool) -> np.ndarray:
    """Of a camera of 50 degrees somewhere, [H, W, 3], metres."""
    axes = np.zeros(9)
    mujoco.mju_quat2Mat(axes, np.array([0.5, 0.1, -0.7, 0.3]) / np.sqrt(0.84))
    depth = depth_camera.metric_depth(buffer, model, factor)
    intrinsics = depth_camera.intrinsics(50, len(depth), len(depth), factor)
    pose = depth_camera.extrinsics(np.array([0.3, -0.2, 0.9]), axes.reshape(3, 3), upside_down)
    origin, ways = rays(intrinsics, pose, len(depth))
    return origin + ways * depth[..., None]


def test_flipped_pictures_have_the_same_points(plain: mujoco.MjModel) -> None:
    """Within 0.0004 mm, float32's rounding of the pose, of points up to 2 m away."""
    buffer = np.random.default_rng(0).uniform(0.95, 0.99, (8, 8)).astype(np.float32)
    upright = points(buffer, plain, 1, upside_down=False)
    flipped = points(np.flip(buffer, (0, 1)), plain, 1, upside_down=True)
    assert np.abs(np.flip(flipped, (0, 1)) - upright).max() < 2e-6


def test_supersampling_mixes_no_depths(plain: mujoco.MjModel) -> None:
    """Each point of the small picture is one of the large, within 0.0004 mm; averages would lie between them."""
    buffer = np.random.default_rng(0).uniform(0.95, 0.99, (8, 8)).astype(np.float32)
    large, small = points(buffer, plain, 1, upside_down=False), points(buffer, plain, 2, upside_down=False)
    assert small.shape == (4, 4, 3)
    assert np.abs(small - large[::2, ::2]).max() < 2e-6


def test_recorded_metres_are_the_evaluated_millimetres() -> None:
    """To the bit, for every depth that there can be."""
    for first in range(0, 2**22, 2**20):
        depth = (np.arange(first, first + 2**20) * depth_camera.QUANTUM).astype(np.float32).reshape(1024, 1024)
        seen = depth_camera.millimetres(depth)
        recorded = depth_camera.metres(seen)
        assert np.array_equal(recorded[..., 0], depth)
        assert torch.equal(torch.from_numpy(recorded[..., 0]) * 1000.0, torch.from_numpy(seen[0]))


@pytest.mark.parametrize(("extent", "far"), [(2, 100), (4, 128)])
def test_furthest_depth_can_be_held_exactly(extent: float, far: float) -> None:
    """From the near plane to the far one, at most 128 m."""
    model = mujoco.MjModel.from_xml_string(f"<mujoco><statistic extent='{extent}'/><worldbody/></mujoco>")
    depth = depth_camera.metric_depth(np.array([[0, 1]], np.float32), model, 1)
    assert depth.dtype == np.float32
    assert np.abs(depth - [[0.01 * extent, far]]).max() <= depth_camera.QUANTUM / 2


@pytest.mark.medium
def test_unit_is_the_millimetre() -> None:
    """topview hangs 1.5 m above the table, which is most of what it sees; through lerobot-eval's own conversion."""
    from lerobot.envs.utils import env_to_policy_features, preprocess_observation

    config = MetaworldFastEnv(observation_size=48, cameras="topview", depth=True)
    envs = config.create_envs(2)["push-v3"][0]
    observation, _ = envs.reset(seed=[1, 2])
    envs.close()
    seen = preprocess_observation(observation)
    depth, intrinsics, extrinsics = (seen[key] for key in keys_of("observation.image"))
    assert depth.shape == (2, 1, 48, 48)
    assert depth.dtype == torch.float32
    assert abs(depth.median() - 1500) < 1
    assert intrinsics.shape == (2, 4)
    assert extrinsics.shape == (2, 12)
    assert torch.equal(extrinsics[0].view(3, 4)[:, 3], torch.tensor([0, 0.5, 1.5]))
    assert env_to_policy_features(config)["observation.image_depth"].shape == (1, 48, 48)


@pytest.fixture(scope="module")
def bare() -> Iterator[Any]:
    """Nothing but defaults."""
    env = MetaworldFastEnv(observation_size=32).make("push-v3")
    yield env
    env.close()


@pytest.fixture(scope="module")
def deep() -> Iterator[Any]:
    env = MetaworldFastEnv(observation_size=32, depth=True).make("push-v3")
    yield env
    env.close()


@pytest.mark.medium
def test_off_by_default(bare: Any, deep: Any) -> None:
    """Without the options an observation is what it was, to the bit, and depth changes nothing of it."""
    without = moved(bare)
    assert set(without) == {"observation.pixels", "observation.agent_pos"}
    renderer = bare._env.mujoco_renderer
    renderer.viewer.make_context_current()
    image = np.flip(renderer.render("rgb_array"), (0, 1))
    assert np.array_equal(metaworld_env.shrink(image, 2), without["observation.pixels"])
    assert np.array_equal(bare._env.model.camera("corner2").pos, [0.75, 0.075, 0.7])
    with_depth = moved(deep)
    for key, value in without.items():
        assert np.array_equal(with_depth[key], value)
    assert set(with_depth) - set(without) == set(keys_of("observation.image"))


@pytest.mark.medium
def test_depth_is_as_old_as_its_picture(deep: Any) -> None:
    """A picture that is repeated is repeated with its depth; without pictures there is none."""
    deep.look_every(3)
    first = deep.reset(seed=4)[0]["image_depth"]
    later = [deep.step(np.array([0, 1, -1, 0], np.float32))[0]["image_depth"] for _ in range(3)]
    deep.look_every(1)
    assert [np.array_equal(first, depth) for depth in later] == [True, True, False]
    with deep.without_pictures():
        assert "image_depth" not in deep.reset(seed=4)[0]


@pytest.mark.medium
def test_hidden_markers_leave_no_trace_in_depth() -> None:
    """With all markers elsewhere depth is the same to the bit; where they are drawn it is another."""
    env = MetaworldFastEnv(observation_size=64, depth=True, goal_markers=False).make("reach-v3")
    env.reset(seed=3)
    model, data = env._env.model, env._env.data

    def forward() -> np.ndarray:
        mujoco.mj_forward(model, data)
        return env._look("corner2")[1]

    hidden = forward()
    model.site_pos[:] += [0.03, -0.03, 0.03]
    hidden_moved = forward()
    model.site_group[:] = 0
    shown = forward()
    env.close()
    assert np.array_equal(hidden, hidden_moved)
    assert not np.array_equal(hidden, shown)


def test_what_cannot_be_is_an_error() -> None:
    with pytest.raises(ValueError, match="camera_poses='train': there are fixed, few_train"):
        MetaworldFastEnv(camera_poses="train")
    with pytest.raises(ValueError, match="camera_poses=wide_train moves none of"):
        MetaworldFastEnv(cameras="gripperPOV", camera_poses="wide_train")
    for options in ({"depth": True}, {"camera_poses": "wide_train"}):
        with pytest.raises(ValueError, match="PushT is flat"):
            experts_by_name.make("pusht", "pusht", size=96, noise=0, **options)
