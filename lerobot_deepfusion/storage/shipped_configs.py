"""The train configs that come with the policy: in a wheel beside its modules, in a clone in `configs/policy`."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]


def shipped_configs() -> dict[str, Path]:
    """Files by name, such as `tiny`."""
    folders = (PACKAGE / "configs", PACKAGE.parent / "configs" / "policy")
    return {path.stem: path for folder in folders for path in sorted(folder.glob("*.yaml"))}
