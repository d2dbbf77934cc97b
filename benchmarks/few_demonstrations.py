"""From the policy that comes with the package to a task that it has never seen: by how many demonstrations, and how?

    python -m benchmarks.few_demonstrations           # every run that the results lack, two at a time
    python -m benchmarks.few_demonstrations --report  # the table of what is there

`lerobot-train` for equal steps, from `$(deepfusion policy mt10)`

- `whole`: every weight;
- `lora`: adapters on the VLM and the expert whole, as `--peft.method_type=LORA` has it;
- `expert`: the VLM frozen (`--policy.train_expert_only=true`);

and from nothing (`--config_path=$(deepfusion config tiny)`): `scratch` for as many steps, `scratch_long` for that
config's own 1500. The tasks are two that an earlier trial had learned from 80 demonstrations (dial-turn 72%,
coffee-push 96%); no other was tried. Judged in environments that no demonstration comes from. What was found is in
docs/single_tasks.md.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from . import processes
from .study import results

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "few_demonstrations.csv"
COLUMNS = (
    *("run", "task", "arm", "demonstrations", "seed", "successes", "episodes", "steps", "cpu_minutes"),
    *results.WHERE,
)
TASKS = ("dial-turn-v3", "coffee-push-v3")
DEMONSTRATIONS = (5, 10, 20, 40)
STEPS, LONG_STEPS, EPISODES, FIRST_ENVIRONMENT = 500, 1500, 50, 1000
ROOM = ("--policy.tokenizer_max_length=64",)  # as mt10 has; the second task's sentence needs more than tiny's 32
ARMS = {
    "whole": (),
    "lora": ("--peft.method_type=LORA", "--peft.r=16"),
    "expert": ("--policy.train_expert_only=true",),
    "scratch": ROOM,
    "scratch_long": ROOM,
}


@dataclass(frozen=True)
class Run:
    """One policy: a task, one of `ARMS`, how many demonstrations, and the seed of its order and noise."""

    task: str
    arm: str
    demonstrations: int
    seed: int

    @property
    def name(self) -> str:
        return f"{self.task}-{self.arm}-{self.demonstrations}-{self.seed}"


def plan() -> Iterator[Run]:
    """Every run, the most telling first."""
    for seed in (0, 1, 2):
        yield from (Run(task, arm, count, seed) for task in TASKS for count in DEMONSTRATIONS for arm in ARMS)


def prepare(out: Path, name: str, smoke: bool) -> None:
    """Demonstrations of a task, unless they are there."""
    from lerobot_deepfusion.sim import recording

    if not (out / "data" / name).exists():
        episodes = 2 if smoke else max(DEMONSTRATIONS)
        recipe = recording.Recipe("metaworld", (name,), episodes, 96, recording.FIRST_SEED, noise=0.1)
        print(f"{name}: {recording.record(recipe, out / 'data' / name, workers=1)}", flush=True)


def start(run: Run, out: Path, table: Path, smoke: bool) -> str:
    """One policy, in a process of its own, into the table; a line about it."""
    result = out / "runs" / f"{run.name}.json"
    asked = (run.task, run.arm, run.demonstrations, run.seed, out, "smoke" * smoke, result)
    arguments = list(map(str, asked))
    processes.finish("benchmarks.few_demonstrations", arguments, out / "logs" / f"{run.name}.log")
    share, low, high = results.rate(results.add(table, result, COLUMNS))
    return f"{run.name:40} {share:4.0%}   95% interval {low:.0%} to {high:.0%}"


def options(run: Run, out: Path, steps: int) -> list[str]:
    """Of `lerobot-train`."""
    from lerobot_deepfusion.storage.shipped import shipped_policies

    if run.arm.startswith("scratch"):
        begins = f"--config_path={ROOT / 'configs' / 'policy' / 'tiny.yaml'}"
    else:
        begins = f"--policy.path={shipped_policies()['mt10']}"
    every = [begins, "--dataset.repo_id=local/few", f"--dataset.root={out / 'data' / run.task}", f"--seed={run.seed}"]
    every += [f"--dataset.episodes={list(range(run.demonstrations))}", f"--steps={steps}", f"--save_freq={steps}"]
    every += ["--batch_size=32", "--num_workers=0", "--log_freq=50", "--env_eval_freq=0", "--policy.device=cpu"]
    return [*every, "--policy.push_to_hub=false", f"--output_dir={out / 'trained' / run.name}", *ARMS[run.arm]]


def execute(run: Run, out: Path, smoke: bool) -> dict[str, Any]:
    """A row of the table."""
    # None of these above: `main` starts processes first, which import them once for all.
    from lerobot.configs import PreTrainedConfig
    from lerobot.policies.factory import make_policy, make_pre_post_processors
    from lerobot.scripts import lerobot_train

    import lerobot_policy_deepfusion  # noqa: F401
    from lerobot_deepfusion.sim.metaworld_fast import MetaworldFastEnv

    from . import rollouts

    steps = 2 if smoke else LONG_STEPS if run.arm == "scratch_long" else STEPS
    folder = out / "trained" / run.name
    shutil.rmtree(folder, ignore_errors=True)
    began = time.process_time()
    with mock.patch.object(sys, "argv", ["lerobot-train", *options(run, out, steps)]):
        lerobot_train.main()
    minutes = round((time.process_time() - began) / 60, 2)
    trained = folder / "checkpoints" / "last" / "pretrained_model"
    config = PreTrainedConfig.from_pretrained(trained)
    config.pretrained_path = trained
    policy = make_policy(config, env_cfg=MetaworldFastEnv(task=run.task)).eval()
    before, after = make_pre_post_processors(config, pretrained_path=str(trained))
    episodes = 1 if smoke else EPISODES
    won = rollouts.successes(policy, before, after, run.task, episodes, FIRST_ENVIRONMENT)
    about: dict[str, Any] = {"run": run.name, "task": run.task, "arm": run.arm, "seed": run.seed}
    about |= {"demonstrations": run.demonstrations, "successes": won, "episodes": episodes}
    return {**about, "steps": steps, "cpu_minutes": minutes, **results.here()}


def report(rows: list[results.Row]) -> None:
    """Success by task and number of demonstrations, an arm a column; seeds stand behind it."""
    print(f"| task | demonstrations | {' | '.join(ARMS)} |\n| --- | --- |{' --- |' * len(ARMS)}")
    for task in TASKS:
        for count in DEMONSTRATIONS:
            at = [row for row in rows if (row["task"], row["demonstrations"]) == (task, count)]
            cells = (results.cell([row for row in at if row["arm"] == arm]) for arm in ARMS)
            print(f"| {task} | {count} | {' | '.join(cells)} |")
    print(f"\nCPU minutes of training: {', '.join(f'{arm} {_minutes(rows, arm)}' for arm in ARMS)}")


def _minutes(rows: list[results.Row], arm: str) -> str:
    minutes = sorted(row["cpu_minutes"] for row in rows if row["arm"] == arm)
    return f"{minutes[len(minutes) // 2]:.1f}" if minutes else "-"


def main(arguments: list[str] | None = None) -> None:
    if arguments:  # of a run
        task, arm, demonstrations, seed, out, smoke, result = arguments
        row = execute(Run(task, arm, int(demonstrations), int(seed)), Path(out), bool(smoke))
        results.write(Path(result), json.dumps([row]))
        return
    args = processes.read_options(__doc__, RESULTS)
    failed = 0
    if not args.report:
        processes.get_ready()
        done = {row["run"] for row in results.load(args.table)}
        every = [Run(TASKS[0], arm, 2, 0) for arm in ("lora", "scratch")] if args.smoke else plan()
        missing = [run for run in every if run.name not in done]
        failed = processes.every(missing, args, needs=lambda run: run.task, record=prepare, start=start)
    report(results.load(args.table))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
