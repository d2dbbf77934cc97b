"""robo-evals' demonstrations are recorded as it evaluates, and it judges our policies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from robo_evals import evaluate

from lerobot_deepfusion.judges.robo_evals_policy import RoboEvalsPolicy
from lerobot_deepfusion.modeling_deepfusion import DeepFusionPolicy
from lerobot_deepfusion.sim import experts_by_name
from lerobot_deepfusion.sim.recording import Recipe, record_part


class Replayed:
    """Does what was recorded, and compares what it sees with it."""

    def __init__(self, data: LeRobotDataset) -> None:
        self.frames = iter([data[index] for index in range(len(data))])

    def __call__(self, obs: dict[str, Any]) -> np.ndarray:
        frame = next(self.frames)
        assert np.array_equal((255 * frame["observation.image"]).round().byte().permute(1, 2, 0), obs["image"])
        gripper = np.concatenate([obs["ee_pos"], obs["gripper"]]).astype(np.float32)
        assert np.array_equal(frame["observation.state"], gripper)
        assert frame["task"] == obs["instruction"]
        return frame["action"].numpy()


@pytest.mark.medium
def test_recorded_episodes_are_those_it_evaluates(tmp_path: Path) -> None:
    """Pictures and states of its first episode of base seed 0, to the bit, and its success at the last frame."""
    recipe = Recipe(simulator="robo_evals", tasks=("drawer",), episodes=1, size=64, seed=0, noise=0.0)
    part = next(recipe.parts())
    assert record_part(recipe, part, tmp_path) == 0
    data = LeRobotDataset("local/drawer", root=tmp_path / part.name)
    (task,) = evaluate(Replayed(data), tasks=["drawer"], episodes=1, image_obs=True, image_size=(64, 64)).tasks
    assert task.success_rate == 1
    assert task.mean_steps_to_success == len(data) > 20


@pytest.mark.medium
def test_noise_is_executed_and_not_recorded() -> None:
    expert, steps = experts_by_name.make("robo_evals", "reach", size=16, noise=0.2), []
    original = expert.task.step
    expert.task.step = lambda action: steps.append(action) or original(action)
    frames = expert.episode(0)
    expert.close()
    apart = np.stack(steps) - np.stack([frame["action"] for frame in frames])
    assert (np.abs(apart[:, :3]) > 0).all()
    assert (apart[:, 3] == 0).all()


@pytest.mark.medium
def test_an_episode_that_fails_is_left_out() -> None:
    expert = experts_by_name.make("robo_evals", "push", size=16, noise=0.0)
    type(expert.task).max_steps, kept = 3, type(expert.task).max_steps
    try:
        assert expert.episode(0) is None
    finally:
        type(expert.task).max_steps = kept
        expert.close()


@pytest.mark.medium
def test_it_judges_a_policy(policy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which hears the instruction, and whose second episode is the same without the first one."""
    heard: list[str] = []
    original = DeepFusionPolicy.predict_action_chunk

    def listening(self: DeepFusionPolicy, batch: dict, **kwargs: Any) -> torch.Tensor:
        heard.extend(batch["task"])
        assert batch["observation.image"].shape == (1, 3, 128, 128)
        assert batch["observation.state"].shape == (1, 4)
        return original(self, batch, **kwargs)

    monkeypatch.setattr(DeepFusionPolicy, "predict_action_chunk", listening)
    judged, acted = RoboEvalsPolicy(str(policy)), []

    class Noted:
        reset = staticmethod(judged.reset)

        def __call__(self, obs: dict[str, Any]) -> np.ndarray:
            acted.append(judged(obs))
            return acted[-1]

    once = {"tasks": ["push"], "max_steps": 5, "image_obs": True}
    (task,) = evaluate(Noted(), episodes=2, **once).tasks
    assert (task.n, task.successes) == (2, 0)
    assert len(acted) == 10
    assert acted[0].shape == (4,)
    assert set(heard) == {"push the red cube into the green circle"}
    assert len(heard) == 4  # chunks of three actions
    episodes = [task.episodes[1].seed, *acted[5:]]
    acted.clear()
    judged.reset("push", episodes[0])
    again = _episode(Noted(), episodes[0])
    assert all(np.array_equal(one, other) for one, other in zip(again, episodes[1:], strict=True))


def _episode(policy: Any, seed: int) -> list[np.ndarray]:
    """Five steps of the one of this seed, without robo-evals' loop."""
    from robo_evals import make_task
    from robo_evals.video import render_frame, try_make_renderer

    task = make_task("push")
    renderer = try_make_renderer(task.model, 128, 128)
    observation, actions = task.reset(seed), []
    for _ in range(5):
        observation["image"] = render_frame(renderer, task.data)
        actions.append(policy(observation))
        observation = task.step(actions[-1]).observation
    renderer.close()
    return actions


@pytest.mark.medium
def test_what_cannot_be_is_refused(policy: Path) -> None:
    with pytest.raises(ValueError, match="image_obs=True"):
        evaluate(RoboEvalsPolicy(str(policy)), tasks=["reach"], episodes=1)
    with pytest.raises(ValueError, match="robo-evals shows its front camera"):
        experts_by_name.make("robo_evals", "push", size=16, noise=0.0, depth=True)
    with pytest.raises(ValueError, match="unknown task 'juggle'"):
        experts_by_name.make("robo_evals", "juggle", size=16, noise=0.0)
