"""Which fusion suits your data? Train each alike with lerobot-train, and compare them on episodes held out.

    python examples/compare_fusions.py --repo-id=you/data --config=configs/policy/onevision_0.5b.yaml --steps=2000
    python examples/compare_fusions.py --repo-id=local/push --root=outputs/demo/push/data --seeds=0,1,2 \
        --env.type=metaworld_fast --env.task=push-v3     # with a simulator: success too
    python examples/compare_fusions.py --repo-id=you/data \
        --arm="--policy.fusion=kv" --arm="--policy.fusion=kv --policy.fusion_layers=middle"

Options that are not this script's go to lerobot-train, and those that begin with `--env.` to lerobot-eval. Arms get
the same steps, samples and seeds. Prints a table and leaves `compare.csv` and `compare.png` in `--out`; runs that are
there are kept, so that the same command goes on where it was stopped.

The action error is the one to look at without a simulator: mean distance between the actions that the policy would
take in a held-out episode and those of the demonstration, as a share of their standard deviation there. Differences
between arms that are no larger than those between seeds mean nothing.
"""

from __future__ import annotations

import argparse
import csv
import json
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from lerobot.datasets.factory import resolve_delta_timestamps
from lerobot.datasets.lerobot_dataset import LeRobotDataset, LeRobotDatasetMetadata
from lerobot.policies.factory import make_pre_post_processors

from lerobot_deepfusion.looking.pyplot import load_pyplot
from lerobot_deepfusion.modeling_deepfusion import DeepFusionPolicy

DEFAULT_ARMS = tuple(f"--policy.fusion={fusion}" for fusion in ("kv", "hidden", "late"))
MEASURES = ("action_error", "first_action_error", "loss", "chunk_ms", "train_minutes", "parameters", "success")


def run(*command: str) -> None:
    """One of LeRobot's commands, printed, that has to succeed."""
    print(f"\n$ {shlex.join(command)}", flush=True)
    script = Path(sys.executable).with_name(command[0])
    subprocess.run([str(script), *command[1:]], check=True)


def divide(episodes: int, share: float) -> tuple[list[int], list[int]]:
    """Episodes to train on, and every so many-th, held out: where tasks follow each other, all are in both."""
    held_out = [index for index in range(episodes) if int((index + 1) * share + 1e-9) > int(index * share + 1e-9)]
    return [index for index in range(episodes) if index not in held_out], held_out


