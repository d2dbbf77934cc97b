"""The config of a checkpoint: read, or refused with the reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from draccus.utils import DecodingError, ParsingError
from lerobot.configs import PreTrainedConfig

from ..configuration_deepfusion import DeepFusionConfig

# Fields that decide which weights exist or what they mean: a checkpoint is loaded with its own.
ARCHITECTURE = (
    "vlm_config",
    "fusion",
    "fusion_layers",
    "action_expert_type",
    "action_attention",
    "expert_width_multiplier",
    "expert_num_layers",
    "time_conditioning",
    "image_token_pooling",
    "position_3d",
    "workspace_center",
    "objective",
    "relative_actions",
    "relative_exclude_joints",
    "max_state_dim",
    "max_action_dim",
)
# What LeRobot and draccus raise for a file that is no config: no JSON, no text, another structure, a wrong type.
UNREADABLE = (
    DecodingError,
    ParsingError,
    json.JSONDecodeError,
    UnicodeDecodeError,
    RecursionError,
    ArithmeticError,
    AttributeError,
    LookupError,
    TypeError,
)


def read_checkpoint_config(source: str | Path, **hub: Any) -> DeepFusionConfig:
    """Config of a checkpoint.

    Args:
        source: directory or Hub id.
        hub: `revision`, `token` and the like.

    Raises:
        ValueError: if it is of another policy type, or a field is unknown, wrong or missing.
        FileNotFoundError: if there is no `config.json`.
    """
    try:
        saved = PreTrainedConfig.from_pretrained(source, **hub)
    except UNREADABLE as error:
        cause = f"{error} {error.__cause__ or ''}".strip()
        raise ValueError(
            f"config.json of {source} is not one that this version reads: {cause}. It must be as the policy "
            "saved it; a newer version of lerobot_policy_deepfusion may have written it"
        ) from error
    if not isinstance(saved, DeepFusionConfig):
        raise ValueError(f"{source} is a checkpoint of a {saved.type!r} policy, not of 'deepfusion'")
    if saved.vlm_config is None:
        raise ValueError(f"config.json of {source} has no vlm_config, without which the policy can't be built")
    return saved


def require_same_architecture(
    config: DeepFusionConfig, saved: DeepFusionConfig, source: str | Path, revision: Any = None, train: bool = False
) -> None:
    """
    Args:
        config: to be used; to train, one that sees in 3D may start from a checkpoint that sees flat.
        saved: that of the checkpoint.
        source: where that is.
        revision: of it, if it is on the Hub and one was asked for.
        train: whether it is trained on.

    Raises:
        ValueError: naming the fields in which the two differ.
    """
    different = [name for name in ARCHITECTURE if getattr(config, name) != getattr(saved, name)]
    if (
        train and saved.position_3d == "none" and config.position_3d != "cloud"
    ):  # which has no use for the pictures' tower
        different = [name for name in different if name not in ("position_3d", "workspace_center")]
    if different:
        found = ", ".join(
            name
            if name == "vlm_config"
            else f"{name}={getattr(config, name)!r} (checkpoint: {getattr(saved, name)!r})"
            for name in different
        )
        raise ValueError(
            f"{where(source, revision)} has another architecture than the config given: {found}; use "
            f"--policy.path={source} to take the checkpoint's own config. {of_another_revision(revision)}"
        )


def where(source: object, revision: Any) -> str:
    """A checkpoint's place, for a message."""
    return f"{source} at revision {str(revision)!r}" if revision else str(source)


def of_another_revision(revision: Any) -> str:
    """Why a config may not be that of the weights, for a message."""
    weights = f"revision {str(revision)!r}" if revision else "another revision"
    return (
        f"If the weights are of {weights} and the config of 'main', where lerobot-eval reads it whatever "
        "--policy.pretrained_revision says, download that revision (hf download ... --revision=...) and give its "
        "folder as --policy.path"
    )
