"""What a policy is shown: frames of a data set, or an episode of a simulator, through LeRobot's own ways."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import draccus
import torch
from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.envs.configs import EnvConfig
from lerobot.envs.factory import make_env, make_env_pre_post_processors
from lerobot.envs.utils import close_envs
from lerobot.policies.factory import make_pre_post_processors
from lerobot.scripts.lerobot_eval import rollout
from torch.utils.data import default_collate

from ..modeling_deepfusion import DeepFusionPolicy
from .sight import Looker


def load(checkpoint: str) -> tuple[DeepFusionPolicy, Any, Any]:
    """A policy, ready to act, and its two pipelines. Its step is not compiled, since batches are of many sizes.

    Raises:
        ValueError: for adapters, which stand in a checkpoint of their own.
    """
    if (Path(checkpoint) / "adapter_config.json").is_file():
        raise ValueError(
            f"{checkpoint} has adapters; `deepfusion merge {checkpoint} <folder>` adds them to their base"
        )
    policy = DeepFusionPolicy.from_pretrained(checkpoint)
    policy._denoise = policy.model.denoise
    device = {"device_processor": {"device": str(policy.config.device)}}
    before, after = make_pre_post_processors(policy.config, pretrained_path=checkpoint, preprocessor_overrides=device)
    return policy.eval(), before, after


def known_data(root: Path, repo_id: str, episodes: Sequence[int]) -> LeRobotDatasetMetadata:
    """What a data set says of itself.

    Raises:
        ValueError: if it has not all of the episodes.
    """
    meta = LeRobotDatasetMetadata(repo_id, root=root)
    if unknown := [episode for episode in episodes if not 0 <= episode < meta.total_episodes]:
        raise ValueError(f"episodes {unknown}: {root} has the episodes 0 to {meta.total_episodes - 1}")
    return meta


def look_at_data(looker: Looker, root: Path, repo_id: str, episode: int, count: int) -> list[int]:
    """Show frames of an episode, evenly spread; returns which.

    Raises:
        ValueError: for an episode that is not there.
    """
    known_data(root, repo_id, [episode])
    data = LeRobotDataset(repo_id, root=root, episodes=[episode])
    frames = torch.linspace(0, len(data) - 1, min(count, len(data))).round().long().tolist()
    for frame in frames:
        looker(looker.prepare(default_collate([data[frame]])))
    return frames


def env_config(fields: dict[str, Any]) -> EnvConfig:
    """A LeRobot environment config from its fields, `type` among them.

    Raises:
        ValueError: for an environment that is not known, or a field that it has not.
    """
    try:
        return draccus.decode(EnvConfig, fields)
    except draccus.utils.ParsingError as error:
        raise ValueError(str(error.__cause__ or error)) from error


def look_at_episode(looker: Looker, config: EnvConfig, seed: int) -> tuple[list[int], bool]:
    """Let the policy act in a simulator; returns the steps it looked at, and whether it succeeded.

    Args:
        looker: in whose place the policy predicts.
        config: of the simulator.
        seed: of the episode.

    Raises:
        ValueError: for several tasks.
    """
    envs = make_env(config, n_envs=1)
    tasks = [env for by_index in envs.values() for env in by_index.values()]
    try:
        if len(tasks) != 1:
            raise ValueError(f"--env.task={config.task}: {len(tasks)} tasks; look at one at a time")
        success = act(looker, config, tasks[0], seed)
    finally:
        close_envs(envs)
    return [count * looker.policy.config.n_action_steps for count in range(len(looker.sights))], success


def act(looker: Looker, config: EnvConfig, env: Any, seed: int) -> bool:
    """One episode by LeRobot's own loop; whether it succeeded.

    Args:
        looker: in whose place the policy predicts.
        config: of the simulator.
        env: it, a vector environment of one.
        seed: of the episode.
    """
    policy = looker.policy
    env_before, env_after = make_env_pre_post_processors(env_cfg=config, policy_cfg=policy.config)
    policy.predict_action_chunk = lambda batch, **_: looker(batch)  # type: ignore[method-assign]
    try:
        done = rollout(env, policy, env_before, env_after, looker.prepare, looker.after, seeds=[seed])
    finally:
        del policy.predict_action_chunk
    return bool(done["success"].any())
