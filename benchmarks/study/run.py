"""One run of the study: build a policy, train it for so many CPU minutes, let the simulator judge it.

    python -m benchmarks.study.run --task push --arm kv --minutes 3 --out outputs/fusion_study

`benchmarks.study` calls this for each run. The demonstrations are in `<out>/data/<task>`, the result will be
`<out>/runs/<task>-<arm>-<minutes>m-<seed>.json`, whole or not there.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies.factory import make_policy, make_policy_config, make_pre_post_processors
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.utils.feature_utils import dataset_to_policy_features
from torch import nn
from torch.optim import Optimizer

import lerobot_policy_deepfusion  # noqa: F401

from ..rollouts import Change, blind_replay, controls, successes, told
from .arms import ARMS, COMMON, MEDIUM, NO_WORDS, PRETRAINED, PRETRAINING, REPLAY, Arm, Run, Task, task_named
from .data import Demonstrations
from .peers import byte_words, hide_state, make_peer, peer_config
from .results import here, write
from .vlm import write_vlm

BATCH = 32
WARMUP = 0.04  # of the minutes
FIRST_ENVIRONMENT = 1000  # demonstrations start at 100,000; what was chosen was chosen on 2000 and up


def build(arm: Arm, task: Task, data: Demonstrations, vlm: Path) -> tuple[PreTrainedPolicy, Any, Any]:
    """A policy with random weights, or with a VLM's, and its processors."""
    config = _config(arm, task, vlm)
    features = dataset_to_policy_features(data.meta.features)
    config.input_features = {key: feature for key, feature in features.items() if key != "action"}
    policy = make_peer(config, data.meta) if arm.peer else make_policy(config, ds_meta=data.meta)
    with byte_words() if arm.peer == "pi0" else nullcontext():
        before, after = make_pre_post_processors(config, dataset_stats=data.meta.stats)
    return policy, before, after


def _config(arm: Arm, task: Task, vlm: Path) -> PreTrainedConfig:
    if arm.peer:
        return peer_config(arm.peer, task.words)
    options = {**COMMON, "tokenizer_max_length": task.words, "vlm_path": str(vlm), **arm.options}
    return make_policy_config("deepfusion", **options)


def train(policy: PreTrainedPolicy, before: Any, data: Demonstrations, run: Run) -> dict[str, float]:
    """Train until the budget of `run` is used up, with LeRobot's optimizer for the policy.

    Minutes are CPU time of this process from here on. The learning rate follows the share of the budget that is used,
    so that no arm has to know how many steps its minutes are: warmup, then a cosine to zero.

    Returns:
        `cpu_minutes`, `steps`, and `loss`, the mean of the last hundred; of a short run that is all of it.
    """
    optimizer, step = stepper(policy, before, data, run)
    rates = [group["lr"] for group in optimizer.param_groups]
    losses: list[float] = []
    start, minutes, used = time.process_time(), 0.0, 0.0
    while used < 1:
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * schedule(used)
        losses.append(step())
        minutes = (time.process_time() - start) / 60
        used = len(losses) / run.given_steps if run.given_steps else minutes / run.minutes
    last = losses[-100:]
    return {"cpu_minutes": round(minutes, 3), "steps": len(losses), "loss": round(sum(last) / len(last), 5)}


def stepper(
    policy: PreTrainedPolicy, before: Any, data: Demonstrations, run: Run
) -> tuple[Optimizer, Callable[[], float]]:
    """LeRobot's optimizer for a policy, and what trains it on the next batch and returns the loss."""
    preset = policy.config.get_optimizer_preset()
    optimizer = preset.build(policy.get_optim_params())
    for group in optimizer.param_groups:
        group["fused"] = True  # as our preset has it; LeRobot's leave it to a slower default
    batches = data.epochs(BATCH, run.seed)
    policy.train()

    def step() -> float:
        batch = before(data.batch(next(batches), policy.config))
        loss, _ = policy.forward(hide_state(batch) if policy.name != "deepfusion" else batch)
        loss.backward()
        nn.utils.clip_grad_norm_(policy.parameters(), preset.grad_clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return optimizer, step


def schedule(share: float) -> float:
    """Factor of the learning rate after this share of the time."""
    if share < WARMUP:
        return max(share / WARMUP, 0.01)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (share - WARMUP) / (1 - WARMUP))))


