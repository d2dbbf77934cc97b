"""A forked path: a point on its way up, a round thing in the middle, and two ways past it, as often left as right.

Who goes the mean of both ways walks into it. Everything is in shares of the picture, x to the right and y up.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.policies.pretrained import PreTrainedPolicy

SIZE, TEXT = 96, "go to the green spot"
STEP, NEAR, LONGEST = 0.05, 0.06, 40  # of a step, of the goal; steps of an episode
THING, ASIDE, POINT = 0.14, 0.32, 0.04  # radius of the thing, way past its middle, radius of what moves
FEATURES = {
    "observation.image": {"dtype": "image", "shape": (SIZE, SIZE, 3), "names": ["height", "width", "channels"]},
    "observation.state": {"dtype": "float32", "shape": (2,), "names": ["x", "y"]},
    "action": {"dtype": "float32", "shape": (2,), "names": ["dx", "dy"]},
}


class Fork:
    """One episode; the places of things are drawn from its seed."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.place = np.array([0.5 + rng.uniform(-0.03, 0.03), 0.08])
        self.thing = np.array([0.5 + rng.uniform(-0.03, 0.03), rng.uniform(0.45, 0.55)])
        self.goal = np.array([0.5 + rng.uniform(-0.1, 0.1), 0.92])
        self.steps, self.hit, self.side = 0, False, 0

    def step(self, action: np.ndarray) -> None:
        """Move by up to `STEP` in each direction, unless it is over."""
        if self.over:
            return
        self.place = np.clip(self.place + STEP * np.clip(action, -1, 1), 0, 1)
        self.steps += 1
        self.hit = bool(np.hypot(*(self.place - self.thing)) < THING + POINT)
        if not self.side and self.place[1] > self.thing[1]:
            self.side = int(np.sign(self.place[0] - self.thing[0]))

    @property
    def won(self) -> bool:
        return not self.hit and bool(np.hypot(*(self.place - self.goal)) < NEAR)

    @property
    def over(self) -> bool:
        return self.won or self.hit or self.steps >= LONGEST

    def picture(self) -> np.ndarray:
        """uint8 [SIZE, SIZE, 3]."""
        x, y = (np.arange(SIZE) + 0.5) / SIZE, 1 - (np.arange(SIZE)[:, None] + 0.5) / SIZE
        seen = np.full((SIZE, SIZE, 3), 200, np.uint8)
        for middle, radius, colour in (
            (self.goal, NEAR, (60, 170, 70)),
            (self.thing, THING, (190, 60, 50)),
            (self.place, POINT, (50, 70, 200)),
        ):
            seen[np.hypot(x - middle[0], y - middle[1]) < radius] = colour
        return seen

    def expert(self, side: int) -> np.ndarray:
        """The way past the thing on one side (-1 left, 1 right), then to the goal."""
        passed = self.place[1] > self.thing[1]
        to = self.goal if passed else self.thing + np.array([side * ASIDE, 0.02])
        way = (to - self.place) / STEP
        return way / max(1.0, float(np.hypot(*way)))


def record(root: Path, episodes: int) -> None:
    """Demonstrations, left and right by turns."""
    walk(root, FEATURES, [1 if index % 2 else -1 for index in range(episodes)], lambda _, action: action)


def walk(
    root: Path, features: dict[str, Any], sides: Sequence[int], told: Callable[[Fork, np.ndarray], np.ndarray]
) -> None:
    """A whole data set or none: the expert's way past each of `sides`.

    What moves is shaken a little, so that it shows how to come back.

    Args:
        root: of the data set.
        features: of its columns, as LeRobot describes them.
        sides: -1 left, 1 right, an episode each.
        told: what is recorded of the expert's action.
    """
    partial = root.with_name(f"{root.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    data = LeRobotDataset.create("local/fork", fps=10, features=features, root=partial, use_videos=False)
    rng = np.random.default_rng(0)
    for index, side in enumerate(sides):
        fork = Fork(100_000 + index)
        while not fork.over:
            action = fork.expert(side)
            data.add_frame(
                {
                    "observation.image": fork.picture(),
                    "observation.state": fork.place.astype(np.float32),
                    "action": told(fork, action).astype(np.float32),
                    "task": TEXT,
                }
            )
            fork.step(action + 0.1 * rng.standard_normal(2))
        assert fork.won, fork
        data.save_episode()
    data.finalize()
    partial.rename(root)


@torch.no_grad()
def judge(policy: PreTrainedPolicy, before: Any, after: Any, episodes: int, seed: int) -> tuple[int, int]:
    """How many episodes succeed, all at once, and how many of those passed on the left."""
    torch.manual_seed(seed)
    policy.reset()
    forks = [Fork(seed + index) for index in range(episodes)]
    while not all(fork.over for fork in forks):
        seen = np.stack([fork.picture() for fork in forks])
        batch = {
            "observation.image": torch.from_numpy(seen).permute(0, 3, 1, 2) / 255,
            "observation.state": torch.tensor(np.stack([fork.place for fork in forks]), dtype=torch.float32),
            "task": [TEXT] * episodes,
        }
        for fork, action in zip(forks, after(policy.select_action(before(batch))).numpy(), strict=True):
            fork.step(action)
    won = [fork for fork in forks if fork.won]
    return len(won), sum(fork.side < 0 for fork in won)
