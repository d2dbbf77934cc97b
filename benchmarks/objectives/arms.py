"""What is compared: tasks with one right answer and with two, objectives, and the list of runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

SEEDS = (0, 1, 2)
EVALUATIONS = {"flow": (1, 2, 5, 10), "two_step": (2,), "drift": (1,)}
SAMPLES = 8  # of every objective, so that their steps cost the same


@dataclass(frozen=True)
class Task:
    """
    Attributes:
        says: what it is, for the table.
        demonstrations: of each answer.
        steps: of training.
        episodes: to be judged in.
        first: what the share counts; empty where one answer is right.
    """

    says: str
    demonstrations: int
    steps: int
    episodes: int
    first: str = ""


TASKS = {
    "fork": Task("forked path", 60, 600, 100, "left"),
    "either": Task("one faucet, either way", 60, 1000, 50, "opened"),
    "push": Task("push-v3", 160, 1000, 50),
}


@dataclass(frozen=True)
class Run:
    """One policy, trained and judged with each number of evaluations."""

    task: str
    objective: str
    seed: int = 0
    steps: int | None = None

    @property
    def name(self) -> str:
        return f"{self.task}-{self.objective}-{self.steps or TASKS[self.task].steps}s-{self.seed}"


def plan() -> Iterator[Run]:
    """Every run, the most telling first, since it may stop anywhere."""
    for seed in SEEDS:
        yield from (Run(task, objective, seed) for task in TASKS for objective in EVALUATIONS)
