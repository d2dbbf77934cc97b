"""After a crash or a full disk: the newest complete checkpoint of a run, and the command that resumes from it.

    deepfusion recover outputs/mine

Says of each newer checkpoint what is missing or damaged, and points the link `checkpoints/last` at the complete one.
Nothing is deleted.
"""

from __future__ import annotations

import json
import math
import os
import shlex
from collections.abc import Iterator
from pathlib import Path

from lerobot.utils.constants import (
    CHECKPOINTS_DIR,
    LAST_CHECKPOINT_LINK,
    OPTIMIZER_PARAM_GROUPS,
    OPTIMIZER_STATE,
    POLICY_POSTPROCESSOR_DEFAULT_NAME,
    POLICY_PREPROCESSOR_DEFAULT_NAME,
    PRETRAINED_MODEL_DIR,
    RNG_STATE,
    SCHEDULER_STATE,
    TRAINING_STATE_DIR,
    TRAINING_STEP,
)
from safetensors import SafetensorError, safe_open

STATE_FILES = (TRAINING_STEP, RNG_STATE, OPTIMIZER_STATE, OPTIMIZER_PARAM_GROUPS, SCHEDULER_STATE)


def fault(path: Path) -> str | None:
    """Why a file can't be read to its end; None for one that can."""
    try:
        if path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
        else:
            with safe_open(path, framework="np"):  # which compares the header's sizes with the file's
                pass
    except FileNotFoundError:
        return "is missing"
    except (OSError, ValueError, SafetensorError) as error:
        return f"is damaged: {error}"
    return None


def needed_files(checkpoint: Path) -> Iterator[Path]:
    """Every file that resuming reads, in about the order in which LeRobot writes them."""
    policy = checkpoint / PRETRAINED_MODEL_DIR
    adapter = any(policy.glob("adapter_*"))  # PEFT; its base is elsewhere
    weights = ("adapter_model.safetensors", "adapter_config.json") if adapter else ("model.safetensors",)
    for name in (*weights, "config.json", "train_config.json"):
        yield policy / name
    for name in (POLICY_PREPROCESSOR_DEFAULT_NAME, POLICY_POSTPROCESSOR_DEFAULT_NAME):
        pipeline = policy / f"{name}.json"
        yield pipeline
        if not fault(pipeline):
            for step in json.loads(pipeline.read_text(encoding="utf-8"))["steps"]:
                if "state_file" in step:
                    yield policy / step["state_file"]
    for name in STATE_FILES:
        yield checkpoint / TRAINING_STATE_DIR / name


def faults(checkpoint: Path) -> list[str]:
    """What keeps a run from resuming here; empty for a complete checkpoint."""
    found = ((path, fault(path)) for path in needed_files(checkpoint))
    return [f"{path.relative_to(checkpoint)} {why}" for path, why in found if why]


def newest_complete(output_dir: Path) -> tuple[Path | None, dict[Path, list[str]]]:
    """The newest complete checkpoint of a run, and what is wrong with each newer one.

    Raises:
        FileNotFoundError: if the folder has no checkpoints.
    """
    folder = output_dir / CHECKPOINTS_DIR
    steps = [path for path in folder.glob("*") if path.name.isdigit() and path.is_dir()]
    if not steps:
        raise FileNotFoundError(f"{folder} has no checkpoint; give the --output_dir of a run that has saved one")
    incomplete: dict[Path, list[str]] = {}
    for checkpoint in sorted(steps, key=lambda path: int(path.name), reverse=True):
        found = faults(checkpoint)
        if not found:
            return checkpoint, incomplete
        incomplete[checkpoint] = found
    return None, incomplete


def point_last(checkpoint: Path) -> None:
    """Point the link `last` at a checkpoint in one step, so that no crash can leave none.

    Raises:
        FileExistsError: if `last` is a folder of its own, as after a copy that follows links.
    """
    link = checkpoint.parent / LAST_CHECKPOINT_LINK
    if link.is_dir() and not link.is_symlink():
        raise FileExistsError(f"{link} is a folder and not a link; move it away and run this again")
    new = link.with_name(f".{LAST_CHECKPOINT_LINK}.{os.getpid()}")
    new.symlink_to(checkpoint.name)
    os.replace(new, link)


def finished(checkpoint: Path) -> bool:
    """Whether a complete checkpoint is of the last step that its run was to do."""
    config = json.loads((checkpoint / PRETRAINED_MODEL_DIR / "train_config.json").read_text(encoding="utf-8"))
    return int(checkpoint.name) >= config.get("steps", math.inf)


def resume_command(output_dir: Path) -> str:
    config = output_dir / CHECKPOINTS_DIR / LAST_CHECKPOINT_LINK / PRETRAINED_MODEL_DIR / "train_config.json"
    command = ["lerobot-train", f"--config_path={config}", "--resume=true"]
    written = json.loads(config.read_text(encoding="utf-8")).get("output_dir")
    if written is None or Path(written).resolve() != output_dir.resolve():  # the run was moved
        command.append(f"--output_dir={output_dir}")
    return shlex.join(command)
