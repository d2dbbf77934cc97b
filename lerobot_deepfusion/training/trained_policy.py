"""What of a policy is trained: its parameters by rate, what stays frozen, and adapters around it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from torch import nn

from ..network.lockstep import DeepFusionModel, frozen_modules
from .adapters import LORA_TARGETS, TRAINED_WHOLE, check_adapter_targets
from .averaging import ADAPTERS, WeightAverage
from .optimizer import parameter_groups
from .precision import set_precision

if TYPE_CHECKING:
    from lerobot.policies.pretrained import PreTrainedPolicy as Policy
else:
    Policy = nn.Module  # LeRobot's wants a name and a config of each class that is derived from it


class TrainedPolicy(Policy):
    """Stands before LeRobot's policy class and calls what it overrides there."""

    config: Any  # a `DeepFusionConfig`
    model: DeepFusionModel
    average: WeightAverage | None = None

    def update(self) -> None:
        """LeRobot calls this after every step of the optimizer."""
        if self.config.ema_decay:
            if self.average is None:
                self.average = WeightAverage(self, self.config.ema_decay)
            self.average.update()

    def wrap_with_peft(self, *args: Any, **kwargs: Any) -> Policy:
        """LeRobot's, after which the base weights are frozen and so follow `config.dtype`.

        Raises:
            ValueError: with an average of weights, which knows no adapters.
        """
        if self.config.ema_decay:
            raise ValueError(ADAPTERS)
        if self.config.pretrained_path and Path(self.config.pretrained_path).is_dir():
            # The adapters' record of where their base is: it is read from other directories too.
            self.config.pretrained_path = Path(self.config.pretrained_path).resolve()
        wrapped = super().wrap_with_peft(*args, **kwargs)
        set_precision(self, self.config.dtype)
        return wrapped

    def train(self, mode: bool = True) -> Self:
        """Training mode for what is trained; frozen parts stay in evaluation mode, where the average acts."""
        super().train(mode)
        if self.average is not None:
            self.average.show(not mode)
        for module in frozen_modules(self.config, self.model):
            if not any(parameter.requires_grad for parameter in module.parameters()):  # no adapters within
                module.eval()
        # What is trained is settled here: LeRobot may have put adapters around the policy since it was built.
        if self.config.use_peft:  # only then, since acting comes through here for every chunk
            set_precision(self, self.config.dtype)
        if mode and self.config.gradient_checkpointing:
            self.model.gradient_checkpointing_enable()
        return self

    def get_optim_params(self) -> list[dict[str, Any]]:
        return parameter_groups(self.config, self.model)

    def _get_default_peft_targets(self) -> dict[str, Any]:
        """What `--peft.*` adapts, the attention of the VLM, and what it trains whole: what is not pretrained."""
        whole = [name for name in TRAINED_WHOLE if getattr(self.model, name) is not None]
        return {**LORA_TARGETS, "modules_to_save": whole}

    def _validate_peft_config(self, peft_config: Any) -> None:
        """LeRobot's check that there is a base, and ours that every name is one of a module's."""
        super()._validate_peft_config(peft_config)
        check_adapter_targets(self, peft_config)
