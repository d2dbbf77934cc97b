"""Two tasks in one scene: nothing but the instruction tells them apart, and no episode succeeds in both."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("metaworld")

from lerobot_deepfusion.sim import experts_by_name, one_faucet
from lerobot_deepfusion.sim.metaworld_env import sentence
from lerobot_deepfusion.sim.metaworld_fast import MetaworldFastEnv

TASKS = tuple(one_faucet.TASKS)
SEEDS = (1000, 1001)


@pytest.fixture(scope="module")
def environments() -> Any:
    """Each task's two environments, as lerobot-eval builds them."""
    config = MetaworldFastEnv(task=",".join(TASKS), observation_size=32)
    found = {task: group[0] for task, group in config.create_envs(2).items()}
    yield found
    for environment in found.values():
        environment.close()


@pytest.mark.medium
def test_first_observations_are_the_same(environments: Any) -> None:
    """Pixels, state and all of the simulator, to the bit, at each seed, whatever was done in the episode before."""
    rng = np.random.default_rng(0)
    for episode in range(2):
        first, second = (environments[task].reset(seed=list(SEEDS))[0] for task in TASKS)
        assert np.array_equal(first["pixels"], second["pixels"])
        assert not np.array_equal(first["pixels"][0], first["pixels"][1])
        assert np.array_equal(first["agent_pos"], second["agent_pos"])
        for ours, theirs in zip(*(environments[task].envs for task in TASKS), strict=True):
            a, b = ours.unwrapped._env.data, theirs.unwrapped._env.data
            for name in ("qpos", "qvel", "xpos", "geom_xpos", "mocap_pos", "qacc_warmstart", "ctrl", "time"):
                assert np.array_equal(getattr(a, name), getattr(b, name)), (episode, name)
        for environment in environments.values():
            environment.step(rng.uniform(-1, 1, (2, 4)).astype(np.float32))


def test_same_actions_are_seen_the_same(environments: Any) -> None:
    """Later observations too, so that a policy without words does the same in both."""
    rng = np.random.default_rng(1)
    for environment in environments.values():
        environment.reset(seed=list(SEEDS))
    for _ in range(3):
        actions = rng.uniform(-1, 1, (2, 4)).astype(np.float32)
        first, second = (environments[task].step(actions)[0] for task in TASKS)
        assert np.array_equal(first["pixels"], second["pixels"])
        assert np.array_equal(first["agent_pos"], second["agent_pos"])


def test_only_words_differ(environments: Any) -> None:
    said = [environments[task].call("task_description")[0] for task in TASKS]
    assert said == [sentence(task) for task in TASKS]
    assert said == ["Rotate the faucet counter-clockwise", "Rotate the faucet clockwise"]
    assert [environments[task].call("task")[0] for task in TASKS] == list(TASKS)


@pytest.mark.medium
def test_each_expert_turns_its_way_and_no_episode_succeeds_in_both() -> None:
    """An expert's actions succeed in its own task within the limit, and never in the other."""
    sides = dict(zip(TASKS, ("handleStartOpen", "handleStartClose"), strict=True))
    for judged in TASKS:
        env: Any = MetaworldFastEnv().make(judged)
        for acting in TASKS:
            expert = MetaworldFastEnv().make(acting).expert_policy
            with env.without_pictures():
                env.reset(seed=1003)
                won = over = False
                while not (won or over):
                    told = env.raw_observation.copy()
                    told[4:7] = env._env._get_site_pos(sides[acting]) - [0, 0, 0.01]
                    action = np.clip(expert.get_action(told), -1, 1).astype(np.float32)
                    _, _, won, over, _ = env.step(action)
            assert (won, over) == ((True, False) if acting == judged else (False, True))
            assert env._steps < 100
        env.close()


@pytest.mark.medium
def test_first_way_counts() -> None:
    env: Any = MetaworldFastEnv().make("one-faucet-close")
    env._ensure_env()
    simulator = env._env
    handle = simulator.data.joint("knob_Joint_1")
    for way, success in ((0.9, 0.0), (-1.3, 1.0), (1.3, 1.0)):
        handle.qpos[0] = way
        reward, info = simulator.evaluate_state(None, None)
        assert info["success"] == success
        assert reward == (1.0 if way < -1 else 0.0)
    simulator.reset_model()
    for way in (1.3, -1.3):
        handle.qpos[0] = way
        assert simulator.evaluate_state(None, None)[1]["success"] == 0.0


@pytest.mark.medium
def test_no_markers_whatever_is_asked() -> None:
    """Neither task shows a site, also with markers; others hide theirs when asked, in recorder and evaluation."""

    def first(task: str, markers: bool) -> np.ndarray:
        env: Any = MetaworldFastEnv(observation_size=64, goal_markers=markers).make(task)
        picture = env.reset(seed=1000)[0]["pixels"]
        env.close()
        return picture

    assert np.array_equal(first(TASKS[0], True), first(TASKS[0], False))
    shown, hidden = first("reach-v3", True), first("reach-v3", False)
    assert not np.array_equal(shown, hidden)
    recorder: Any = experts_by_name.make("metaworld", "reach-v3", size=64, noise=0, goal_markers=False)
    frames = recorder._run(recorder.env, 1000)
    assert np.array_equal(next(frames)["observation.image"], hidden)
    recorder.close()
    with pytest.raises(ValueError, match="--no-goal-markers: PushT"):
        experts_by_name.make("pusht", "pusht", size=96, noise=0, goal_markers=False)
