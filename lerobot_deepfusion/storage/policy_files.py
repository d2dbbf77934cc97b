"""A policy on disk and on the Hub: loaded strictly, saved whole, pushed with a card.

LeRobot's policy class with what concerns files; `modeling_deepfusion` adds what it computes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from huggingface_hub import ModelCard
from lerobot.configs import PreTrainedConfig
from lerobot.configs.train import TrainPipelineConfig
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.utils.constants import OBS_STATE, PRETRAINED_MODEL_DIR
from torch import Tensor

from ..configuration_deepfusion import DeepFusionConfig
from ..network.lockstep import DeepFusionModel
from ..training.precision import set_precision
from .checkpoint_config import read_checkpoint_config, require_same_architecture
from .hub_push import safe_push
from .model_card import model_card
from .processor_files import check_checkpoint_files
from .safetensors_files import load_weights, stored_tensors
from .whole_saves import warn_of_little_room, whole_save

HUB_ARGUMENTS = ("force_download", "token", "cache_dir", "local_files_only", "revision")


class StoredPolicy(PreTrainedPolicy):
    """What `DeepFusionPolicy` does with files; its `model` is built from the config alone."""

    config_class = DeepFusionConfig
    name = "deepfusion"
    model: DeepFusionModel

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_name_or_path: str | Path,
        *,
        config: PreTrainedConfig | None = None,
        strict: bool = True,
        **kwargs: Any,
    ) -> Self:
        """Load a checkpoint; nothing but its own files is read.

        Args:
            pretrained_name_or_path: directory or Hub id.
            config: used in place of the checkpoint's; must have the same architecture.
            strict: always taken as True: every weight must be there and none left over.
            kwargs: as LeRobot's `from_pretrained` (`revision`, `token`, ...).

        Raises:
            ValueError: if the checkpoint is of another policy type, its config is wrong, `config` describes
                another architecture, or a file is damaged or names something outside the checkpoint.
            RuntimeError: if a weight is missing, left over or of another shape; the message names it.
        """
        hub = {key: kwargs[key] for key in HUB_ARGUMENTS if key in kwargs}
        saved = read_checkpoint_config(pretrained_name_or_path, **hub)
        check_checkpoint_files(pretrained_name_or_path, **hub)
        if config is None:
            config = saved
        elif not isinstance(config, DeepFusionConfig):
            raise ValueError(f"a config of type {config.type!r} does not describe a 'deepfusion' policy")
        config.vlm_config = config.vlm_config or saved.vlm_config
        require_same_architecture(config, saved, pretrained_name_or_path)
        _adopt_state_size(config, kwargs.get("dataset_meta"))
        return super().from_pretrained(
            pretrained_name_or_path, config=config, strict=True, vlm_weights=False, **kwargs
        )

    @classmethod
    def _load_as_safetensor(  # type: ignore[override]
        cls, model: StoredPolicy, model_file: str, map_location: str, strict: bool
    ) -> StoredPolicy:
        load_weights(model, stored_tensors([Path(model_file)]), model_file)
        if model.config.use_peft:
            # Adapters are to come; a VLM of 7B in float32 would not be there for them on a card of 24 GB.
            model.model.perception.requires_grad_(False)
        set_precision(model, model.config.dtype)
        return model

    # --- saving -------------------------------------------------------------------------------------------

    def _save_pretrained(self, save_directory: Path, state_dict: dict[str, Tensor] | None = None) -> None:
        """LeRobot's, whole or not at all.

        Raises:
            OSError: on a full disk; the message has the folder, the bytes needed and the bytes free.
        """
        weights = (self.state_dict() if state_dict is None else state_dict).values()
        with whole_save(save_directory, sum(value.numel() * value.element_size() for value in weights)) as partial:
            super()._save_pretrained(partial, state_dict=state_dict)
        if save_directory.name == PRETRAINED_MODEL_DIR:  # lerobot-train's checkpoint: AdamW's two moments follow
            warn_of_little_room(save_directory, sum(8 * p.numel() for p in self.parameters() if p.requires_grad))

    def push_model_to_hub(
        self, cfg: TrainPipelineConfig, *args: Any, dataset_meta: Any = None, **kwargs: Any
    ) -> None:
        """LeRobot's push at the end of training; a failure names the checkpoint and how to push it later."""
        with safe_push(self.config, cfg, dataset_meta):
            super().push_model_to_hub(cfg, *args, dataset_meta=dataset_meta, **kwargs)

    def generate_model_card(
        self, *args: Any, cfg: TrainPipelineConfig | None = None, dataset_meta: Any = None
    ) -> ModelCard:
        """The card that a push uploads; the positional arguments are in the config too."""
        return model_card(self.config, cfg, dataset_meta)


def _adopt_state_size(config: DeepFusionConfig, dataset_meta: Any) -> None:
    """Fine-tuning on another robot: LeRobot takes the action's size from the data set, and leaves the state's."""
    if dataset_meta is not None and OBS_STATE in dataset_meta.features and config.robot_state_feature is not None:
        config.robot_state_feature.shape = tuple(dataset_meta.features[OBS_STATE]["shape"])
