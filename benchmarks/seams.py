"""Where one chunk ends and the next begins: the jump there, and success, when thinking takes so many steps.

    python -m benchmarks.seams --data outputs/data/push --out outputs/seams   # trains what it lacks, then judges
    python -m benchmarks.seams --report                                        # the table of what is there

`push-v3` in simulated time: a policy looks, and its chunk is there `delay` steps later, while the arm goes on with
the old one; of the new one the first `delay` actions are past by then. Every `HORIZON` steps, or every `delay` if
that is longer, it looks anew. Without real-time chunking the two chunks know nothing of each other; guided, LeRobot's
pulls the new one towards the old one; trained (`rtc_training_max_delay`), it goes on from the actions that are
executed meanwhile. Every way is judged on the policy that was trained for the last, and the first two on one that
was not, too. Rows go into `benchmarks/results/seams.csv`, a policy, way and delay at a time.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.envs.utils import preprocess_observation
from lerobot.policies.rtc.configuration_rtc import RTCConfig
from torch import Tensor

from lerobot_deepfusion.looking.observations import load as load_policy
from lerobot_deepfusion.modeling_deepfusion import DeepFusionPolicy
from lerobot_deepfusion.sim.metaworld_fast import MetaworldFastEnv

from .objectives.run import build
from .study import arms as study
from .study.data import Demonstrations
from .study.results import WHERE, here, load, save
from .study.run import FIRST_ENVIRONMENT, train

RESULTS = Path(__file__).parent / "results" / "seams.csv"
CHUNK, HORIZON, MOST, LENGTH = 20, 8, 8, 150
DELAYS = (0, 2, 4, 8)
POLICIES = {
    "plain": {"objective": "flow"},
    "flow": {"objective": "flow", "rtc_training_max_delay": MOST},
    "two_step": {"objective": "two_step", "rtc_training_max_delay": MOST},
    "drift": {"objective": "drift", "rtc_training_max_delay": MOST},
}
WAYS = {
    "plain": ("none", "guided"),
    "flow": ("none", "guided", "trained"),
    "two_step": ("none", "trained"),
    "drift": ("none", "trained"),
}
COLUMNS = (
    *("run", "arm", "control", "delay", "seed", "steps", "successes", "episodes"),
    *("jump_mean", "jump_p95", "within_mean", "within_p95", *WHERE),
)


def trained(name: str, data: Path, out: Path, steps: int, seed: int) -> Path:
    """Checkpoint of a policy, trained unless it is there."""
    folder = out / "checkpoints" / f"{name}-{steps}s-{seed}"
    if not (folder / "policy_postprocessor.json").exists():
        demonstrations = Demonstrations(data)
        torch.manual_seed(seed)
        size = {"chunk_size": CHUNK, "n_action_steps": HORIZON, "num_flow_samples": 4}
        policy, before, after = build(demonstrations=demonstrations, **size, **POLICIES[name])
        run = study.Run("push", name, 0, seed, given_steps=steps)
        print(name, train(policy, before, demonstrations, run), flush=True)
        for part in (policy, before, after):
            part.save_pretrained(folder)
    return folder


class Arms:
    """Robots side by side, which look when they are told to."""

    def __init__(self, count: int, seed: int) -> None:
        config = MetaworldFastEnv(episode_length=LENGTH)
        self.robots: list[Any] = [config.make("push-v3") for _ in range(count)]
        for index, robot in enumerate(self.robots):
            with robot.unwrapped.without_pictures():
                robot.reset(seed=seed + index)
        self.won, self.over = np.zeros(count, bool), np.zeros(count, bool)

    def look(self) -> dict[str, Any]:
        """One observation of all, as LeRobot's evaluation gives it."""
        seen = [robot.unwrapped._format_raw_obs(robot.unwrapped.raw_observation) for robot in self.robots]
        stacked = {key: np.stack([one[key] for one in seen]) for key in seen[0]}
        tasks = [robot.unwrapped.task_description for robot in self.robots]
        return {**preprocess_observation(stacked), "task": tasks}

    def step(self, actions: np.ndarray) -> None:
        for index, robot in enumerate(self.robots):
            if not self.over[index]:
                with robot.unwrapped.without_pictures():
                    _, _, ended, cut, info = robot.step(actions[index].clip(-1, 1).astype(np.float32))
                self.won[index] |= bool(info.get("is_success"))
                self.over[index] = ended or cut or self.won[index]


