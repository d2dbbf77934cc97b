"""A push to the Hub that fails without a loss: it says where the checkpoint is and how to push it later.

LeRobot 0.6.1 has the policy push itself. Later ones have a function of their own that pushes any policy, with a card
of their own; `watch_publishing` puts ours into it.
"""

from __future__ import annotations

import functools
import logging
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lerobot.configs.train import TrainPipelineConfig
from lerobot.utils.constants import CHECKPOINTS_DIR, LAST_CHECKPOINT_LINK, PRETRAINED_MODEL_DIR

from ..configuration_deepfusion import DeepFusionConfig
from .model_card import model_card
from .replaced import replace_everywhere

if TYPE_CHECKING:
    from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata

logger = logging.getLogger(__name__)


def upload_command(repo_id: str | None, checkpoint: Path, private: bool | None = None) -> str:
    """The shell command that pushes a saved checkpoint."""
    return f"hf upload{' --private' if private else ''} {repo_id} {shlex.quote(str(checkpoint))}"


@contextmanager
def safe_push(
    config: DeepFusionConfig, train: TrainPipelineConfig, dataset: LeRobotDatasetMetadata | None
) -> Iterator[None]:
    """Around a push at the end of training: a failure names its cause, the checkpoint and how to push it later.

    Raises:
        RuntimeError: in place of whatever stopped the push.
    """
    output = Path(train.output_dir or ".").resolve()
    checkpoint = output / CHECKPOINTS_DIR / LAST_CHECKPOINT_LINK / PRETRAINED_MODEL_DIR
    averaged = checkpoint.with_name(f"{PRETRAINED_MODEL_DIR}_ema")
    if str(config.repo_id).endswith("-ema") and averaged.is_dir():  # LeRobot's name for the repository of those
        checkpoint = averaged
    command = upload_command(config.repo_id, checkpoint, config.private)
    # LeRobot pushes the processors after the policy, on its own: this line is there if that fails.
    logger.info(f"Pushing policy and processors to {config.repo_id}; should it stop half way: {command}")
    try:
        yield
    except Exception as error:
        if not train.save_checkpoint:
            raise RuntimeError(
                f"the push to {config.repo_id} failed, and save_checkpoint=false left nothing to push later: {error}"
            ) from error
        model_card(config, train, dataset).save(checkpoint / "README.md")
        status = getattr(getattr(error, "response", None), "status_code", None)
        login = " after `hf auth login`" if status in (401, 403) else ""
        raise RuntimeError(
            f"the push to {config.repo_id} failed: {error}\n"
            f"Nothing is lost. The trained policy is in {checkpoint}, with its card. Push it{login} with\n"
            f"    {command}"
        ) from error


def watch_publishing() -> None:
    """Put our card, and what a failure says, into LeRobot's publisher, if it is in use and has one (not 0.6.1)."""
    module: Any = sys.modules.get("lerobot.common.train_utils")
    if not hasattr(module, "publish_trained_model"):
        return
    replace_everywhere(module, "publish_trained_model", _publish)
    replace_everywhere(module, "generate_model_card", _card)


def _publish(original: Any) -> Any:
    @functools.wraps(original)
    def publish(cfg: Any, model: Any, *args: Any, **kwargs: Any) -> None:
        if not isinstance(model.config, DeepFusionConfig):
            return original(cfg, model, *args, **kwargs)
        dataset = kwargs.get("dataset_meta", args[2] if len(args) > 2 else None)
        with safe_push(model.config, cfg, dataset):
            original(cfg, model, *args, **kwargs)

    return publish


def _card(original: Any) -> Any:
    @functools.wraps(original)
    def card(model_cfg: Any, cfg: Any = None, dataset_meta: Any = None) -> Any:
        if isinstance(model_cfg, DeepFusionConfig):
            return model_card(model_cfg, cfg, dataset_meta)
        return original(model_cfg, cfg, dataset_meta)

    return card
