"""Recorded demonstrations are what evaluation shows; the recorder resumes and refuses to overwrite."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import benchmarks.experts
from lerobot_deepfusion.cli import main
from lerobot_deepfusion.sim import experts_by_name
from lerobot_deepfusion.sim import recording as demos
from lerobot_deepfusion.sim.metaworld_env import first_task
from lerobot_deepfusion.sim.metaworld_fast import MetaworldFastEnv

metaworld = pytest.importorskip("metaworld")


def recipe(**changes) -> demos.Recipe:
    values = {
        "simulator": "metaworld",
        "tasks": ("push-v3",),
        "episodes": 1,
        "size": 64,
        "seed": 100_000,
        "noise": 0.1,
    }
    return demos.Recipe(**{**values, **changes})


@pytest.fixture(scope="module")
def part(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demos")
    first = next(recipe().parts())
    demos.record_part(recipe(), first, folder)
    return folder / first.name


@pytest.mark.medium
def test_recorded_frames_equal_evaluated_ones(part: Path) -> None:
    """Replaying the recorded seed in the environment that lerobot-eval builds, through its own conversion of
    observations, gives the recorded pixels, states and task: bit for bit.

    The executed actions carry noise that the data set does not, so the first frames are compared: the one
    after reset, and the one after the first executed action.
    """
    from lerobot.datasets.lerobot_dataset import LeRobotDataset
    from lerobot.envs.utils import preprocess_observation

    data = LeRobotDataset("local/x", root=part)
    env = MetaworldFastEnv(observation_size=64).create_envs(1)["push-v3"][0]
    observation, _ = env.reset(seed=[100_000])
    noise = np.random.default_rng(100_000).normal(0, 0.1, 3)
    for index in range(2):
        seen = preprocess_observation(observation)
        frame = data[index]
        assert torch.equal(seen["observation.image"][0], frame["observation.image"])
        assert torch.equal(seen["observation.state"][0], frame["observation.state"])
        assert frame["task"] == env.call("task_description")[0] == "Push the puck to a goal"
        action = frame["action"].numpy().copy()
        action[:3] += noise
        observation, *_ = env.step(np.clip(action, -1, 1)[None])
    env.close()


@pytest.mark.medium
def test_environment_is_lerobots_but_for_the_picture() -> None:
    """Same states, rewards and success as LeRobot's `metaworld` at the same seed and actions, to the bit."""
    from lerobot.envs.metaworld import MetaworldEnv

    ours = MetaworldFastEnv(observation_size=32, episode_length=40).make("push-v3")
    theirs = MetaworldEnv("push-v3", obs_type="pixels_agent_pos")
    theirs._format_raw_obs = lambda raw: {"pixels": None, "agent_pos": raw[:4]}  # 190 ms a frame saved
    a, b = ours.reset(seed=7)[0], theirs.reset(seed=7)[0]
    rng = np.random.default_rng(0)
    for _ in range(20):
        assert np.array_equal(a["agent_pos"], b["agent_pos"])
        action = rng.uniform(-1, 1, 4).astype(np.float32)
        (a, *ours_rest), (b, *theirs_rest) = ours.step(action), theirs.step(action)
        assert ours_rest[:3] == theirs_rest[:3]
    assert a["pixels"].shape == (32, 32, 3)
    assert ours.task_description == theirs.task_description
    assert ours._max_episode_steps == 40
    ours.close()


@pytest.mark.medium
@pytest.mark.parametrize("name", ["assembly-v3", "push-v3", "window-close-v3"])
def test_the_first_task_is_that_of_all(name: str) -> None:
    """Without the forty-nine that nobody uses; and whatever numpy's own randomness was, it goes on from there."""
    expected = metaworld.MT1(name, seed=42)
    np.random.seed(7)
    simulator, task = first_task(name)
    assert (simulator, task.data) == (expected.train_classes[name], expected.train_tasks[0].data)
    assert np.random.rand() == np.random.RandomState(7).rand()
    assert len(metaworld.MT1(name, seed=42).train_tasks) == 50


@pytest.mark.medium
def test_counted_successes_are_those_that_are_kept() -> None:
    """Noise of 0.6 makes the expert miss about half; the first seeds that the recorder takes."""
    expert = experts_by_name.make("metaworld", "push-v3", size=32, noise=0.6, cameras="")
    kept = sum(expert.episode(demos.FIRST_SEED + index) is not None for index in range(4))
    expert.close()
    assert 0 < kept < 4
    assert benchmarks.experts.successes("push-v3", 0.6, 4) == kept


@pytest.mark.medium
def test_video_ends_with_the_last_observation() -> None:
    env = MetaworldFastEnv(observation_size=32).make("push-v3")
    observation, _ = env.reset(seed=3)
    for _ in range(2):
        observation, *_ = env.step(np.zeros(4, dtype=np.float32))
    blocks = env.render().reshape(32, 2, 32, 2, 3).sum((1, 3), dtype=np.uint16) // 4
    assert np.array_equal(blocks, observation["pixels"])
    env.close()


@pytest.mark.medium
def test_two_simulators_in_one_process() -> None:
    """Each draws its own picture, also while another is open or was just closed, which used to turn it black."""
    alone, *_ = _moved("push-v3")
    environments = MetaworldFastEnv(observation_size=32, task="push-v3").create_envs(2)["push-v3"][0]
    environments.reset(seed=[4, 3])
    both, *_ = environments.step(np.zeros((2, 4), dtype=np.float32))
    assert np.array_equal(both["pixels"][1], alone["pixels"])
    first = MetaworldFastEnv(observation_size=32).make("push-v3")
    first.reset(seed=3)
    environments.close()
    del environments
    after, *_ = first.step(np.zeros(4, dtype=np.float32))
    assert np.array_equal(after["pixels"], alone["pixels"])
    assert alone["pixels"].std() > 20
    first.close()


