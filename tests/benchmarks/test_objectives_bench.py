"""The bench of docs/objectives.md: its two answers are right and their mean is not, and the road is whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import benchmarks.objectives.__main__ as bench
from benchmarks import seams
from benchmarks.objectives import either, fork
from benchmarks.objectives.arms import EVALUATIONS, TASKS, plan
from benchmarks.objectives.report import groups
from benchmarks.shifted_base import put_together
from benchmarks.study.results import load
from lerobot_deepfusion.network.relative import RelativeActions
from tests.policies import make


def walked(act: Any, seed: int) -> fork.Fork:
    one = fork.Fork(seed)
    while not one.over:
        one.step(act(one))
    return one


@pytest.mark.parametrize("side", [-1, 1])
def test_either_way_of_the_fork_is_right(side: int) -> None:
    for seed in range(50):
        one = walked(lambda one: one.expert(side), seed)
        assert one.won
        assert one.side == side


def test_the_mean_of_both_ways_is_wrong() -> None:
    """Half of each action walks into the thing, every time."""
    assert all(walked(lambda one: (one.expert(-1) + one.expert(1)) / 2, seed).hit for seed in range(50))


def test_the_fork_is_seen() -> None:
    """Goal above, thing in the middle, and what moves below it, in their colours; it moves up in the picture."""
    one = fork.Fork(3)
    before = one.picture()
    colours = {"goal": (60, 170, 70), "thing": (190, 60, 50), "point": (50, 70, 200)}

    def row(picture: np.ndarray, name: str) -> float:
        return float(np.argwhere((picture == colours[name]).all(-1))[:, 0].mean())

    assert row(before, "goal") < row(before, "thing") < row(before, "point")
    one.step(np.array([0.0, 1.0]))
    assert row(one.picture(), "point") < row(before, "point")


def test_judge_counts_ways() -> None:
    """A policy that always goes left wins all episodes on the left; one that stands wins none."""

    class Left:
        ahead = -1

        def reset(self) -> None:
            self.forks = [fork.Fork(seed) for seed in range(5)]

        def select_action(self, _: Any) -> torch.Tensor:
            actions = np.stack([one.expert(self.ahead) for one in self.forks]) * abs(self.ahead)
            for one, action in zip(self.forks, actions, strict=True):
                one.step(action)
            return torch.from_numpy(actions)

    def same(x: Any) -> Any:
        return x

    assert fork.judge(Left(), same, same, 5, 0) == (5, 5)  # type: ignore[arg-type]
    right, still = Left(), Left()
    right.ahead, still.ahead = 1, 0
    assert fork.judge(right, same, same, 5, 0) == (5, 0)  # type: ignore[arg-type]
    assert fork.judge(still, same, same, 5, 0) == (0, 0)  # type: ignore[arg-type]


@pytest.mark.medium
@pytest.mark.parametrize(("task", "turned"), [("one-faucet-open", 1), ("one-faucet-close", -1)])
def test_either_way_turns_the_faucet(task: str, turned: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scripted expert of either direction succeeds, and which it was is noted."""
    from metaworld.policies import ENV_POLICY_MAP

    from lerobot_deepfusion.sim import one_faucet
    from lerobot_deepfusion.sim.metaworld_fast import MetaworldFastEnv

    monkeypatch.setitem(one_faucet.TASKS, either.NAME, (either.OneFaucetEither, "faucet-open-v3"))
    expert = ENV_POLICY_MAP[one_faucet.TASKS[task][1]]()
    env = MetaworldFastEnv(observation_size=32).make(either.NAME)
    either.OneFaucetEither.turned.clear()
    with env.unwrapped.without_pictures():
        env.reset(seed=1000)
        info: dict[str, Any] = {}
        for _ in range(150):
            action = expert.get_action(env.unwrapped.raw_observation)
            _, _, ended, cut, info = env.step(np.asarray(action, np.float32).clip(-1, 1))
            if ended or cut:
                break
    env.close()
    assert info["is_success"]
    assert either.OneFaucetEither.turned == [turned]


