"""What `deepfusion try` does: a policy acts in the simulator, in front of a camera."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lerobot.envs.factory import make_env, make_env_pre_post_processors
from lerobot.envs.utils import close_envs
from lerobot.scripts.lerobot_eval import eval_policy

from ..storage.shipped import TRAINED_TASKS, shipped_policies
from .film_strip import draw_film_strip
from .observations import env_config, load
from .pyplot import load_pyplot


@dataclass(frozen=True)
class Trial:
    """A task that was tried.

    Attributes:
        task: Meta-World's name of it.
        told: the instruction.
        successes: of each episode.
        films: of each episode, MP4.
    """

    task: str
    told: str
    successes: list[bool]
    films: list[Path]

    def __str__(self) -> str:
        return f'{self.task}, told "{self.told}": {sum(self.successes)} of {len(self.successes)} succeeded'


def try_out(policy: str, tasks: str | None, instruction: str, episodes: int, seed: int, output_dir: Path) -> str:
    """See `deepfusion try --help`; returns what it says.

    Raises:
        ImportError: without Meta-World or Matplotlib.
        ValueError: for a policy that knows no tasks, where none is asked for; for one or a task that is not there.
    """
    checkpoint = shipped_policies().get(policy, Path(policy))
    known = known_tasks(checkpoint)
    chosen = [name.strip() for name in tasks.split(",") if name.strip()] if tasks else list(known)
    if not chosen:
        raise ValueError(f"{policy} does not say what it was trained on ({TRAINED_TASKS}); choose a --task")
    load_pyplot()
    loaded = load(str(checkpoint))
    output_dir.mkdir(parents=True, exist_ok=True)
    trials = [try_task(loaded, task, instruction, episodes, seed, output_dir / task) for task in chosen]
    strip = output_dir / "strip.png"
    draw_film_strip([trial.films[0] for trial in trials], [_outcome(trial) for trial in trials], strip)
    lines = [f"{trial}{_expected(known, trial.task)}" for trial in trials]
    written = {trial.task: {"told": trial.told, "successes": trial.successes} for trial in trials}
    (output_dir / "try.json").write_text(json.dumps({"policy": policy, "seed": seed, "tasks": written}, indent=1))
    return "\n".join([*lines, f"wrote {strip}, try.json and the films beside it, {trials[0].films[0]} the first"])


def known_tasks(checkpoint: Path) -> dict[str, dict[str, Any]]:
    """What a policy that comes with the package was trained on: `success` of `episodes` in environments it had never
    been in, by Meta-World's names. Empty for others.
    """
    file = checkpoint / TRAINED_TASKS
    return json.loads(file.read_text())["tasks"] if file.is_file() else {}


def try_task(loaded: Sequence[Any], task: str, instruction: str, episodes: int, seed: int, output_dir: Path) -> Trial:
    """Episodes of one task, side by side, by LeRobot's own evaluation.

    Args:
        loaded: policy, pre- and post-processor.
        task: Meta-World's name of it.
        instruction: said in place of the task's own sentence; empty for that one.
        episodes: how many.
        seed: of the first one.
        output_dir: for the films.
    """
    policy, before, after = loaded
    config = env_config({"type": "metaworld_fast", "task": task, "instruction": instruction})
    environments = make_env(config, n_envs=episodes)
    try:
        (env,) = environments[task].values()
        told = env.call("task_description")[0]
        with torch.no_grad():
            torch.manual_seed(seed)
            info = eval_policy(
                env,
                policy,
                *make_env_pre_post_processors(env_cfg=config, policy_cfg=policy.config),
                before,
                after,
                n_episodes=episodes,
                max_episodes_rendered=episodes,
                videos_dir=output_dir,
                start_seed=seed,
            )
    finally:
        close_envs(environments)
    successes = [bool(episode["success"]) for episode in info["per_episode"]]
    return Trial(task, told, successes, [Path(path) for path in info["video_paths"]])


def _outcome(trial: Trial) -> str:
    return f'{trial.task}: "{trial.told}" ({"success" if trial.successes[0] else "failed"})'


def _expected(known: dict[str, dict[str, Any]], task: str) -> str:
    if task not in known:
        return " (never trained on it)" if known else ""
    return f" (in {known[task]['episodes']} environments it had not seen: {known[task]['success']:.0%})"
