"""A push to the Hub that fails without a loss: it says where the checkpoint is and how to push it later."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lerobot.configs.train import TrainPipelineConfig
from lerobot.utils.constants import CHECKPOINTS_DIR, LAST_CHECKPOINT_LINK, PRETRAINED_MODEL_DIR

from ..configuration_deepfusion import DeepFusionConfig
from .model_card import model_card

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