def test_plan() -> None:
    runs = list(plan())
    assert len({run.name for run in runs}) == len(runs) == len(TASKS) * len(EVALUATIONS) * 3


@pytest.mark.slow
def test_smoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records, trains, judges, and a second call has nothing to do."""
    monkeypatch.setattr("sys.argv", ["objectives", "--smoke", "--lanes=1", f"--out={tmp_path}"])
    for _ in range(2):
        with pytest.raises(SystemExit, match="0"):
            bench.main()
    rows = load(tmp_path / "objectives.csv")
    assert {(task, objective, count) for task, objective, count, _ in groups(rows)} == {
        ("fork", "drift", 1),
        ("either", "two_step", 2),
    }
    assert (tmp_path / "objectives.png").exists()


# --- seams ------------------------------------------------------------------------------------------------


class Still:
    """Stands in for the simulator: notes what is executed, and succeeds at the 60th step."""

    def __init__(self, count: int, _: int) -> None:
        self.over = self.won = np.zeros(count, bool)
        self.done: list[np.ndarray] = []
        Still.last = self

    def look(self) -> dict[str, Any]:
        return {"now": len(self.done)}

    def step(self, actions: np.ndarray) -> None:
        self.done.append(actions.copy())


@pytest.mark.parametrize("delay", seams.DELAYS)
def test_what_is_executed_when_thinking_takes_time(delay: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A policy whose chunk says at which step it was asked and which of its actions it is: each step executes what a
    robot would, the old chunk while the new one is made and then the new one from there; and real-time chunking is
    given what is left.
    """
    policy, _, _ = make(chunk_size=seams.CHUNK, rtc_training_max_delay=5)
    seams.set_way(policy, "trained")
    asked: list[tuple[int, Any]] = []

    def predict(batch: dict[str, Any], **rtc: Any) -> torch.Tensor:
        asked.append((batch["now"], rtc))
        chunk = torch.zeros(1, seams.CHUNK, 2)
        chunk[0, :, 0], chunk[0, :, 1] = batch["now"], torch.arange(seams.CHUNK)
        return chunk

    monkeypatch.setattr(policy, "predict_action_chunk", predict)
    monkeypatch.setattr(seams, "Arms", Still)
    seams.judge(policy, lambda batch: batch, lambda action: action, delay, 1)
    every = max(seams.HORIZON, delay)
    starts = [start for start, _ in asked]
    assert starts == list(range(0, every * len(asked), every))
    for now, (made, index) in enumerate(action[0] for action in Still.last.done):
        before = [start for start in starts if start == 0 or start + delay <= now]
        assert made == before[-1]
        assert index == now - made
    for start, rtc in asked[1:]:
        assert rtc["inference_delay"] == delay
        left = rtc["prev_chunk_left_over"][0]
        assert left[0].tolist() == [start - every, every]
        assert len(left) == seams.CHUNK - every


def test_one_mean_and_deviation_for_all_steps() -> None:
    """Of what is relative, where each step has its own: 0 and 1 over all steps, and the steps told apart."""
    torch.manual_seed(0)
    actions, state = torch.randn(5000, 4, 2).cumsum(1) + 3, torch.randn(5000, 2)
    lines, ones = RelativeActions([0, 1], 4), torch.ones(4, 2)
    moved = actions - state[:, None]
    lines.fill(1 / moved.std(0), 1 / moved.std(0), -moved.mean(0) / moved.std(0))
    each = lines.relative(actions, state)
    assert torch.allclose(each.std(0), ones, atol=1e-4)
    put_together(lines)
    every = lines.relative(actions, state)
    assert torch.allclose(every.flatten(0, 1).std(0), ones[0], atol=1e-3)
    assert every.flatten(0, 1).mean(0).abs().max() < 1e-3
    assert every[:, 3].std() > 1.3 * every[:, 0].std()
    assert torch.allclose(lines.absolute(every, state), actions, atol=1e-5)
