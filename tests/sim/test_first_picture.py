"""The picture that `reset` returns shows the state, in all 50 tasks, and hidden markers leave no trace in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np
import pytest

pytest.importorskip("metaworld")

from lerobot.envs.metaworld import TASK_DESCRIPTIONS

from lerobot_deepfusion.sim import metaworld_env
from lerobot_deepfusion.sim.metaworld_fast import MetaworldFastEnv

TASKS = sorted(TASK_DESCRIPTIONS)


@dataclass
class Look:
    """What was seen of a task: pictures, positions, and the states of one episode with its picture and without."""

    first: np.ndarray
    first_places: np.ndarray
    forward: np.ndarray
    forward_places: np.ndarray
    episode: np.ndarray
    episode_without_picture: np.ndarray
    hidden: np.ndarray
    hidden_moved: np.ndarray
    shown_moved: np.ndarray


def places(data: mujoco.MjData) -> np.ndarray:
    """Where everything is that is drawn: float [sites + geoms + cameras, 3]."""
    return np.concatenate([data.site_xpos, data.geom_xpos, data.cam_xpos])


def episode(env: Any) -> np.ndarray:
    """All that is known of four steps from one seed: float [5, states]."""
    env.reset(seed=2)
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(5):
        rows.append(np.concatenate([env.raw_observation, env._env.data.qpos, env._env.data.qvel]))
        env.step(rng.uniform(-1, 1, 4).astype(np.float32))
    return np.array(rows)


def look(task: str) -> Look:
    env: Any = MetaworldFastEnv(observation_size=32).make(task)
    env.look_every(1000)  # at the reset alone
    with env.without_pictures():
        env.reset(seed=1)
        without_picture = episode(env)
        env.reset(seed=1)  # a reset depends, in the last digits, on what came before: the same for both
    with_picture = episode(env)
    first = env.reset(seed=3)[0]["pixels"]
    model, data = env._env.model, env._env.data

    def forward() -> np.ndarray:
        mujoco.mj_forward(model, data)
        return metaworld_env.shrink(env._picture("corner2"), metaworld_env.SUPERSAMPLING)

    first_places = places(data).copy()
    forward_picture, forward_places = forward(), places(data).copy()
    metaworld_env.hide_markers(model)
    hidden = forward()
    model.site_pos[:] += [0.03, -0.03, 0.03]
    hidden_moved = forward()
    model.site_group[:] = 0
    shown_moved = forward()
    env.close()
    return Look(
        *(first, first_places, forward_picture, forward_places, with_picture, without_picture),
        *(hidden, hidden_moved, shown_moved),
    )


@pytest.fixture(scope="module")
def looks() -> dict[str, Look]:
    return {task: look(task) for task in TASKS}


@pytest.mark.slow
def test_first_picture_shows_the_state(looks: dict[str, Look]) -> None:
    """Every site, geom and camera stands where a forward step puts it, and so does every pixel."""
    assert len(looks) == 50
    moved = {task: np.abs(seen.first_places - seen.forward_places).max() for task, seen in looks.items()}
    assert {task: offset for task, offset in moved.items() if offset} == {}
    assert [task for task, seen in looks.items() if not np.array_equal(seen.first, seen.forward)] == []


@pytest.mark.slow
def test_taking_the_picture_changes_nothing(looks: dict[str, Look]) -> None:
    """Observations, positions and velocities of an episode are the same to the bit whether it is looked at or not."""
    changed = [task for task, seen in looks.items() if not np.array_equal(seen.episode, seen.episode_without_picture)]
    assert changed == []


@pytest.mark.slow
def test_hidden_markers_leave_no_trace(looks: dict[str, Look]) -> None:
    """With all markers elsewhere the picture is the same to the bit; where they are drawn it is another."""
    assert [task for task, seen in looks.items() if not np.array_equal(seen.hidden, seen.hidden_moved)] == []
    visible = [task for task, seen in looks.items() if not np.array_equal(seen.hidden, seen.shown_moved)]
    assert len(visible) > 40
    assert all(seen.hidden.std() > 20 for seen in looks.values())
