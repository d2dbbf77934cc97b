"""A pre-processed batch in the shapes that the network takes, or what is wrong with it.

Axis letters: B batch, L tokens of the text, T actions of a chunk, A action dim, P state dim.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lerobot.utils.constants import ACTION, OBS_LANGUAGE_ATTENTION_MASK, OBS_LANGUAGE_TOKENS, OBS_STATE
from torch import Tensor

from .batch_checks import check_action, check_observation, check_pictures

PAD = "action_is_pad"


def fit_observation(config: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
    """State, pictures and prompt of B observations.

    LeRobot reads a column of shape (1,) as a number, so that a state of one dimension comes as [B]; and one text may
    stand for all observations.

    Raises:
        ValueError: naming the key, its shape and what was expected.
    """
    batch = dict(batch)
    cameras = [key for key in config.cameras if isinstance(batch.get(key), Tensor)]
    size = len(batch[cameras[0]]) if cameras and batch[cameras[0]].ndim else None
    state = batch.get(OBS_STATE)
    if isinstance(state, Tensor):
        if config.robot_state_feature.shape[0] == 1 and state.numel() == (size or state.numel()):
            state = state.reshape(-1, 1)
        batch[OBS_STATE] = state.float()
    check_observation(config, batch)
    check_pictures({key: batch[key] for key in cameras}, batch)
    size = len(batch[OBS_STATE])
    for key in cameras:
        if len(batch[key]) != size:
            raise ValueError(
                f"{key} has {len(batch[key])} pictures and {OBS_STATE} {size} rows; expected as many of each"
            )
    return {**batch, **_prompts(batch, size)}


def _prompts(batch: Mapping[str, Any], size: int) -> dict[str, Tensor]:
    """Tokens [B, L] and which of them count."""
    found = {key: batch.get(key) for key in (OBS_LANGUAGE_TOKENS, OBS_LANGUAGE_ATTENTION_MASK)}
    for key, value in found.items():
        if not isinstance(value, Tensor) or value.ndim != 2:
            raise ValueError(
                f"{key} is {'missing' if value is None else 'no tensor [batch, tokens]'}: the pre-processor makes it "
                "of 'task'. Pass the batch through it first (make_pre_post_processors)"
            )
        if len(value) not in (1, size):
            raise ValueError(
                f"'task' has {len(value)} texts for {size} observations; expected one for each, or one for all"
            )
    return {key: value.expand(size, -1) for key, value in found.items() if value is not None}


def fit_targets(config: Any, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Target chunks [B, T, A] of a batch, and which of their actions count, bool [B, T].

    Raises:
        ValueError: naming the key, its shape and what was expected.
    """
    action, is_pad = batch.get(ACTION), batch.get(PAD)
    if not isinstance(action, Tensor):
        raise ValueError(f"{ACTION} is {'missing' if action is None else type(action)}; training needs chunks of it")
    if config.action_feature.shape[0] == 1 and action.ndim == 2 and action.shape[1] == config.chunk_size:
        action = action[..., None]
    check_action(config, action)
    size = len(batch[OBS_STATE])
    if len(action) != size:
        raise ValueError(f"{ACTION} has {len(action)} chunks and {OBS_STATE} {size} rows; expected as many of each")
    if is_pad is None:
        is_pad = torch.zeros(action.shape[:2], dtype=torch.bool, device=action.device)
    if is_pad.shape != action.shape[:2]:
        raise ValueError(f"{PAD} has the shape {tuple(is_pad.shape)}; expected {tuple(action.shape[:2])}")
    return action.float(), ~is_pad.bool()


def fit_noise(noise: Tensor, shape: tuple[int, ...]) -> Tensor:
    """
    Raises:
        ValueError: if it has another shape than the chunk.
    """
    if tuple(noise.shape) != tuple(shape):
        raise ValueError(f"noise has the shape {tuple(noise.shape)}; expected {tuple(shape)}, that of the chunk")
    return noise
