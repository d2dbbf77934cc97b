"""A policy that sees in 3D, from the simulator's demonstrations by LeRobot's own commands and back into it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

pytest.importorskip("metaworld")

from lerobot_deepfusion.modeling_deepfusion import DeepFusionPolicy
from tests.commands import TINY_YAML, run


def look(found: Path) -> None:
    """Write down the points that the policy is given first."""
    from lerobot_deepfusion import modeling_deepfusion
    from lerobot_deepfusion.inputs.points import stack_points

    def noted(*arguments: object) -> torch.Tensor | None:
        points = stack_points(*arguments)
        if not found.exists():
            torch.save(points, found)
        return points

    modeling_deepfusion.stack_points = noted


@pytest.mark.slow
def test_demonstrations_training_evaluation(tmp_path: Path) -> None:
    """Cameras that stand elsewhere in each episode; the table is a plane at one height in the robot's frame."""
    poses = ["--env.depth=true", "--env.goal_markers=false", "--env.observation_size=64"]
    demos = [
        "--task=push-v3",
        "--episodes=2",
        "--size=64",
        "--depth",
        "--camera-poses=wide_train",
        "--no-goal-markers",
    ]
    run("deepfusion", "demos", *demos, f"--root={tmp_path / 'data'}")
    data = ["--dataset.repo_id=local/push", f"--dataset.root={tmp_path / 'data'}", "--num_workers=0"]
    train = [f"--config_path={TINY_YAML}", *data, "--policy.position_3d=world", "--steps=1", "--batch_size=8"]
    run("lerobot-train", *train, f"--output_dir={tmp_path / 'train'}", inside=partial(look, tmp_path / "trained.pt"))
    saved = tmp_path / "train/checkpoints/last/pretrained_model"
    assert DeepFusionPolicy.from_pretrained(saved).config.depth_cameras == ["observation.image"]
    evaluation = ["--env.type=metaworld_fast", "--env.task=push-v3", *poses, "--env.camera_poses=wide_held_out"]
    evaluation += ["--eval.n_episodes=1", "--eval.batch_size=1", "--env.episode_length=4", "--policy.device=cpu"]
    options = [f"--policy.path={saved}", *evaluation, f"--output_dir={tmp_path / 'eval'}"]
    run("lerobot-eval", *options, inside=partial(look, tmp_path / "evaluated.pt"))
    for name in ("trained.pt", "evaluated.pt"):
        x, y, z, share = torch.load(tmp_path / name).flatten(0, 1).movedim(1, 0)
        measured = share > 0.99
        table = measured & (x.abs() < 0.3) & ((y - 0.6).abs() < 0.2) & (z.abs() < 0.05)
        assert table.sum() > 0.02 * measured.numel()
        assert z[table].std() < 0.02  # metres: the table, its puck and what else lies on it