def judge(policy: DeepFusionPolicy, before: Any, after: Any, delay: int, episodes: int) -> dict[str, float]:
    """Success, and steps of the executed actions across seams and within chunks, as norms in action units."""
    arms = Arms(episodes, FIRST_ENVIRONMENT)
    torch.manual_seed(FIRST_ENVIRONMENT)
    every = max(HORIZON, delay)
    chunk, used = None, 0  # normalised, [B, T, A], and how many of it are executed
    last: tuple[Tensor, np.ndarray] | None = None
    jumps: dict[bool, list[np.ndarray]] = {True: [], False: []}

    def execute(whole: Tensor, start: int, stop: int) -> None:
        nonlocal last
        for index in range(start, stop):
            action = after(whole[:, index]).numpy()
            if last is not None:
                jumps[last[0] is not whole].append(np.linalg.norm(action - last[1], axis=1)[~arms.over])
            arms.step(action)
            last = whole, action

    for _ in range(0, LENGTH, every):
        left = None if chunk is None else chunk[:, used:]
        rtc = {"inference_delay": delay if chunk is not None else 0, "prev_chunk_left_over": left}
        given = {**rtc, "execution_horizon": HORIZON} if policy._rtc_enabled() else {}
        new = policy.predict_action_chunk(before(arms.look()), **given)
        start = 0  # nothing moves before the first chunk is there
        if chunk is not None:
            execute(chunk, used, used + delay)
            start = delay
        execute(new, start, every)
        chunk, used = new, every
        if arms.over.all():
            break
    across, within = (np.concatenate(jumps[seam] or [np.zeros(1)]) for seam in (True, False))
    return {
        "successes": int(arms.won.sum()),
        "jump_mean": round(float(across.mean()), 4),
        "jump_p95": round(float(np.quantile(across, 0.95)), 4),
        "within_mean": round(float(within.mean()), 4),
        "within_p95": round(float(np.quantile(within, 0.95)), 4),
    }


def set_way(policy: DeepFusionPolicy, way: str) -> None:
    policy.config.rtc_training_max_delay = MOST if way == "trained" else 0
    policy.config.rtc_config = None if way == "none" else RTCConfig(enabled=True, execution_horizon=HORIZON)
    policy.init_rtc_processor()


def run(args: argparse.Namespace) -> None:
    """Every row that the table lacks."""
    where = here()
    for name, ways in WAYS.items():
        folder = trained(name, args.data, args.out, args.steps, args.seed)
        policy, before, after = load_policy(str(folder))
        for way in ways:
            for delay in DELAYS:
                about = {"arm": name, "control": way, "delay": delay, "seed": args.seed, "steps": args.steps}
                about["run"] = f"{name}-{way}-{delay}-{args.steps}s-{args.seed}"
                rows = load(args.table)
                if about["run"] in {row["run"] for row in rows}:
                    continue
                set_way(policy, way)
                found = judge(policy, before, after, delay, args.episodes)
                print(about["run"], found, flush=True)
                save(args.table, [*rows, {**about, **found, "episodes": args.episodes, **where}], COLUMNS)


def report(rows: list[dict[str, Any]]) -> None:
    print("| policy | real-time chunking | delay | success | seam: mean jump | 95% | within a chunk: mean | 95% |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name in WAYS:
        for row in (row for row in rows if row["arm"] == name):
            jumps = " | ".join(f"{row[key]:.3f}" for key in ("jump_mean", "jump_p95", "within_mean", "within_p95"))
            done = f"{row['successes']} of {row['episodes']}"
            print(f"| `{name}` | {row['control']} | {row['delay']} | {done} | {jumps} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("outputs/data/push"), help="demonstrations of push-v3")
    parser.add_argument("--out", type=Path, default=Path("outputs/seams"))
    parser.add_argument("--table", type=Path, default=RESULTS)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--episodes", type=int, default=50)
    parser.add_argument("--report", action="store_true", help="run nothing; report what is there")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if not args.report:
        run(args)
    report(load(args.table))


if __name__ == "__main__":
    main()