def _moved(task: str, cameras: str = "corner2") -> tuple:
    """One step from seed 3."""
    env = MetaworldFastEnv(observation_size=32, cameras=cameras).make(task)
    env.reset(seed=3)
    result = env.step(np.zeros(4, dtype=np.float32))
    env.close()
    return result


@pytest.mark.medium
def test_several_cameras() -> None:
    """Each is what it shows alone; a policy sees `observation.images.<name>`, in training and evaluation."""
    from lerobot.envs.utils import env_to_policy_features, preprocess_observation

    names = ("corner2", "gripperPOV")
    config = MetaworldFastEnv(observation_size=32, cameras=",".join(names))
    environment = config.create_envs(1)["push-v3"][0]
    environment.reset(seed=[3])
    observation, *_ = environment.step(np.zeros((1, 4), dtype=np.float32))
    environment.close()
    keys = [f"observation.images.{name}" for name in names]
    assert {key for key in env_to_policy_features(config) if "image" in key} == set(keys)
    assert {key for key in preprocess_observation(observation) if "image" in key} == set(keys)
    for name in names:
        (alone, *_) = _moved("push-v3", name)
        assert np.array_equal(observation["pixels"][name][0], alone["pixels"])
    recorded = experts_by_name.make("metaworld", "push-v3", size=32, noise=0, cameras=config.cameras)
    assert {key for key in recorded.features if "image" in key} == set(keys)
    frames = recorded.episode(100_000)
    assert frames is not None
    assert not np.array_equal(frames[0][keys[0]], frames[0][keys[1]])
    recorded.close()


@pytest.mark.medium
def test_pictures_only_when_looked_at() -> None:
    """In between the last one is repeated; those that are taken are the same as ever."""
    seen = []
    for every in (1, 3):
        env = MetaworldFastEnv(observation_size=32).make("push-v3")
        env.look_every(every)
        frames = [env.reset(seed=3)[0]["pixels"]]
        frames += [env.step(np.ones(4, dtype=np.float32))[0]["pixels"] for _ in range(6)]
        env.close()
        seen.append(frames)
    always, third = seen
    for index in range(7):
        assert np.array_equal(third[index], always[index // 3 * 3])
    assert not np.array_equal(always[1], always[0])


def test_unknown_names_are_errors() -> None:
    for cameras in ("side", "", "corner,corner"):
        with pytest.raises(ValueError, match="there are corner2, corner, corner3, topview"):
            MetaworldFastEnv(cameras=cameras)
    with pytest.raises(ValueError, match="PushT has one camera"):
        experts_by_name.make("pusht", "pusht", size=96, noise=0, cameras="corner")
    with pytest.raises(ValueError, match="--task=push-v3: PushT has one task"):
        experts_by_name.make("pusht", "push-v3", size=96, noise=0)
    with pytest.raises(ValueError, match="no Meta-World task 'fly-v3'; there are assembly-v3"):
        MetaworldFastEnv().make("fly-v3")
    with pytest.raises(ValueError, match="episode_length=0"):
        MetaworldFastEnv(episode_length=0)


def test_parts_have_seeds_of_their_own() -> None:
    parts = list(recipe(tasks=("push-v3", "reach-v3"), episodes=45).parts())
    assert [part.episodes for part in parts] == [20, 20, 5] * 2
    assert [part.first_seed for part in parts] == [100_000 + 1000 * index for index in range(6)]


def test_refuses_to_overwrite_or_to_mix(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with pytest.raises(FileExistsError, match="choose another --root"):
        demos.record(recipe(), tmp_path / "data")
    demos._same_recipe_or_stop(recipe(), tmp_path / "other.parts")
    with pytest.raises(FileExistsError, match="another recipe"):
        demos.record(recipe(size=32), tmp_path / "other")


@pytest.mark.slow
def test_recorder_resumes(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A part that is there is kept, the missing one is recorded, and the merged set loads in order."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    root, folder = tmp_path / "data", tmp_path / "data.parts"
    wanted = recipe(tasks=("push-v3", "drawer-open-v3"))
    demos._same_recipe_or_stop(wanted, folder)
    first = next(wanted.parts())
    demos.record_part(wanted, first, folder)
    marker = folder / first.name / "failed.json"
    marker.write_text("7")  # a count that only a part that was kept can bring along
    options = ["--task=push-v3,drawer-open-v3", "--episodes=1", "--size=64", "--noise=0.1", f"--root={root}"]
    main(["demos", *options, "--workers=1"])
    assert "2 episodes" in capsys.readouterr().out
    data = LeRobotDataset("local/data", root=root)
    assert data.num_episodes == 2
    assert [data.meta.episodes[i]["tasks"][0] for i in range(2)] == ["Push the puck to a goal", "Open a drawer"]
    counts = json.loads((root / "meta/demos.json").read_text())
    assert counts["kept"] == 2
    assert counts["failed"] >= 7
    assert counts["frames"] == data.num_frames
    assert not folder.exists()


@pytest.mark.medium
def test_pusht_planner_solves_pusht() -> None:
    """One seed, from reset to 95% coverage, at LeRobot's own step limit."""
    pytest.importorskip("gym_pusht")
    from lerobot_deepfusion.sim import experts_by_name

    expert = experts_by_name.make("pusht", "pusht", size=96, noise=0.0)
    frames = expert.episode(1003)
    assert frames is not None
    assert len(frames) < 300
    assert frames[0]["observation.image"].shape == (96, 96, 3)
    with pytest.raises(ValueError, match="--size=64"):
        experts_by_name.make("pusht", "pusht", size=64, noise=0.0)
