"""What a checkpoint's processor files hold: the tokenizer, and statistics that its steps will apply."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lerobot.configs import NormalizationMode
from lerobot.processor import NormalizerProcessorStep, UnnormalizerProcessorStep
from lerobot.utils.constants import ACTION, OBS_STATE
from tokenizers import Tokenizer
from torch import Tensor

from ..configuration_deepfusion import DeepFusionConfig
from ..inputs.dataset_facts import DatasetFacts
from ..inputs.statistics_checks import STATISTICS, check_statistics, mode_of, warn_of_statistics
from ..inputs.task_checks import check_tasks
from .checkpoint_place import file_of
from .processor_files import PROCESSOR_FILES
from .safetensors_files import stored_tensors

PROMPT, NORMALIZE, UNNORMALIZE = "deepfusion_prompt_processor", "normalizer_processor", "unnormalizer_processor"
MOST_EPS = 1e-3  # LeRobot's is 1e-8
# What LeRobot's steps raise for a config whose fields have a wrong type.
CANNOT_BUILD = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


@dataclass
class StoredStep:
    """One step of a processor file.

    Attributes:
        file: that names it.
        config: as it is written there.
        state: its tensors.
    """

    file: str
    config: dict[str, Any]
    state: dict[str, Tensor]


def read_step(source: str | Path, file: str, name: str, hub: dict[str, Any]) -> StoredStep | None:
    """A step by its registered name; None where the checkpoint has no such file or step.

    Args:
        source: directory or Hub id, which `check_checkpoint_files` found to be safe.
        file: `policy_preprocessor.json` or `policy_postprocessor.json`.
        name: of the step.
        hub: `revision`, `token` and the like.
    """
    path = file_of(source, file, hub)
    if path is None:
        return None
    for step in json.loads(path.read_bytes())["steps"]:
        if step.get("registry_name") == name:
            state = file_of(source, step["state_file"], hub) if "state_file" in step else None
            stored = {} if state is None else stored_tensors([state])
            return StoredStep(file, step.get("config", {}), {key: tensor[...] for key, tensor in stored.items()})
    return None


def check_stored_statistics(config: DeepFusionConfig, source: str | Path, hub: dict[str, Any]) -> None:
    """For acting: what the loaded steps will really do to the state and to the actions.

    Raises:
        ValueError: if a step is missing that the config asks for, would not be applied, is of another mode, or has
            statistics that blow values up; or if actions are scaled back by other numbers than they were trained by.
    """
    before, after = (
        read_step(source, file, name, hub)
        for file, name in zip(PROCESSOR_FILES, (NORMALIZE, UNNORMALIZE), strict=True)
    )
    normalised = [key for key in (OBS_STATE, ACTION) if mode_of(config, key) != NormalizationMode.IDENTITY]
    stats: dict[str, dict[str, Any]] = {}
    if before is not None:
        stats = _applied(NormalizerProcessorStep, before, normalised, config, source)
        try:
            warn_of_statistics(check_statistics(config, stats))
        except ValueError as error:
            raise ValueError(f"{before.file} of {source} holds statistics that can't be used: {error}") from error
    if after is not None:
        actions = [key for key in normalised if key == ACTION]
        back = _applied(UnnormalizerProcessorStep, after, actions, config, source)
    if before is not None and after is not None:
        for name in STATISTICS.get(mode_of(config, ACTION), ()):
            one, other = (torch.as_tensor(s.get(ACTION, {}).get(name, torch.nan)).flatten() for s in (stats, back))
            if not torch.equal(one, other):
                raise ValueError(
                    f"{after.file} of {source} has for '{name}' of {ACTION} {other.tolist()}, and {before.file} has "
                    f"{one.tolist()}: actions would not be scaled back as they were trained. Take both files of one "
                    "checkpoint"
                )


def _applied(
    kind: type, stored: StoredStep, keys: list[str], config: DeepFusionConfig, source: object
) -> dict[str, dict[str, Any]]:
    """The statistics of a step, if it will apply them to each of the keys."""
    try:
        step = kind(**stored.config)
        step.load_state_dict(stored.state)
        reasons = {key: _why_not(step, key, config) for key in keys}
    except CANNOT_BUILD as error:
        raise ValueError(f"{stored.file} of {source} can't be built: {type(error).__name__}: {error}") from error
    for key, why in reasons.items():
        if why:
            raise ValueError(
                f"{stored.file} of {source} would not normalise {key} by {mode_of(config, key).value} as config.json "
                f"says: {why}. Take the files of one checkpoint as they were saved"
            )
    return step.stats


def _why_not(step: Any, key: str, config: DeepFusionConfig) -> str | None:
    """Why LeRobot's step would leave a feature as it is, or do something else to it."""
    kind = {**(config.input_features or {}), **(config.output_features or {})}[key].type
    mode = NormalizationMode(step.norm_map.get(kind, NormalizationMode.IDENTITY))
    if key != ACTION:  # actions are normalised whatever is listed
        if key not in step.features or step.features[key].type != kind:
            return f"its features are {sorted(step.features)}"
        listed = step.normalize_observation_keys
        if listed is not None and key not in listed:
            return f"it normalises {sorted(listed)} only"
    if mode != mode_of(config, key):
        return f"its mode for it is {mode.value}"
    if key not in step._tensor_stats:
        return f"it has no statistics for it, only for {sorted(step._tensor_stats)}"
    return None if 0 < step.eps <= MOST_EPS else f"its eps is {step.eps}"


def check_tasks_of(meta: Any, config: DeepFusionConfig, source: str | Path, hub: dict[str, Any]) -> None:
    """For training on: a data set's task texts, as the checkpoint's own prompts.

    Raises:
        ValueError: see `check_tasks`.
    """
    step = read_step(source, PROCESSOR_FILES[0], PROMPT, hub)
    if step is None or "tokenizer_json" not in step.state:
        return
    try:
        tokenizer = Tokenizer.from_str(bytes(step.state["tokenizer_json"].tolist()).decode())
        prompt, token = step.config["prompt"], step.config["image_token"]
    except Exception:  # what is wrong with the step, it says itself when LeRobot builds it next
        return
    check_tasks(DatasetFacts(meta).tasks(), prompt, token, tokenizer, config.tokenizer_max_length)
