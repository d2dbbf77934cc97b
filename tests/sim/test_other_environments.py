"""LeRobot's own environments: a policy is built from each one's features, and acts in it through `lerobot-eval`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.envs.configs import AlohaEnv, EnvConfig, LiberoEnv, MetaworldEnv, PushtEnv
from lerobot.policies.factory import make_policy
from lerobot.utils.constants import ACTION, OBS_IMAGES, OBS_STATE

from lerobot_deepfusion.processor_deepfusion import make_deepfusion_pre_post_processors
from tests.commands import run
from tests.small_data import config


def short_metaworld() -> None:
    """The stock one has no option for it: episodes of four steps."""
    from lerobot.envs.metaworld import MetaworldEnv as Simulator

    original = Simulator.__init__

    def made(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        self._max_episode_steps = 4

    Simulator.__init__ = made  # type: ignore[method-assign]


def save(environment: EnvConfig, folder: Path) -> Any:
    """A policy for it with random weights, and what it takes."""
    torch.manual_seed(0)
    made = config(n_action_steps=2, tokenizer_max_length=96)
    if environment.type == "libero":
        # Its features are what robosuite says, which LeRobot's step makes a state of eight numbers of: as the data
        # set `lerobot/libero` has it, from which a policy for it is built.
        cameras = [f"{OBS_IMAGES}.image", f"{OBS_IMAGES}.image2"]
        made.input_features = {camera: PolicyFeature(FeatureType.VISUAL, (3, 256, 256)) for camera in cameras}
        made.input_features[OBS_STATE] = PolicyFeature(FeatureType.STATE, (8,))
    policy = make_policy(made, env_cfg=environment)
    shapes = {OBS_STATE: policy.config.robot_state_feature.shape, ACTION: policy.config.action_feature.shape}
    stats = {key: {"mean": torch.zeros(shape), "std": torch.ones(shape)} for key, shape in shapes.items()}
    for part in (policy, *make_deepfusion_pre_post_processors(policy.config, stats)):
        part.save_pretrained(folder)
    return policy.config


@pytest.mark.slow
@pytest.mark.parametrize(
    ("package", "environment", "options", "state", "actions"),
    [
        ("gym_pusht", PushtEnv(), ["--env.episode_length=4"], 2, 2),
        ("metaworld", MetaworldEnv(task="push-v3"), ["--env.task=push-v3"], 4, 4),
        ("gym_aloha", AlohaEnv(), ["--env.task=AlohaTransferCube-v0", "--env.episode_length=4"], 14, 14),
        ("libero", LiberoEnv(), ["--env.task=libero_spatial", "--env.task_ids=[0]", "--env.episode_length=4"], 8, 7),
    ],
    ids=["pusht", "metaworld", "aloha", "libero"],
)
def test_a_policy_for_it_acts(
    package: str, environment: EnvConfig, options: list[str], state: int, actions: int, tmp_path: Path
) -> None:
    pytest.importorskip(package)
    made = save(environment, tmp_path / "policy")
    assert (made.robot_state_feature.shape, made.action_feature.shape) == ((state,), (actions,))
    command = ["lerobot-eval", f"--policy.path={tmp_path}/policy", f"--env.type={environment.type}", *options]
    command += ["--eval.n_episodes=1", "--eval.batch_size=1", f"--output_dir={tmp_path}/out"]
    run(*command, inside=short_metaworld if package == "metaworld" else None)
    found = json.loads((tmp_path / "out/eval_info.json").read_text())["overall"]
    assert found["n_episodes"] == 1
    assert found["pc_success"] == 0
