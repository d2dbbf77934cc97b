"""The card of a policy: licence, what it is, what it was trained with and on, commands and results.

`lerobot-train --policy.push_to_hub=true` writes one and pushes it. An evaluation comes later: `write_card` writes the
card of a saved checkpoint with its results.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import fields
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from lerobot.configs.train import TrainPipelineConfig
from lerobot.envs.configs import EnvConfig
from lerobot.utils.constants import TRAINING_STATE_DIR

from ..configuration_deepfusion import DeepFusionConfig
from ..llava.published import LICENCES
from ..llava.tiny import TINY
from .card_pictures import CardPicture, take_look, take_open_loop
from .checkpoint_config import read_checkpoint_config

if TYPE_CHECKING:
    from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata

PACKAGES = ("lerobot_policy_deepfusion", "lerobot", "transformers", "torch")


def model_card(
    config: DeepFusionConfig,
    train: TrainPipelineConfig | None = None,
    dataset: LeRobotDatasetMetadata | None = None,
    step: int | None = None,
    evaluation: dict[str, Any] | None = None,
    pictures: Sequence[CardPicture] = (),
) -> ModelCard:
    """The card of a policy; what is not given is left out of it.

    Args:
        config: of the policy; its `repo_id` goes into the commands.
        train: what it was trained with.
        dataset: what it was trained on.
        step: training steps done, if not all of `train.steps`.
        evaluation: what `lerobot-eval` writes to `eval_info.json`.
        pictures: which lie beside the card.
    """
    repo_id = config.repo_id or "<you/policy>"
    base = next((path for path in (config.pretrained_path, config.vlm_path) if is_hub_id(path)), None)
    data = ModelCardData(
        license=config.license or weights_licence(config.vlm_path),
        library_name="lerobot",
        pipeline_tag="robotics",
        base_model=None if base is None else str(base),
        datasets=None if train is None else [train.dataset.repo_id],
        tags=sorted({"robotics", "lerobot", "deepfusion", "vision-language-action", *(config.tags or [])}),
    )
    return ModelCard.from_template(
        data,
        template_str=files(__package__).joinpath("model_card.md").read_text(encoding="utf-8"),
        repo_id=repo_id,
        config=config,
        base=base,
        **describe_vlm(config.vlm_path),
        frozen=what_is_frozen(config),
        train=train,
        learning_rate=train.optimizer.lr if train and train.optimizer else config.optimizer_lr,
        step=step,
        dataset=dataset,
        tasks=[str(task) for task in dataset.tasks.index if task] if dataset else [],
        versions=", ".join(f"{name} {version(name)}" for name in PACKAGES),
        environment=environment_options(train.env if train else None),
        rename_map=shlex.quote(json.dumps(train.rename_map)) if train and train.rename_map else "",
        evaluation=evaluation,
        pictures=pictures,
    )


def is_hub_id(path: str | Path | None) -> bool:
    """Whether a model's path is `owner/name` on the Hub and no folder here."""
    if path is None or "/" not in str(path) or Path(path).exists():
        return False
    try:
        validate_repo_id(str(path))
    except HFValidationError:
        return False
    return True


def weights_licence(vlm_path: str) -> str:
    """The Hub's id of the licence that weights trained from this VLM are under."""
    return "apache-2.0" if vlm_path == TINY else LICENCES.get(vlm_path, "other")


def describe_vlm(vlm_path: str) -> dict[str, str]:
    """`vlm` and `vlm_licence` in Markdown."""
    if vlm_path == TINY:
        return {"vlm": "`tiny`, a small LLaVA trained from scratch with the policy", "vlm_licence": "none of its own"}
    vlm = f"[{vlm_path}](https://huggingface.co/{vlm_path})" if is_hub_id(vlm_path) else f"`{vlm_path}`"
    return {"vlm": vlm, "vlm_licence": f"`{LICENCES[vlm_path]}`" if vlm_path in LICENCES else f"see {vlm}"}


def what_is_frozen(config: DeepFusionConfig) -> str:
    """What training left as it was, in words."""
    if config.use_peft:
        return "all but the adapters, and what was trained whole beside them: the expert, unless told otherwise"
    if not config.trains_vlm:
        return "the whole VLM"
    return "the vision tower" if config.freeze_vision_encoder else "nothing"


def environment_options(env: EnvConfig | None) -> str:
    """The `--env.` options of an environment: its type, its task, and what differs from its defaults."""
    if env is None:
        return "--env.type=<environment> --env.task=<task>"
    options = [("type", env.type)]
    for field in fields(env):
        value = getattr(env, field.name)
        if isinstance(value, str | int | float) and (field.name == "task" or value != field.default):
            options.append((field.name, value))
    return " ".join(f"--env.{name}={shlex.quote(str(value))}" for name, value in options)


def write_card(
    checkpoint: Path,
    repo_id: str | None = None,
    eval_info: Path | None = None,
    look: Path | None = None,
    open_loop: Path | None = None,
) -> Path:
    """Write `README.md` into a saved checkpoint, and its pictures beside it.

    Args:
        checkpoint: folder with the policy's files (`pretrained_model`).
        repo_id: where it is, or will be, on the Hub; its config's own if not given.
        eval_info: results of `lerobot-eval`. It does not say which policy they are of: the caller does.
        look, open_loop: folders that `deepfusion look` and `deepfusion open-loop` wrote for it.

    Raises:
        FileNotFoundError: if `checkpoint` has no `config.json`, or one of the others is not there.
        ValueError: if it, or a folder, is of another policy, or `eval_info` is not what `lerobot-eval` writes.
    """
    # Here, since acting has no use for what they import.
    from lerobot.common.train_utils import load_training_step
    from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata

    if not (checkpoint / "config.json").is_file():
        raise FileNotFoundError(f"{checkpoint} has no config.json; give a checkpoint's folder `pretrained_model`")
    config = read_checkpoint_config(checkpoint)
    config.repo_id = repo_id or config.repo_id
    evaluation = None if eval_info is None else json.loads(eval_info.read_text())
    if evaluation is not None and not {"per_group", "overall"} <= set(evaluation):
        raise ValueError(f"{eval_info} has {sorted(evaluation)}, not the 'per_group' and 'overall' of lerobot-eval")
    train, dataset, step = None, None, None
    if (checkpoint / "train_config.json").is_file():
        train = TrainPipelineConfig.from_pretrained(checkpoint)
        if train.dataset.root and Path(train.dataset.root).is_dir():
            dataset = LeRobotDatasetMetadata(train.dataset.repo_id, root=train.dataset.root)
    state = checkpoint.resolve().parent / TRAINING_STATE_DIR
    if state.is_dir():
        step = load_training_step(state)
    taken = [(take_look, look), (take_open_loop, open_loop)]
    pictures = [take(checkpoint, folder) for take, folder in taken if folder is not None]
    path = checkpoint / "README.md"
    model_card(config, train, dataset, step, evaluation, pictures).save(path)
    return path
