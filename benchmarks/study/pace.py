"""What a training step of each arm of the study costs: side by side, in random order round after round.

    python -m benchmarks.study.pace --out outputs/fusion_study

The runs of the study share the machine with others, so their steps in equal minutes say this only roughly. A step has
all that the minutes of a run are spent on: batch, processor, forward and backward pass, optimizer.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch

from ..clock import quartiles, race, ratio
from ..report import machine, print_machine
from .arms import ARMS, FAST, REPLAY, TASKS, Run
from .data import Demonstrations
from .run import build, stepper
from .vlm import write_vlm

# A rate costs nothing, nor does where weights come from.
PACED = [name for name in ARMS if name not in (REPLAY, "trained", "copied", *FAST)]


def steps(arms: list[str], task: str, out: Path) -> dict[str, Callable[[], float]]:
    """What trains each arm by a step on the demonstrations of a task in `<out>/data`."""
    data, vlm = Demonstrations(out / "data" / task), out / "vlms" / "random-0"
    write_vlm(vlm, 0)
    found = {}
    for name in arms:
        policy, before, _ = build(ARMS[name], TASKS[task], data, vlm)
        found[name] = stepper(policy, before, data, Run(task, name, 0))[1]
    return found


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="where the study recorded its demonstrations")
    parser.add_argument("--task", choices=TASKS, default="push")
    parser.add_argument("--arms", default=",".join(PACED), help="comma-separated; others are beside the first")
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    arms = args.arms.split(",")
    seconds = race(steps(arms, args.task, args.out), args.rounds)
    print_machine(machine("cpu", "float32", args.rounds))
    print(f"| arm, {args.task} | a step, ms | over `{arms[0]}`, median | quartiles |")
    print("| --- | --- | --- | --- |")
    for name in arms:
        low, median, high = ratio(seconds, name, arms[0])
        middle = 1e3 * quartiles(seconds[name])[1]
        print(f"| `{name}` | {middle:.0f} | **{median:.2f}** | {low:.2f} to {high:.2f} |")


if __name__ == "__main__":
    main()
