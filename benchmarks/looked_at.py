"""Is the heat of `deepfusion look` on the things that matter? Counted by the simulator's own segmentation.

    python -m benchmarks.looked_at --policy outputs/demo/push/trained/checkpoints/last/pretrained_model

Of each chunk of some episodes of push-v3: how much of the heat lies on the hand, the puck and the goal's marker, and
how much of the picture they are. The control is a policy that was never trained: it has more than the share of pixels
there too, but hardly.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

import lerobot_policy_deepfusion  # noqa: F401  # registers the policy and its steps
from lerobot_deepfusion.looking.observations import act, load
from lerobot_deepfusion.looking.sight import Looker
from lerobot_deepfusion.sim.metaworld_fast import MetaworldFastEnv

CAMERA = "observation.image"
HAND = ("hand", "rightclaw", "rightpad", "leftclaw", "leftpad")  # bodies
PARTS = ("hand", "puck", "goal")


@dataclass
class Watcher(Looker):
    """Looks, and notes where things are in the picture: bool [H, W] by part, for each sight."""

    env: Any = None
    masks: list[dict[str, np.ndarray]] = field(default_factory=list)

    def __call__(self, batch: Mapping[str, Any]) -> Tensor:
        self.masks.append(where(self.env.envs[0].unwrapped))
        return super().__call__(batch)


def where(robot: Any) -> dict[str, np.ndarray]:
    """Pixels of each part in the camera's picture of now."""
    import mujoco  # decides then how it draws, which the simulator has set up

    model, [camera] = robot._env.model, robot.cameras
    quality = model.vis.quality
    smooth, quality.offsamples = quality.offsamples, 0  # else numbers of things are mixed at their edges
    # A new one each time: it draws into the OpenGL context that it made, and the picture's is another.
    with mujoco.Renderer(model, robot.observation_height, robot.observation_width) as renderer:
        renderer.enable_segmentation_rendering()
        renderer.update_scene(robot._env.data, camera)
        found = renderer.render()
    quality.offsamples = smooth
    found = np.flip(found, (0, 1)) if robot._upside_down(camera) else found
    numbers, kinds = found[..., 0], found[..., 1]
    geom, site = kinds == mujoco.mjtObj.mjOBJ_GEOM, kinds == mujoco.mjtObj.mjOBJ_SITE
    body = np.where(geom, model.geom_bodyid[np.where(geom, numbers, 0)], -1)
    return {
        "hand": np.isin(body, [model.body(name).id for name in HAND]),
        "puck": body == model.body("obj").id,
        "goal": site & (numbers == model.site("goal").id),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", required=True)
    parser.add_argument("--episodes", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1000)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    policy, before, after = load(args.policy)
    config = MetaworldFastEnv(task="push-v3")
    print(f"| episode | success | frames | heat / pixels: {' | '.join(PARTS)} | all | more than its share |")
    print(f"|{' --- |' * (len(PARTS) + 5)}")
    more: list[bool] = []
    times: list[float] = []
    for seed in range(args.seed, args.seed + args.episodes):
        [[env]] = [list(envs.values()) for envs in config.create_envs(1).values()]
        watcher = Watcher(policy, before, after, False, 10, 10**6, env=env)
        success = act(watcher, config, env, seed)
        env.close()
        shares = []
        for sight, masks in zip(watcher.sights, watcher.masks, strict=True):
            heat = sight.heat(CAMERA)
            heat = heat / heat.sum()
            parts = [masks[name] for name in PARTS]
            parts.append(np.logical_or.reduce(parts))
            shares.append([(heat[mask].sum(), mask.mean()) for mask in parts])
        found = np.array(shares)  # [frames, parts, 2]
        beyond = found[:, -1, 0] > found[:, -1, 1]
        cells = [f"{heat:.1%} / {pixels:.1%}" for heat, pixels in found.mean(0)]
        print(f"| {seed} | {success} | {len(found)} | {' | '.join(cells)} | {beyond.mean():.0%} |", flush=True)
        if success:
            more += beyond.tolist()
            times += [sight.moved["most"] / max(sight.moved["least"], 1e-9) for sight in watcher.sights]
    if more:
        print(f"\nsuccessful episodes: more than its share in {np.mean(more):.0%} of {len(more)} frames; the hottest")
        print(f"tenth of the cells moves the chunk {np.median(times):.0f} times as far as the coldest, in the median")


if __name__ == "__main__":
    main()
