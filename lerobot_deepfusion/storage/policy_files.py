"""A policy on disk and on the Hub: loaded strictly, saved whole, pushed with a card.

LeRobot's policy class with what concerns files; `modeling_deepfusion` adds what it computes.
"""

from __future__ import annotations

import inspect
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Self

from huggingface_hub import ModelCard
from lerobot.configs import PreTrainedConfig
from lerobot.configs.train import TrainPipelineConfig
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.utils.constants import PRETRAINED_MODEL_DIR
from torch import Tensor

from ..configuration_deepfusion import DeepFusionConfig
from ..inputs.rollout_check import watch_rollouts
from ..network.lockstep import DeepFusionModel
from ..network.positions import build_positions
from ..training.averaging import WeightAverage
from ..training.precision import set_precision
from .averaged_weights import read_average, write_average
from .checkpoint_config import read_checkpoint_config, require_same_architecture
from .checkpoint_place import pinned, remember_commit
from .hub_push import safe_push, watch_publishing
from .model_card import model_card
from .processor_files import check_checkpoint_files
from .safetensors_files import load_weights, stored_tensors
from .stored_processors import check_stored_statistics, check_tasks_of
from .trained_settings import adopt_dataset, require_trained_settings
from .whole_saves import is_main_process, warn_of_little_room, whole_save

# LeRobot after 0.6.1 gathers sharded weights itself, and so has every process save.
GATHERS = "state_dict" not in inspect.signature(PreTrainedPolicy._save_pretrained).parameters
RELATIVE = "relative."  # how the buffers of `network.relative` begin
HUB_ARGUMENTS = ("force_download", "token", "cache_dir", "local_files_only", "revision")