def parameters(policy: PreTrainedPolicy) -> dict[str, int]:
    """How many there are, and of which the optimizer moves."""
    every = list(policy.parameters())
    expert = [p for name, p in policy.named_parameters() if name.startswith("model.expert.")]
    return {
        "parameters": sum(p.numel() for p in every),
        "trained_parameters": sum(p.numel() for p in every if p.requires_grad),
        "expert_parameters": sum(p.numel() for p in expert),
    }


def execute(run: Run, out: Path, episodes: int, first: int) -> list[dict[str, Any]]:
    """Train and judge one policy; ours leave their checkpoint in `<out>/checkpoints`.

    Returns:
        One row for each environment and control.
    """
    arm, task, folder = ARMS[run.arm], task_named(run.task), out / "data" / run.task
    about: dict[str, Any] = {"run": run.name, "task": run.task, "arm": run.arm, "seed": run.seed}
    about |= {"minutes": run.minutes, "given_steps": run.given_steps}
    judged = {"episodes": episodes, "first_environment": first}
    if run.arm == REPLAY:
        return [
            {**about, **judged, "environment": name, "successes": blind_replay(folder, name, episodes, first)}
            for name in task.environments
        ]
    data = Demonstrations(folder, NO_WORDS if arm.wordless else None)
    vlm = out / "vlms" / (PRETRAINED if arm.pretrained else f"random-{run.seed}")
    if not arm.pretrained:
        write_vlm(vlm, run.seed)
    elif not vlm.exists():
        raise FileNotFoundError(
            f"{vlm} is not there, which the arm {run.arm!r} starts from; run --task=pretrained first"
        )
    torch.manual_seed(run.seed)
    policy, before, after = build(arm, task, data, vlm)
    about |= parameters(policy) | train(policy, before, data, run) | {"batch": BATCH}
    print(about, flush=True)
    if not arm.peer:
        for part in (policy, before, after):
            part.save_pretrained(out / "checkpoints" / run.name)
    rows = []
    for index, name in enumerate(task.environments):
        as_trained: Change | None = told(NO_WORDS) if arm.wordless else None
        for control, change in {
            "": as_trained,
            **(controls(task.environments, index) if run.controls else {}),
        }.items():
            won = successes(policy, before, after, name, episodes, first, cameras=task.cameras, change=change)
            rows.append({**about, **judged, "environment": name, "control": control, "successes": won})
    return rows


def pretrain(out: Path, run: Run) -> None:
    """The VLM of the arms that start from one: what a `late` policy's, which is whole, learns on other tasks."""
    data = Demonstrations(out / "data" / PRETRAINED)
    vlms = out / "vlms"
    write_vlm(vlms / "before", 0)
    torch.manual_seed(0)
    policy, before, _ = build(ARMS["late"], PRETRAINING, data, vlms / "before")
    print(train(policy, before, data, run), flush=True)
    write_vlm(vlms / PRETRAINED, 0, policy.model.perception.state_dict())


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", required=True, help="of the study, or a Meta-World task's name")
    parser.add_argument("--arm", choices=ARMS, required=True)
    parser.add_argument("--minutes", type=float, default=MEDIUM, help="CPU minutes of training")
    parser.add_argument("--steps", type=int, default=None, help="in the place of minutes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--controls", action="store_true", help="judge with black images and other instructions too")
    parser.add_argument("--episodes", type=int, default=50, help="for each environment")
    parser.add_argument("--first", type=int, default=FIRST_ENVIRONMENT, help="seed of the first environment")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    run = Run(args.task, args.arm, 0 if args.steps else args.minutes, args.seed, args.controls, args.steps)
    if run.task == PRETRAINED:
        return pretrain(args.out, run)
    where = here()
    rows = [{**row, **where} for row in execute(run, args.out, args.episodes, args.first)]
    write(args.out / "runs" / f"{run.name}.json", json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
