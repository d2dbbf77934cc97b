"""Rung 0: where is a thing in the air? One picture with depth, no closed loop, and the place in centimetres.

    python -m benchmarks.space.probe --out outputs/space_ladder

The tiny LLaVA's towers with a small head on their tokens, trained to say where Meta-World's puck is, put at a random
place of the space above the table, where cameras stand elsewhere in each picture. Judged on other pictures with poses
of the same range and beyond it: median distance, and what of it lies along the camera's ray and across. One thread.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

os.environ.setdefault("LP_NUM_THREADS", "1")

import numpy as np
import torch
from torch import Tensor, nn

from lerobot_deepfusion.inputs.points import MILLIMETRES, back_project, to_base
from lerobot_deepfusion.llava.tiny import IMAGE_MEAN, IMAGE_STD, tiny_llava_config
from lerobot_deepfusion.network.perception import Perception
from lerobot_deepfusion.network.positions import build_positions
from lerobot_deepfusion.sim.metaworld_fast import MetaworldFastEnv

from ..report import machine, print_machine
from ..study.run import schedule

LOW, HIGH = (-0.25, 0.45, 0.02), (0.25, 0.85, 0.3)  # of the puck's places, metres
MIDDLE = (0.0, 0.6, 0.1)  # a decimetre from their mean
PICTURES = {"wide_train": 3000, "wide_held_out": 500}
VALIDATION, BATCH, STEPS, RATE = 500, 32, 600, 1e-3  # validation pictures are the last of `wide_train`
ARMS = {
    "flat": "the picture alone",
    "world": "the picture and points in the robot's frame",
    "points": "points alone, with what the picture shows at each",
    "other_depth": "the picture and points of another picture",
    "rays": "the picture and points a metre along each ray",
}


def pictures(poses: str, count: int, file: Path) -> dict[str, Tensor]:
    """Pictures with depth, intrinsics, pose and the puck's place; drawn once, and then read from `file`."""
    if not file.exists():
        env = MetaworldFastEnv(depth=True, camera_poses=poses, goal_markers=False).make("reach-v3").unwrapped
        env.reset(seed=0)
        rng, rows = np.random.default_rng(len(poses)), []
        for index in range(count):
            place = rng.uniform(LOW, HIGH)
            env._move_cameras(5000 + index)
            env._env.data.qpos[9:12] = place
            seen = env._format_raw_obs(env.raw_observation)  # which carries the state forward first
            intrinsics, pose = env._intrinsics_and_pose(env.cameras[0])
            depth = next(value for key, value in seen.items() if key.endswith("depth"))
            rows.append((seen["pixels"], depth, intrinsics, pose, place))
        env.close()
        file.parent.mkdir(parents=True, exist_ok=True)
        columns = map(np.stack, zip(*rows, strict=True))
        np.savez(file, **dict(zip(("picture", "depth", "intrinsics", "pose", "place"), columns, strict=True)))
    return {name: torch.from_numpy(values) for name, values in np.load(file).items()}


def views(data: dict[str, Tensor], arm: str) -> tuple[Tensor, Tensor]:
    """Normalised pictures [M, 1, 3, size, size] and the points [M, 1, 4, size, size] that an arm is given."""
    seen = (data["picture"].movedim(-1, 1) / 255 - torch.tensor(IMAGE_MEAN).view(3, 1, 1)) / torch.tensor(
        IMAGE_STD
    ).view(3, 1, 1)
    metres = data["depth"] / MILLIMETRES if arm != "rays" else torch.ones_like(data["depth"])
    points = torch.cat(
        [
            to_base(back_project(*some, 0.02, 5.0), pose)
            for *some, pose in zip(
                metres.split(500), data["intrinsics"].split(500), data["pose"].split(500), strict=True
            )
        ]
    )
    return seen[:, None], (points.roll(1, 0) if arm == "other_depth" else points)[:, None]


class Finder(nn.Module):
    """The towers of a policy, and a head that says where."""

    def __init__(self, arm: str) -> None:
        super().__init__()
        config = tiny_llava_config()
        self.perception = Perception(config, "kv")
        self.positions = None if arm == "flat" else build_positions(config, "world", 1, MIDDLE)
        self.picture = arm != "points"
        width = config.vision_config.num_tokens * config.text_config.hidden_size
        self.head = nn.Sequential(nn.GELU(), nn.Linear(width, 96), nn.GELU(), nn.Linear(96, 3))

    def forward(self, pixels: Tensor, points: Tensor) -> Tensor:
        added = None if self.positions is None else self.positions(points, pixels)
        tokens = self.perception.embed_images(pixels, added) if self.picture else added
        assert tokens is not None
        return self.head(tokens.flatten(1))


def train(finder: Finder, pixels: Tensor, points: Tensor, places: Tensor, steps: int) -> float:
    """On places that are normalised; seconds of process time for a step."""
    optimizer = torch.optim.AdamW([p for p in finder.parameters() if p.requires_grad], lr=RATE)
    start = time.process_time()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = RATE * schedule(step / steps)
        rows = torch.randint(len(places), (BATCH,))
        loss = nn.functional.mse_loss(finder(pixels[rows], points[rows]), places[rows])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(finder.parameters(), 1.0)
        optimizer.step()
    return (time.process_time() - start) / steps


def errors(found: Tensor, data: dict[str, Tensor]) -> str:
    """Medians in centimetres: distance, along the ray from the camera, across it."""
    camera = data["pose"].view(-1, 3, 4)[..., 3]
    ray = nn.functional.normalize(data["place"].float() - camera, dim=1)
    off = found - data["place"]
    along = (off * ray).sum(1, keepdim=True)
    medians = (x.norm(dim=1).median().item() * 100 for x in (off, along, off - along * ray))
    return "{:.1f} | {:.1f} | {:.1f}".format(*medians)


@torch.no_grad()
def judge(
    finder: Finder, data: dict[str, Tensor], pixels: Tensor, points: Tensor, mean: Tensor, spread: Tensor
) -> str:
    parts = zip(pixels.split(100), points.split(100), strict=True)
    return errors(torch.cat([finder(*part) for part in parts]) * spread + mean, data)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("outputs/space_ladder"), help="where the pictures are kept")
    parser.add_argument("--arms", default=",".join(ARMS), help="comma-separated")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=STEPS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    seen, beyond = (pictures(name, count, args.out / "probe" / f"{name}.npz") for name, count in PICTURES.items())
    known, judged = ({k: v[part] for k, v in seen.items()} for part in (slice(-VALIDATION), slice(-VALIDATION, None)))
    places = known["place"].float()
    mean, spread = places.mean(0), places.std(0)
    blind = errors(mean.expand(len(beyond["place"]), 3), beyond)
    print_machine(machine("cpu", "float32", args.seeds))
    print("| arm | seed | distance, cm | along | across | beyond: distance | along | across | a step, ms |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    print(f"| blind: the mean place | | | | | {blind} | |", flush=True)
    for arm in args.arms.split(","):
        pixels, points = views(known, arm)
        judges = [(data, *views(data, arm)) for data in (judged, beyond)]
        for seed in range(args.seeds):
            torch.manual_seed(seed)
            finder = Finder(arm)
            seconds = train(finder, pixels, points, (places - mean) / spread, args.steps)
            told = " | ".join(judge(finder, *given, mean, spread) for given in judges)
            print(f"| {ARMS[arm]} | {seed} | {told} | {1e3 * seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