class StoredPolicy(PreTrainedPolicy):
    """What `DeepFusionPolicy` does with files; its `model` is built from the config alone."""

    config_class = DeepFusionConfig
    name = "deepfusion"
    model: DeepFusionModel
    average: WeightAverage | None

    def __init__(self, config: DeepFusionConfig, flat_weights: bool = False, trains_on: bool = False) -> None:
        super().__init__(config)
        self.trains_on = trains_on  # whether there is a data set for them
        self.flat_weights = flat_weights  # whether those to come are of a policy without `position_3d`
        watch_publishing()

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
            config: used in place of the checkpoint's; must have the same architecture and, unless it is trained on,
                the same of all that was trained.
            strict: always taken as True: every weight must be there and none left over.
            kwargs: as LeRobot's `from_pretrained` (`revision`, `token`, ...); `dataset_meta` of a data set that it is
                to be trained on. A revision is resolved once, and every file is of that commit.

        Raises:
            ValueError: if the checkpoint is of another policy type, its config is wrong, `config` or the data set
                describes another policy, or a file is damaged or names something outside the checkpoint.
            FileNotFoundError: if there is no such directory.
            RuntimeError: if a weight is missing, left over or of another shape; the message names it.
        """
        source, asked, meta = pretrained_name_or_path, kwargs.get("revision"), kwargs.get("dataset_meta")
        hub = pinned(source, {key: kwargs[key] for key in HUB_ARGUMENTS if key in kwargs})
        saved = read_checkpoint_config(source, **hub)
        check_checkpoint_files(source, **hub)
        if config is None:
            config = saved
        elif not isinstance(config, DeepFusionConfig):
            raise ValueError(f"a config of type {config.type!r} does not describe a 'deepfusion' policy")
        config.vlm_config = config.vlm_config or saved.vlm_config
        require_same_architecture(config, saved, source, asked, train=meta is not None or config.use_peft)
        kwargs["flat_weights"] = saved.position_3d == "none"
        if meta is not None:
            adopt_dataset(config, saved, meta, source)
            check_tasks_of(meta, config, source, hub)
        elif not config.use_peft:  # adapters have a config of their own, and processors beside it
            for features in (saved, config):
                features.validate_features()
            require_trained_settings(config, saved, source, asked)
            check_stored_statistics(config, source, hub)
        watch_rollouts()  # LeRobot's rollout loads the policy first, then connects the robot
        remember_commit(config, source, asked, hub.get("revision"))
        policy = super().from_pretrained(source, config=config, strict=True, vlm_weights=False, **{**kwargs, **hub})
        if meta is not None:  # as LeRobot takes the data set's statistics in the checkpoint's place
            policy.measure_relative_actions(meta)
        if config.ema_decay:
            read_average(policy, source, hub, acts=meta is None)
        return policy

    def measure_relative_actions(self, meta: Any) -> None:
        """See `DeepFusionPolicy`."""

    @classmethod
    def _load_as_safetensor(  # type: ignore[override]
        cls, model: StoredPolicy, model_file: str, map_location: str, strict: bool
    ) -> StoredPolicy:
        new, stored = model.new_weights(), stored_tensors([Path(model_file)])
        if model.trains_on and not model.config.use_peft:  # measured anew, of another chunk or robot too
            stored = {name: value for name, value in stored.items() if not name.startswith(RELATIVE)}
            new += tuple(name for name in model.state_dict() if name.startswith(RELATIVE))
        load_weights(model, stored, model_file, new)
        if model.config.use_peft:
            # Adapters are to come; a VLM of 7B in float32 would not be there for them on a card of 24 GB.
            model.model.perception.requires_grad_(False)
        set_precision(model, model.config.dtype)
        return model

    def new_weights(self) -> tuple[str, ...]:
        """What the checkpoint that is loaded has no weights of, and starts as it is built."""
        if not self.flat_weights or self.model.position_3d is None:
            return ()
        config, perception = self.config, self.model.perception
        centre = config.workspace_center
        positions = build_positions(perception.config, config.position_3d, perception.pooling, centre, flat=True)
        self.model.position_3d = positions
        return tuple(f"model.position_3d.{name}" for name, _ in positions.named_parameters()) if positions else ()

    # --- saving -------------------------------------------------------------------------------------------

    def _save_pretrained(self, save_directory: Path, state_dict: dict[str, Tensor] | None = None) -> None:
        """LeRobot's, whole or not at all.

        Args:
            save_directory: exists.
            state_dict: gathered weights, in LeRobot 0.6.1. Later ones gather them in here: there every process comes
                here, and the main one alone writes.

        Raises:
            OSError: on a full disk; the message has the folder, the bytes needed and the bytes free.
        """
        save = super()._save_pretrained
        if GATHERS and not is_main_process():
            save(save_directory)  # takes part in the gathering
            return
        given = {} if GATHERS else {"state_dict": state_dict}
        weights = (self.state_dict() if state_dict is None else state_dict).values()
        resumes = save_directory.name == PRETRAINED_MODEL_DIR  # lerobot-train's checkpoint
        needed = sum(value.numel() * value.element_size() for value in weights)
        if self.average is not None and resumes:  # which is saved beside
            needed += sum(value.numel() * value.element_size() for value in self.average.values.values())
        in_place = nullcontext() if self.average is None else self.average.showing(not resumes)
        with whole_save(save_directory, needed) as partial, in_place:
            save(partial, **given)
            if self.average is not None and resumes:
                write_average(self.average, partial)
        if resumes:  # AdamW's two moments follow
            warn_of_little_room(save_directory, sum(8 * p.numel() for p in self.parameters() if p.requires_grad))

    def push_model_to_hub(
        self, cfg: TrainPipelineConfig, *args: Any, dataset_meta: Any = None, **kwargs: Any
    ) -> None:
        """LeRobot's push at the end of training; a failure names the checkpoint and how to push it later."""
        # After 0.6.1 this leads to LeRobot's publisher, around which the same stands already.
        with nullcontext() if GATHERS else safe_push(self.config, cfg, dataset_meta):
            super().push_model_to_hub(cfg, *args, dataset_meta=dataset_meta, **kwargs)

    def generate_model_card(
        self, *args: Any, cfg: TrainPipelineConfig | None = None, dataset_meta: Any = None
    ) -> ModelCard:
        """The card that a push uploads; the positional arguments are in the config too."""
        return model_card(self.config, cfg, dataset_meta)
