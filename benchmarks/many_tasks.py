"""One policy for ten tasks: does it do them all, and by the words or by the scene?

    python -m benchmarks.many_tasks            # record, train (lerobot-train), judge; goes on where it stopped
    python -m benchmarks.many_tasks --report   # the table of what is there
    python -m benchmarks.many_tasks --ship     # policy, card and figures into lerobot_deepfusion/pretrained

Meta-World's MT10. Judged by LeRobot's own evaluation in environments that no demonstration comes from, each task

- `as told`: by its own sentence;
- `other words`: by one that says the same, and which training never had;
- `another task's words`: by the next task's sentence. A policy that succeeds then goes by the scene and not by words;
- `black images`;
- `blind replay`: the actions of its first demonstration, whatever is there.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import processes
from .study import results

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "many_tasks.csv"
COLUMNS = ("run", "task", "control", "successes", "episodes", "cpu_minutes", *results.WHERE)
FIRST_ENVIRONMENT = 1000  # of those judged; demonstrations are from 100,000 on
DEMONSTRATIONS = 60
# Tasks, and for each what it is told in other words.
TASKS = {
    "reach-v3": "Move the hand to the target",
    "push-v3": "Shove the disc to the target",
    "pick-place-v3": "Lift the disc and bring it to the target",
    "door-open-v3": "Pull the door open",
    "drawer-open-v3": "Pull the drawer out",
    "drawer-close-v3": "Shut the drawer",
    "button-press-topdown-v3": "Push the button down",
    "peg-insert-side-v3": "Put the peg into the hole",
    "window-open-v3": "Slide the window open",
    "window-close-v3": "Slide the window shut",
}
SMOKE_TASKS = ("reach-v3", "push-v3")
EPISODES = {"as told": 50, "other words": 20, "another task's words": 20, "black images": 20, "blind replay": 20}


@dataclass(frozen=True)
class Run:
    """A task under one of `EPISODES`."""

    task: str
    control: str

    @property
    def name(self) -> str:
        return f"{self.task}, {self.control}"


def prepare(out: Path, name: str, smoke: bool) -> None:
    """Demonstrations and the policy, unless they are there."""
    from lerobot_deepfusion.sim import recording

    data, trained = out / "data", out / "trained"
    if not data.exists():
        tasks, episodes = (SMOKE_TASKS, 1) if smoke else (tuple(TASKS), DEMONSTRATIONS)
        recipe = recording.Recipe("metaworld", tasks, episodes, 96, recording.FIRST_SEED, noise=0.1)
        print(recording.record(recipe, data), flush=True)
    if (trained / "finished").exists():
        return
    command = [str(Path(sys.executable).with_name("lerobot-train"))]
    if policy_of(out).exists():
        command += ["--resume=true", f"--config_path={policy_of(out) / 'train_config.json'}"]
    else:
        shutil.rmtree(trained, ignore_errors=True)
        command += [f"--config_path={ROOT / 'configs' / 'policy' / 'tiny_mt10.yaml'}", f"--output_dir={trained}"]
        command += ["--dataset.repo_id=local/mt10", f"--dataset.root={data}"] + ["--steps=2"] * smoke
    subprocess.run(command, check=True)
    (trained / "finished").touch()


def policy_of(out: Path) -> Path:
    return out / "trained" / "checkpoints" / "last" / "pretrained_model"


def start(run: Run, out: Path, table: Path, smoke: bool) -> str:
    """One task under one control, in a process of its own, into the table; a line about it."""
    result = out / "runs" / f"{run.name}.json"
    episodes = 1 if smoke else EPISODES[run.control]
    processes.finish(
        "benchmarks.many_tasks",
        [run.task, run.control, str(episodes), str(out), str(result)],
        out / "logs" / f"{run.name}.log",
    )
    share, low, high = results.rate(results.add(table, result, COLUMNS))
    return f"{run.task:24} {run.control:22} {share:4.0%}   95% interval {low:.0%} to {high:.0%}"


def judge(task: str, control: str, episodes: int, out: Path) -> dict[str, Any]:
    """A row of the table."""
    # None of these above: `main` starts processes first, which import them once for all.
    from lerobot_deepfusion.looking.observations import load
    from lerobot_deepfusion.sim.metaworld_env import sentence

    from . import rollouts

    began = time.process_time()
    tasks = list(TASKS)
    change = {
        "other words": rollouts.told(TASKS[task]),
        "another task's words": rollouts.told(sentence(tasks[(tasks.index(task) + 1) % len(tasks)])),
        "black images": rollouts.black,
    }.get(control)
    if control == "blind replay":
        succeeded = rollouts.blind_replay(out / "data", task, episodes, FIRST_ENVIRONMENT)
    else:
        policy, before, after = load(str(policy_of(out)))
        succeeded = rollouts.successes(policy, before, after, task, episodes, FIRST_ENVIRONMENT, change=change)
    row = {
        "run": Run(task, control).name,
        "task": task,
        "control": control,
        "successes": succeeded,
        "episodes": episodes,
    }
    return {**row, "cpu_minutes": round((time.process_time() - began) / 60, 2), **results.here()}


def report(rows: list[results.Row]) -> None:
    """Success of each task, by control, and the mean over tasks."""
    print(f"| task | {' | '.join(EPISODES)} |\n| --- |{' --- |' * len(EPISODES)}")
    for task in TASKS:
        cells = [[row for row in rows if (row["task"], row["control"]) == (task, control)] for control in EPISODES]
        print(f"| {task} | {' | '.join(_cell(cell) for cell in cells)} |")
    every = [[row for row in rows if row["control"] == control] for control in EPISODES]
    print(f"| **all** | {' | '.join(_cell(cell) for cell in every)} |")


def _cell(rows: list[results.Row]) -> str:
    return "{:.0%} ({:.0%} to {:.0%})".format(*results.rate(rows)) if rows else "-"


def ship(out: Path, rows: list[results.Row]) -> None:
    """The policy, standing alone, with the figures of `as told` beside it."""
    from lerobot_deepfusion.storage.model_card import write_card
    from lerobot_deepfusion.storage.shipped import PACKAGE, TRAINED_TASKS

    folder = PACKAGE / "pretrained" / "mt10"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(policy_of(out), folder)
    told = {row["task"]: row for row in rows if row["control"] == "as told"}
    success = {
        task: {"success": told[task]["successes"] / told[task]["episodes"], "episodes": told[task]["episodes"]}
        for task in TASKS
    }
    about = {"first_environment": FIRST_ENVIRONMENT, "demonstrations": DEMONSTRATIONS, "tasks": success}
    (folder / TRAINED_TASKS).write_text(json.dumps(about, indent=1) + "\n")
    info = out / "eval_info.json"
    info.write_text(
        json.dumps(
            {"per_group": {task: _counted([told[task]]) for task in TASKS}, "overall": _counted(list(told.values()))}
        )
    )
    card = write_card(folder, eval_info=info)
    card.write_text(_told_here(card.read_text(), rows))
    print(f"wrote {card}")


def _told_here(card: str, rows: list[results.Row]) -> str:
    """A card that knows where the policy lies and what its controls gave."""
    found = {control: _cell([row for row in rows if row["control"] == control]) for control in EPISODES}
    others = "; ".join(f"{control} {found[control]}" for control in list(EPISODES)[2:])
    ours = (
        f"by `python -m benchmarks.many_tasks` in simulation, one training seed. All: {found['as told']}; {others}."
    )
    untested = "others are untested:"
    model = "from lerobot_deepfusion.modeling_deepfusion import DeepFusionPolicy\n"
    for said, instead in (
        ("--policy.path=<you/policy>", "--policy.path=$(deepfusion policy mt10)"),
        ("=<environment> --env.task=<task>", "=metaworld_fast --env.task=push-v3"),
        (untested, f"told the same in other words it succeeds in {found['other words']}:"),
        (model, f"{model}from lerobot_deepfusion.storage.shipped import shipped_policies\n"),
        ("policy = DeepFusionPolicy.f", 'folder = str(shipped_policies()["mt10"])\npolicy = DeepFusionPolicy.f'),
        ('"<you/policy>"', "folder"),
        ("by `lerobot-eval` in simulation.", ours),
    ):
        if said not in card and said != untested:  # a card without a data set names no tasks
            raise ValueError(f"the card says nothing of {said!r} any more, which was to become {instead!r}")
        card = card.replace(said, instead)
    return card


def _counted(rows: list[results.Row]) -> dict[str, Any]:
    """As `lerobot-eval` writes it."""
    return {"n_episodes": sum(row["episodes"] for row in rows), "pc_success": 100 * results.rate(rows)[0]}


def main(arguments: list[str] | None = None) -> None:
    if arguments:  # of a run
        task, control, episodes, out, result = arguments
        row = judge(task, control, int(episodes), Path(out))
        results.write(Path(result), json.dumps([row]))
        return
    args = processes.read_options(__doc__, RESULTS, ship="copy the policy into the package")
    failed = 0
    if not args.report and not args.ship:
        processes.get_ready()
        done = {row["run"] for row in results.load(args.table)}
        tasks = SMOKE_TASKS if args.smoke else TASKS
        runs = [Run(task, control) for control in EPISODES for task in tasks]
        runs = [run for run in runs if run.name not in done]
        failed = processes.every(runs, args, needs=lambda run: "policy", record=prepare, start=start)
    rows = results.load(args.table)
    report(rows)
    if args.ship:
        ship(args.out, rows)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
