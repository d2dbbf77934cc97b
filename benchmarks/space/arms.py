"""What the ladder compares: rungs, arms and the list of runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

STEPS, LONG = 1000, 3000  # of training, for every arm; where cameras move, the fewer are too few
SEEDS = (0, 1, 2)
STATE, EXTRINSICS = "observation.state", "observation.extrinsics."

Batch = dict[str, Any]
Change = Callable[[Batch], Batch]


def other_depth(batch: Batch) -> Batch:
    """Each sample with the depth of its neighbour, and where that one's camera stands: the same statistics, and no
    word of its own scene.
    """
    return {key: value.roll(1, 0) if _tells_space(key) else value for key, value in batch.items()}


def no_depth(batch: Batch) -> Batch:
    """As when the depth sensor is covered."""
    return {key: torch.zeros_like(value) if key.endswith("_depth") else value for key, value in batch.items()}


def rays(batch: Batch) -> Batch:
    """A point a metre along the axis under every pixel: where the camera stands and looks, and no depth."""
    return {key: torch.full_like(value, 1000) if key.endswith("_depth") else value for key, value in batch.items()}


def pose_in_state(batch: Batch) -> Batch:
    """Where the camera stands, as twelve more numbers of the state, for a policy that sees flat."""
    poses = [batch[key] for key in sorted(batch) if key.startswith(EXTRINSICS)]
    return {**batch, STATE: torch.cat([batch[STATE], *poses], dim=-1)}


def _tells_space(key: str) -> bool:
    return key.endswith("_depth") or key.startswith((EXTRINSICS, "observation.intrinsics."))


@dataclass(frozen=True)
class Arm:
    """A way to see.

    Attributes:
        says: what it is, for the table.
        position_3d: of the policy.
        change: made to every batch, in training and when it is judged.
        at_test: names of further changes to judge the trained policy with.
    """

    says: str
    position_3d: str = "none"
    change: Change | None = None
    at_test: dict[str, Change] = field(default_factory=dict)


ARMS = {
    "flat": Arm("pictures alone"),
    "world": Arm("points in the robot's frame", "world", at_test={"no depth": no_depth}),
    "points": Arm("points in the robot's frame, no tokens of the picture", "cloud"),
    "camera": Arm("points in the camera's frame", "camera"),
    "pose": Arm("pictures, and the camera's pose in the state", change=pose_in_state),
    "rays": Arm("points a metre along each ray in the robot's frame", "world", rays),
    "cloud_of_rays": Arm("points a metre along each ray, no tokens of the picture", "cloud", rays),
    "other_depth": Arm("points of another scene", "world", other_depth),
}


@dataclass(frozen=True)
class Rung:
    """Demonstrations and where their policy is judged.

    Attributes:
        task: of Meta-World.
        demonstrations: how many.
        camera_poses: of the recording.
        judged: camera poses of the evaluation.
    """

    task: str
    demonstrations: int
    camera_poses: str
    judged: tuple[str, ...]


RUNGS = {
    "push_fixed": Rung("push-v3", 100, "fixed", ("fixed",)),
    "push_wide": Rung("push-v3", 100, "wide_train", ("wide_train", "wide_held_out")),
    "push_few": Rung("push-v3", 100, "few_train", ("few_train", "few_held_out")),
    **{f"push_{count}": Rung("push-v3", count, "fixed", ("fixed",)) for count in (10, 25)},
    **{f"pick_place_{count}": Rung("pick-place-v3", count, "fixed", ("fixed",)) for count in (10, 25, 80)},
}


@dataclass(frozen=True)
class Run:
    """One policy, trained and judged."""

    rung: str
    arm: str
    seed: int = 0
    steps: int = STEPS

    @property
    def name(self) -> str:
        return f"{self.rung}-{self.arm}-{self.steps}s-{self.seed}"


def plan() -> Iterator[Run]:
    """Every run, the most telling first, since the ladder may stop anywhere."""
    for seed in SEEDS:
        yield from (Run("push_wide", arm, seed, LONG) for arm in ("points", "flat", "cloud_of_rays", "pose", "world"))
        yield from (Run("push_fixed", arm, seed, LONG) for arm in ("points", "flat"))
    for seed in SEEDS:
        yield from (Run(rung, arm, seed) for arm in ("flat", "world") for rung in ("push_wide", "push_fixed"))
        yield from (Run("push_wide", arm, seed) for arm in ("points", "other_depth", "pose", "rays", "camera"))
    for seed in SEEDS:
        yield from (Run("push_fixed", arm, seed) for arm in ("points", "other_depth", "camera"))
        yield from (Run("push_few", arm, seed) for arm in ("flat", "world", "other_depth", "pose", "rays"))
    for seed in SEEDS:
        yield from (Run(rung, arm, seed) for rung in ("push_10", "push_25") for arm in ("flat", "world"))
        yield from (Run(f"pick_place_{n}", arm, seed) for n in (10, 25, 80) for arm in ("flat", "world"))
