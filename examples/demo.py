"""The whole road, offline: demonstrations -> lerobot-train -> lerobot-eval -> pictures.

    python examples/demo.py                   # push a puck to a goal (`make demo`)
    python examples/demo.py --recipe faucet   # two tasks in one scene, which only the instruction tells apart
    python examples/demo.py --recipe push_3d  # the first one, by a camera with depth that stands elsewhere each time

Every stage is one of LeRobot's or this package's own commands; they are printed, and can be run by hand.
Leaves `outputs/demo/<recipe>/`: data, checkpoint, evaluation, `success.mp4`, `strip.png`, `report.png`, `report.json`
and `look/`, what it looks at where it first succeeded; with depth also `space.png` and `space.rrd`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

from lerobot_deepfusion.looking.film_strip import draw_film_strip
from lerobot_deepfusion.looking.pyplot import load_pyplot

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {
    "MUJOCO_GL": "egl",  # off-screen rendering
    "LP_NUM_THREADS": "1",  # its software renderer: one thread for each environment
    "OMP_WAIT_POLICY": "passive",  # idle threads sleep, so that loader and network share the cores
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONWARNINGS": "ignore",
}
FIRST_SEED = 1000  # of evaluation
RECIPES = {
    "push": {"task": "push-v3", "episodes": 160, "config": "tiny.yaml"},
    "faucet": {"task": "one-faucet-open,one-faucet-close", "episodes": 60, "config": "tiny_faucet.yaml"},
    "push_3d": {"task": "push-v3", "episodes": 100, "config": "tiny_3d.yaml", "camera_poses": "wide_train"},
}


def run(command: str, log: Path | None = None) -> None:
    """Run one command, show what it prints, and keep it in `log`."""
    print(f"\n$ {command}", flush=True)
    program, *arguments = shlex.split(command)
    local = Path(sys.executable).with_name(program)
    process = subprocess.Popen(
        [str(local) if local.exists() else program, *arguments],
        cwd=ROOT,
        env={**ENVIRONMENT, **os.environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    kept = bytearray()
    while chunk := process.stdout.read1():
        kept += chunk
        sys.stdout.buffer.write(chunk)
        sys.stdout.flush()
    if log is not None:
        log.write_bytes(kept)
    if process.wait():
        sys.exit(f"stopped with exit code {process.returncode}: {command}")


def evaluate(checkpoint: Path, out: Path, recipe: dict, episodes: int) -> dict[str, float]:
    """Success of a checkpoint on each task, by lerobot-eval."""
    run(
        f"lerobot-eval --policy.path={checkpoint} --policy.device=cpu --env.type=metaworld_fast "
        f"--env.task={recipe['task']} {_space(recipe, '--env.depth=true --env.camera_poses=')}"
        f"--eval.n_episodes={episodes} --eval.batch_size=2 --seed={FIRST_SEED} --output_dir={out}"
    )
    per_task = json.loads((ROOT / out / "eval_info.json").read_text())["per_task"]
    return {entry["task_group"]: sum(entry["metrics"]["successes"]) / episodes for entry in per_task}


def look(checkpoint: Path, out: Path, recipe: dict) -> None:
    """Where the policy looks in the scene of its first success, in another try."""
    task = json.loads((ROOT / out / "after" / "eval_info.json").read_text())["per_task"][0]
    successes = task["metrics"]["successes"]
    if True in successes:
        run(
            f"deepfusion look {checkpoint} --env.type=metaworld_fast --env.task={task['task_group']} "
            f"{_space(recipe, '--env.depth=true --env.camera_poses=')}"
            f"--seed={FIRST_SEED + successes.index(True)} --output-dir={out}/look"
        )


def _space(recipe: dict, options: str) -> str:
    """Options of a recipe with depth, in front of where cameras stand."""
    return f"{options}{recipe['camera_poses']} " if "camera_poses" in recipe else ""


def losses(log: str, checkpoint: Path) -> list[tuple[int, float]]:
    """Step and loss of the lines that lerobot-train logs; they round the step, so it is counted."""
    every = json.loads((checkpoint / "train_config.json").read_text())["log_freq"]
    found = re.findall(r"step:\S+ .*?loss:(\S+)", log)
    return [((index + 1) * every, float(loss)) for index, loss in enumerate(found)]


def pictures(out: Path, curve: list[tuple[int, float]], success: dict[str, dict[str, float]], video: Path) -> None:
    """Frame strip and report plot."""
    plt = load_pyplot()
    draw_film_strip([video], [""], out / "strip.png")
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), width_ratios=(3, 2))
    left.plot(*zip(*curve, strict=True))
    left.set(xlabel="step", ylabel="flow-matching loss", yscale="log")
    for index, (stage, values) in enumerate(success.items()):
        places = [place + 0.4 * index for place in range(len(values))]
        bars = right.bar(places, [100 * value for value in values.values()], width=0.38, label=stage)
        right.bar_label(bars, fmt="%.0f")
    right.set(ylabel="success, %", ylim=(0, 110))
    right.set_xticks([place + 0.2 for place in range(len(values))], list(values))
    right.legend()
    figure.tight_layout()
    figure.savefig(out / "report.png", dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", choices=RECIPES, default="push")
    parser.add_argument("--seed", type=int, default=1000, help="training seed")
    parser.add_argument("--episodes", type=int, default=50, help="evaluation episodes for each task")
    parser.add_argument("--steps", type=int, default=None, help="training steps; default: the config's")
    parser.add_argument("--demos", type=int, default=None, help="demonstrations for each task")
    parser.add_argument("--out", type=Path, default=None, help="default: outputs/demo/<recipe>")
    args = parser.parse_args()
    recipe = RECIPES[args.recipe]
    out = args.out or Path("outputs/demo") / args.recipe
    data = out / "data"
    start, minutes = time.monotonic(), {}

    def stage(name: str) -> None:
        minutes[name] = round((time.monotonic() - start - sum(minutes.values()) * 60) / 60, 2)

    if not (ROOT / data).exists():
        run(
            f"deepfusion demos --task {recipe['task']} --episodes {args.demos or recipe['episodes']} --noise 0.1 "
            f"{_space(recipe, '--depth --camera-poses=')}--root {data}"
        )
    stage("demonstrations")
    train = (
        f"lerobot-train --config_path=configs/policy/{recipe['config']} --dataset.repo_id=local/{args.recipe} "
        f"--dataset.root={data} --seed={args.seed}"
    )
    for name in ("untrained", "trained"):
        shutil.rmtree(ROOT / out / name, ignore_errors=True)
    run(f"{train} --steps=1 --output_dir={out}/untrained")
    before = evaluate(out / "untrained/checkpoints/last/pretrained_model", out / "before", recipe, 10)
    stage("before training")
    log = ROOT / out / "train.log"
    run(f"{train} --output_dir={out}/trained" + (f" --steps={args.steps}" if args.steps else ""), log)
    stage("training")
    checkpoint = out / "trained/checkpoints/last/pretrained_model"
    after = evaluate(checkpoint, out / "after", recipe, args.episodes)
    stage("evaluation")
    look(checkpoint, out, recipe)
    if "camera_poses" in recipe:
        run(f"deepfusion space {data} --output-dir {out}")

    folder = ROOT / out
    video = sorted((folder / "after" / "videos").glob("*/*.mp4"))[0]
    shutil.copy(video, folder / "success.mp4")
    success = {"before": before, "after": after}
    pictures(folder, losses(log.read_text(errors="replace"), ROOT / checkpoint), success, video)
    report = {"success": success, "minutes": minutes, "seed": args.seed, "evaluation_episodes": args.episodes}
    (folder / "report.json").write_text(json.dumps(report, indent=1))
    print("\n" + json.dumps(report, indent=1))
    for name in before:
        print(f"{name}: {before[name]:.0%} before training, {after[name]:.0%} after; see {out}/report.png")


if __name__ == "__main__":
    main()