@torch.no_grad()
def measure(checkpoint: Path, repo_id: str, root: str | None, episodes: list[int], samples: int) -> dict[str, float]:
    """What a policy is worth on held-out episodes; the same frames, noise and times for every arm.

    Args:
        checkpoint: folder.
        repo_id: of the data set.
        root: its folder, if it is a local one.
        episodes: that were not trained on.
        samples: frames, spread over them.
    """
    policy = DeepFusionPolicy.from_pretrained(checkpoint)
    device = {"device_processor": {"device": str(policy.config.device)}}
    before, after = make_pre_post_processors(
        policy.config, pretrained_path=str(checkpoint), preprocessor_overrides=device
    )
    meta = LeRobotDatasetMetadata(repo_id, root=root)
    window = resolve_delta_timestamps(policy.config, meta)
    data = LeRobotDataset(repo_id, root=root, episodes=episodes, delta_timestamps=window)
    rows = torch.linspace(0, len(data) - 1, min(samples, len(data))).long().tolist()
    spread = torch.as_tensor(meta.stats["action"]["std"]).clamp(min=1e-6)
    policy.eval()
    torch.manual_seed(0)
    losses, errors, firsts, seconds = [], [], [], []
    for batch in torch.utils.data.DataLoader(torch.utils.data.Subset(data, rows), batch_size=16):
        wanted, there = batch["action"], ~batch["action_is_pad"]
        ready = before(batch)
        losses.append(policy.forward(ready, reduction="none")[0].cpu())
        start = time.perf_counter()
        chosen = after(policy.predict_action_chunk(ready)).cpu()
        seconds.append(time.perf_counter() - start)
        error = ((chosen - wanted).abs() / spread).mean(-1)
        errors.append((error * there).sum(1) / there.sum(1).clamp(min=1))
        firsts.append(error[:, 0])
    return {
        "action_error": torch.cat(errors).mean().item(),
        "first_action_error": torch.cat(firsts).mean().item(),
        "loss": torch.cat(losses).mean().item(),
        "chunk_ms": 1000 * sorted(seconds)[len(seconds) // 2] / min(16, len(rows)),
        "parameters": float(sum(p.numel() for p in policy.parameters())),
    }


def one_run(args: argparse.Namespace, arm: str, seed: int, folder: Path, split: tuple[list[int], list[int]]) -> None:
    """Train, measure and, with a simulator, evaluate; `result.json` in `folder` is written last."""
    kept, held_out = split
    train = [option for option in args.options if not option.startswith("--env.")]
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was stopped
    start = time.monotonic()
    run(
        "lerobot-train",
        f"--config_path={args.config}",
        f"--dataset.repo_id={args.repo_id}",
        *([f"--dataset.root={args.root}"] if args.root else []),
        f"--dataset.episodes={kept}",
        *shlex.split(arm),
        *train,
        f"--seed={seed}",
        f"--steps={args.steps}",
        f"--save_freq={args.steps}",
        f"--output_dir={folder / 'train'}",
        "--policy.push_to_hub=false",
    )
    minutes = (time.monotonic() - start) / 60
    checkpoint = folder / "train/checkpoints/last/pretrained_model"
    result = measure(checkpoint, args.repo_id, args.root, held_out, args.samples) | {"train_minutes": minutes}
    environment = [option for option in args.options if option.startswith("--env.")]
    if environment:
        run(
            "lerobot-eval",
            f"--policy.path={checkpoint}",
            *environment,
            f"--eval.n_episodes={args.episodes}",
            f"--output_dir={folder / 'eval'}",
        )
        info = json.loads((folder / "eval/eval_info.json").read_text())
        result["success"] = info["overall"]["pc_success"] / 100
    (folder / "result.json").write_text(json.dumps({"arm": arm, "seed": seed, **result}, indent=1))


def table(results: list[dict[str, Any]], out: Path) -> None:
    """`compare.csv` with every run, a table of means over seeds, and `compare.png`."""
    measures = [name for name in MEASURES if all(name in result for result in results)]
    with (out / "compare.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["arm", "seed", *measures], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(results)
    arms = list(dict.fromkeys(result["arm"] for result in results))
    values = {a: {m: [r[m] for r in results if r["arm"] == a] for m in measures} for a in arms}
    print(f"\n{'arm':40} " + " ".join(f"{name:>22}" for name in measures))
    for arm in arms:
        cells = (_cell(values[arm][name]) for name in measures)
        print(f"{arm.replace('--policy.', ''):40} " + " ".join(f"{cell:>22}" for cell in cells))

    plt = load_pyplot()
    shown = [name for name in ("action_error", "loss", "success") if name in measures]
    figure, axes = plt.subplots(1, len(shown), figsize=(4 * len(shown), 3.2), squeeze=False)
    for axis, name in zip(axes[0], shown, strict=True):
        for place, arm in enumerate(arms):
            points = values[arm][name]
            axis.bar(place, mean(points), 0.6, alpha=0.6)
            axis.plot([place] * len(points), points, "k.", markersize=5)  # one for each seed
        labels = [arm.replace("--policy.", "").replace(" ", "\n") for arm in arms]
        axis.set_xticks(range(len(arms)), labels, fontsize=7)
        axis.set_title(name.replace("_", " "))
    figure.tight_layout()
    figure.savefig(out / "compare.png", dpi=110)


def _cell(values: list[float]) -> str:
    """Mean, and from where to where the seeds go."""
    spread = f" ({min(values):.3g} to {max(values):.3g})" if len(values) > 1 else ""
    return f"{mean(values):.3g}{spread}"


def same_or_stop(args: argparse.Namespace) -> None:
    """
    Raises:
        SystemExit: if `--out` has runs with other options; arms and seeds may be added.
    """
    asked = {key: str(value) for key, value in vars(args).items() if key not in ("arm", "seeds", "out")}
    file = args.out / "options.json"
    found = json.loads(file.read_text()) if file.exists() else asked
    different = [key for key in asked if found.get(key) != asked[key]]
    if different:
        sys.exit(
            f"{args.out} has runs with other options: "
            + ", ".join(f"{key}={found.get(key)!r} and not {asked[key]!r}" for key in different)
            + "; choose another --out, or remove it"
        )
    args.out.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(asked, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repo-id", required=True, help="data set on the Hub; any name for a local one")
    parser.add_argument("--root", default=None, help="folder of a local data set")
    parser.add_argument("--config", default="configs/policy/tiny.yaml", help="training config that all arms share")
    parser.add_argument("--arm", action="append", help="options that make an arm; may be given several times")
    parser.add_argument("--seeds", default="0", help="comma-separated training seeds")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--hold-out", type=float, default=0.1, help="share of the episodes")
    parser.add_argument("--samples", type=int, default=256, help="held-out frames to measure on")
    parser.add_argument("--episodes", type=int, default=50, help="with a simulator")
    parser.add_argument("--out", type=Path, default=Path("outputs/compare_fusions"))
    args, args.options = parser.parse_known_args()
    split = divide(LeRobotDatasetMetadata(args.repo_id, root=args.root).total_episodes, args.hold_out)
    if not all(split):
        parser.error(
            f"--hold-out={args.hold_out} leaves {len(split[0])} episodes to train on, {len(split[1])} held out"
        )
    same_or_stop(args)
    results = []
    for seed in map(int, args.seeds.split(",")):
        for arm in args.arm or DEFAULT_ARMS:
            folder = args.out / f"{arm.replace('--policy.', '').replace(' ', '_').replace('/', '_')}_{seed}"
            if not (folder / "result.json").exists():
                one_run(args, arm, seed, folder, split)
            results.append(json.loads((folder / "result.json").read_text()))
            table(results, args.out)


if __name__ == "__main__":
    main()
