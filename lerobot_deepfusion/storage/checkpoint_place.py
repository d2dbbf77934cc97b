"""Where a checkpoint is: a folder that is there, or one commit of a repository on the Hub."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from accelerate.utils.constants import FSDP_MODEL_NAME
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError
from lerobot.configs import PreTrainedConfig
from lerobot.configs.policies import CONFIG_NAME

from ..llava.place import check_place

COMMIT = re.compile(r"[0-9a-f]{40}")


def pinned(source: str | Path, hub: dict[str, Any]) -> dict[str, Any]:
    """The same arguments with the commit that a branch or tag names now: it may name another between two reads.

    Args:
        source: directory or Hub id.
        hub: `revision`, `token` and the like.

    Raises:
        FileNotFoundError: if it can only be a directory, and isn't there.
    """
    check_place("the checkpoint", str(source))
    if Path(source).is_dir():
        return hub
    try:
        file = hf_hub_download(str(source), CONFIG_NAME, **hub)
    except (HfHubHTTPError, LocalEntryNotFoundError):  # which LeRobot meets next, and words
        return hub
    commit = Path(file).parent.name
    return {**hub, "revision": commit} if COMMIT.fullmatch(commit) else hub


def file_of(source: str | Path, name: str, hub: dict[str, Any]) -> Path | None:
    """A file of a checkpoint, downloaded if it is one of the Hub; None where it has none of that name."""
    if Path(source).is_dir():
        return Path(source) / name if (Path(source) / name).is_file() else None
    try:
        return Path(hf_hub_download(str(source), name, **hub))
    except EntryNotFoundError:
        return None


def has_shards(source: str | Path | None) -> bool:
    """Whether a checkpoint's weights are there in shards, which LeRobot after 0.6.1 loads when the policy is
    distributed.
    """
    return source is not None and (Path(source) / f"{FSDP_MODEL_NAME}_0").is_dir()


def remember_commit(config: PreTrainedConfig, source: str | Path, asked: str | None, commit: str | None) -> None:
    """Of which commit a policy is, for its processors, which LeRobot asks for next."""
    vars(config)["_commit"] = str(source), asked, commit


def commit_of(config: PreTrainedConfig, source: str | Path, asked: str | None) -> str | None:
    """The commit that a policy was loaded from, if it was from there; else the revision that is asked for."""
    loaded, revision, commit = vars(config).get("_commit", (None, None, None))
    return commit if loaded == str(source) and commit and asked in (None, revision, commit) else asked
