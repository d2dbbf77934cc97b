"""What the study compares: tasks, arms and the list of runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

BRIEF, SHORT, MEDIUM, LONG, PATIENT = 0.75, 1.5, 3.0, 6.0, 12.0  # CPU minutes of training


@dataclass(frozen=True)
class Task:
    """One data set and the environments that its policy is evaluated in.

    Attributes:
        environments: tasks of the environment. Whether only the instruction tells several apart is for the arm
            `wordless` to say.
        demonstrations: recorded for each environment.
        cameras: of the environment, comma-separated.
        words: tokens of the longest instruction, and a few more.
        minutes: of CPU time in which arms are compared, few enough that they don't all succeed.
    """

    environments: tuple[str, ...]
    demonstrations: int
    cameras: str = "corner2"
    words: int = 32
    minutes: float = MEDIUM


TASKS = {
    "push": Task(("push-v3",), 160),
    "one_faucet": Task(("one-faucet-open", "one-faucet-close"), 60, words=48, minutes=BRIEF),
    "push_two_cameras": Task(("push-v3",), 160, cameras="corner2,gripperPOV"),  # the same episodes as `push`
    # Meta-World's own pair, whose goals' markers tell which is asked: what `wordless` has to find out.
    "faucet": Task(("faucet-open-v3", "faucet-close-v3"), 60, words=48, minutes=MEDIUM),
}
ALONE = {"demonstrations": 80, "words": 64}  # of a task that is none of those; the longest sentence has 55 tokens
# Tasks of rows from before the picture that `reset` returns was mended, and the minutes in which their arms are
# compared. `faucet_stale` is Meta-World's own pair. They stay in the table and are not run again.
STALE = {"push_stale": MEDIUM, "faucet_stale": BRIEF, "push_two_cameras_stale": MEDIUM}
# What a VLM learns before it is frozen, trained on, or copied into an expert: other tasks than those it then serves.
PRETRAINING = Task(("drawer-open-v3", "window-open-v3", "button-press-topdown-v3"), 40, words=48)
PRETRAINED = "pretrained"  # its data, its VLM

REPLAY = "replay"
NO_WORDS = "Act"  # the text of a wordless arm
# The recipe of configs/policy/tiny.yaml; what an arm says besides is what it is about.
COMMON: dict[str, Any] = {
    "chunk_size": 8,
    "n_action_steps": 4,
    "num_flow_samples": 4,
    "num_inference_steps": 5,
    "state_dropout": 0.3,
    "max_state_dim": 8,
    "max_action_dim": 8,
    "optimizer_lr": 1e-3,
    "device": "cpu",
    "push_to_hub": False,
}


@dataclass(frozen=True)
class Arm:
    """A way to build a policy.

    Attributes:
        says: what it is, for the table.
        options: of `DeepFusionConfig`, over `COMMON`.
        pretrained: whether its VLM has learned other tasks; else all weights are random.
        peer: another policy than ours: `act`, `diffusion` or `pi0`, or `replay`, which is none.
        wordless: whether all tasks have one and the same text, in training and when it is judged.
    """

    says: str
    options: dict[str, Any] = field(default_factory=dict)
    pretrained: bool = False
    peer: str | None = None
    wordless: bool = False


ARMS = {
    "kv": Arm("keys and values of every layer", {"fusion": "kv"}),
    "hidden": Arm("hidden state of every layer", {"fusion": "hidden"}),
    "late": Arm("last hidden state at every layer", {"fusion": "late"}),
    "middle": Arm("keys and values of the middle half", {"fusion_layers": "middle"}),
    "every_2": Arm("keys and values of every second layer", {"fusion_layers": "every_2"}),
    "late_gemma": Arm("a Gemma on the last state", {"fusion": "late", "action_expert_type": "late_gemma"}),
    "K1": Arm("one flow sample a pass", {"num_flow_samples": 1}),
    "K8": Arm("eight flow samples a pass", {"num_flow_samples": 8}),
    "token": Arm("time as a token", {"time_conditioning": "token"}),
    "narrow": Arm("expert of half the width", {"expert_width_multiplier": 0.5}),
    "wide": Arm("expert of twice the width", {"expert_width_multiplier": 2.0}),
    "trained": Arm("VLM from other tasks, trained on", pretrained=True),
    "copied": Arm(
        "the same, its layers copied into the expert as far as they are read", {"expert_init": "vlm"}, pretrained=True
    ),
    "frozen": Arm("VLM from other tasks, frozen", {"train_expert_only": True}, pretrained=True),
    "frozen_hidden": Arm("the same, `hidden`", {"train_expert_only": True, "fusion": "hidden"}, pretrained=True),
    "frozen_late": Arm("the same, `late`", {"train_expert_only": True, "fusion": "late"}, pretrained=True),
    "act": Arm("LeRobot's ACT", peer="act"),
    "diffusion": Arm("LeRobot's Diffusion Policy", peer="diffusion"),
    "pi0": Arm("LeRobot's pi0 at our shape, with our vision tower", peer="pi0"),
    "wordless": Arm("`kv`, one and the same text for all tasks", {"fusion": "kv"}, wordless=True),
    REPLAY: Arm("one demonstration, whatever is seen", peer=REPLAY),
}
# The recipe's learning rate was chosen for `kv`; at these the others had a lower loss, or might have.
FAST = {
    f"{fusion}_x{times}": Arm(
        f"`{fusion}`, {times} times the learning rate",
        {"fusion": fusion, "optimizer_lr": times * COMMON["optimizer_lr"]},
    )
    for times in (2, 4)
    for fusion in ("hidden", "late")
}
ARMS |= FAST
HEADLINE_TASKS, HEADLINE_ARMS, SEEDS = ("push", "one_faucet"), ("kv", "hidden", "late"), (0, 1, 2)
MORE_SEEDS = (3, 4)  # where they differ by more than the arms
PEERS = tuple(name for name, arm in ARMS.items() if arm.peer and name != REPLAY)
CONTROL = "wordless"
SINGLE = tuple(name for name in ARMS if name not in (*HEADLINE_ARMS, *FAST, *PEERS, CONTROL, REPLAY))
STEPS = {"push": 600, "one_faucet": 110}  # where arms are compared at equal samples


def task_named(name: str) -> Task:
    """One of `TASKS`, or else an environment of that name as a task of its own."""
    return TASKS.get(name) or Task((name,), **ALONE)


@dataclass(frozen=True)
class Run:
    """One policy, trained for so many CPU minutes, or steps, and judged.

    Attributes:
        task: of `TASKS`, or an environment.
        arm: of `ARMS`.
        minutes: of training.
        seed: of weights, order and noise.
        controls: whether it is judged with black images and with the other instruction too.
        given_steps: the budget in the place of `minutes`.
    """

    task: str
    arm: str
    minutes: float
    seed: int = 0
    controls: bool = False
    given_steps: int | None = None

    @property
    def name(self) -> str:
        budget = f"{self.given_steps}s" if self.given_steps else f"{self.minutes:g}m"
        return f"{self.task}-{self.arm}-{budget}-{self.seed}"


def plan() -> Iterator[Run]:
    """Every run, the most telling first, since a study may stop anywhere."""
    budgets = {task: TASKS[task].minutes for task in TASKS}
    yield from (Run("one_faucet", arm, MEDIUM, seed) for seed in SEEDS for arm in (CONTROL, "kv"))
    yield from (Run(task, REPLAY, 0) for task in HEADLINE_TASKS)
    yield Run("faucet", CONTROL, MEDIUM)
    yield from (Run("one_faucet", arm, MEDIUM, seed) for seed in SEEDS for arm in ("hidden", "late"))
    yield from (Run("one_faucet", "pi0", MEDIUM, seed) for seed in SEEDS)
    yield from (
        Run(task, arm, budgets[task], seed) for seed in SEEDS for task in HEADLINE_TASKS for arm in _fusions(seed)
    )
    yield from (Run(task, "kv", LONG, controls=True) for task in HEADLINE_TASKS)
    yield from (Run("push_two_cameras", arm, budgets["push_two_cameras"]) for arm in HEADLINE_ARMS)
    yield from (Run(task, arm, budgets[task]) for arm in SINGLE for task in HEADLINE_TASKS)
    yield from _equal_samples("push")
    yield from (Run("one_faucet", arm, BRIEF, seed) for seed in MORE_SEEDS for arm in _fusions(seed))
    yield from (Run("push", arm, MEDIUM) for arm in PEERS)
    yield from (Run("one_faucet", arm, BRIEF, seed) for seed in SEEDS for arm in ("hidden_x4", "late_x4"))
    yield from (Run("push", arm, budgets["push"]) for arm in ("hidden_x2", "late_x2"))
    yield from (Run("one_faucet", arm, SHORT) for arm in HEADLINE_ARMS)
    yield from (Run("push", arm, PATIENT) for arm in (*PEERS, "kv"))
    yield from _equal_samples("one_faucet")
    yield from (Run("push", arm, SHORT, seed) for seed in SEEDS for arm in _fusions(seed))
    later = [(seed, arm) for seed in SEEDS for arm in _fusions(seed) if (seed, arm) != (0, "kv")]
    yield from (Run("push", arm, LONG, seed) for seed, arm in later)
    yield from (Run("one_faucet", arm, MEDIUM) for arm in ("act", "diffusion", "middle"))


def _equal_samples(task: str) -> Iterator[Run]:
    return (Run(task, arm, 0, seed, given_steps=STEPS[task]) for seed in SEEDS for arm in _fusions(seed))


def _fusions(seed: int) -> tuple[str, ...]:
    """The headline arms in an order of the seed's own: each shares the machine with another one every time."""
    first = seed % len(HEADLINE_ARMS)
    return HEADLINE_ARMS[first:] + HEADLINE_ARMS[:first]


SMOKE_MINUTES = 0.02
SMOKE = (
    Run("push_two_cameras", REPLAY, 0),
    Run("push_two_cameras", "kv", SMOKE_MINUTES, controls=True),
    Run("push_two_cameras", "frozen_late", 0, given_steps=2),
)
