"""Optimizer, schedule and learning rates, as LeRobot builds them from the policy's config."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from lerobot.optim import AdamWConfig, OptimizerConfig
from lerobot.optim.schedulers import CosineAnnealingWithWarmupSchedulerConfig, LRSchedulerConfig
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ..network.part_names import EXPERT, POSITIONS, PROJECTOR, TEXT, VISION, part_of

# The config field of each part's learning rate. The expert's comes first: it is the one that LeRobot logs.
RATES = {
    EXPERT: "optimizer_lr",
    TEXT: "optimizer_vlm_lr",
    PROJECTOR: "optimizer_connector_lr",
    VISION: "optimizer_vision_lr",
}
WARMUP_SHARE = 10  # of a run that is too short for its warmup, one in so many steps warms up


@OptimizerConfig.register_subclass("deepfusion_adamw")
@dataclass
class DeepFusionAdamWConfig(AdamWConfig):
    """AdamW in one kernel for all weights, which LeRobot's own leaves to PyTorch's slower default."""

    fused: bool = True


@LRSchedulerConfig.register_subclass("deepfusion_cosine")
@dataclass
class DeepFusionSchedulerConfig(CosineAnnealingWithWarmupSchedulerConfig):
    """LeRobot's cosine to the last step, whose warmup is at most a tenth of a short run."""

    def build(self, optimizer: Optimizer, num_training_steps: int) -> LambdaLR:
        warmup = min(self.num_warmup_steps, num_training_steps // WARMUP_SHARE)
        return CosineAnnealingWithWarmupSchedulerConfig.build(
            replace(self, num_warmup_steps=warmup), optimizer, num_training_steps
        )


def parameter_groups(config: Any, model: nn.Module) -> list[dict[str, Any]]:
    """One group a part that is trained, always in the same order: resuming matches optimizer state by place.

    Args:
        config: a `DeepFusionConfig`.
        model: a `DeepFusionModel`, with adapters or without.

    Raises:
        ValueError: if a part has a learning rate and nothing of it is trained.
    """
    groups = []
    for part, field in RATES.items():
        parts = {PROJECTOR, POSITIONS} if part == PROJECTOR else {part}  # one rate for both
        trained = [p for name, p in model.named_parameters() if p.requires_grad and part_of(name) in parts]
        rate = getattr(config, field)
        if trained:
            groups.append({"params": trained, "lr": config.optimizer_lr if rate is None else rate, "name": part})
        elif rate is not None and part != EXPERT:
            raise ValueError(
                f"policy.{field}={rate} and nothing of the {part} is trained; leave it out, or unfreeze the {part} "
                "(policy.freeze_vision_encoder, train_expert_only, knowledge_insulation, --peft.target_modules)"
            )
    return groups
