"""What comes with the package: train configs, and a trained policy."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
TRAINED_TASKS = "tasks.json"  # beside a policy: the tasks that it was trained on, with what it scored


def shipped_configs() -> dict[str, Path]:
    """Files by name, such as `tiny`: in a wheel beside the modules, in a clone in `configs/policy`."""
    folders = (PACKAGE / "configs", PACKAGE.parent / "configs" / "policy")
    return {path.stem: path for folder in folders for path in sorted(folder.glob("*.yaml"))}


def shipped_policies() -> dict[str, Path]:
    """Checkpoints by name, such as `mt10`."""
    return {path.parent.name: path.parent for path in sorted((PACKAGE / "pretrained").glob("*/config.json"))}
