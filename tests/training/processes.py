"""Training of small policies, the cases, in one process or several."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedDataParallelKwargs, DistributedType
from lerobot.common.train_utils import gather_fsdp_state_dicts
from lerobot.scripts.lerobot_train import update_policy
from lerobot.utils.logging_utils import AverageMeter, MetricsTracker
from torch import Tensor
from torch.distributed.fsdp import FullyShardedDataParallel

from lerobot_deepfusion import DeepFusionConfig, modeling_deepfusion
from lerobot_deepfusion.processor_deepfusion import make_deepfusion_pre_post_processors
from tests.llavas import enlarge
from tests.policies import STATS, make_batch, make_config

CASES: dict[str, dict[str, Any]] = {
    "kv": {"fusion": "kv"},
    "hidden": {"fusion": "hidden", "expert_width_multiplier": 0.5},
    "late": {"fusion": "late"},
    "kv, checkpointed, 3 flow samples": {"gradient_checkpointing": True, "num_flow_samples": 3},
    "hidden, checkpointed, 2 flow samples": {
        "fusion": "hidden",
        "gradient_checkpointing": True,
        "num_flow_samples": 2,
        "time_conditioning": "token",
    },
    "frozen tower": {"freeze_vision_encoder": True},
    "frozen VLM": {"train_expert_only": True},
    "SigLIP and Qwen2": {"vlm_path": "siglip_qwen2"},
    "bfloat16": {"dtype": "bfloat16"},
    "two evaluations": {"objective": "two_step", "num_flow_samples": 2},
    "in space": {"vlm_path": "next_mistral", "position_3d": "world", "gradient_checkpointing": True},
    # As the shipped configs of the two published LLaVAs, which these are small ones of.
    "LLaVA-OneVision": {
        "vlm_path": "onevision",
        "expert_init": "vlm",
        "dtype": "bfloat16",
        "gradient_checkpointing": True,
        "freeze_vision_encoder": True,
        "num_flow_samples": 4,
    },
    "LLaVA-1.5": {
        "vlm_path": "clip_llama",
        "expert_width_multiplier": 0.25,
        "train_expert_only": True,
        "dtype": "bfloat16",
        "gradient_checkpointing": True,
        "num_flow_samples": 8,
    },
}
AVERAGE = {"ema_decay": 0.5}  # by DDP alone: FSDP is refused
LLAVAS = tuple(changes["vlm_path"] for changes in CASES.values() if "vlm_path" in changes)
STEPS, BATCH = 3, 4


def config_of(changes: dict[str, Any]) -> DeepFusionConfig:
    """Small, with room for the prompts; the LLaVAs are folders in the current one."""
    config = make_config(optimizer_lr=1e-3, **{key: value for key, value in changes.items() if key != "vlm_path"})
    config.vlm_path, config.tokenizer_max_length = changes.get("vlm_path", "tiny"), 96
    return config


def accelerator(dtype: str) -> Accelerator:
    """As `lerobot-train` makes it, in place of the process's last one."""
    AcceleratorState._reset_state()
    if PartialState._shared_state.get("distributed_type") == DistributedType.FSDP:
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_CPU
    return Accelerator(
        step_scheduler_with_optimizer=False,
        mixed_precision={"bfloat16": "bf16", "float32": "no"}[dtype],
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        cpu=True,
    )


@contextmanager
def shared_draws(accelerate: Accelerator) -> Iterator[None]:
    """Noise and times are drawn for the batch of all processes, of which each takes its rows."""

    def rows(draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def drawn(size: Any, *args: Any, **kwargs: Any) -> Tensor:
            count = accelerate.num_processes
            whole = size * count if isinstance(size, int) else (size[0] * count, *size[1:])
            return draw(whole, *args, **kwargs).chunk(count)[accelerate.process_index]

        return drawn

    names = ("sample_noise", "sample_time_beta")
    with mock.patch.multiple(
        modeling_deepfusion, **{name: rows(getattr(modeling_deepfusion, name)) for name in names}
    ):
        yield


def padded_batch(config: DeepFusionConfig) -> dict[str, Any]:
    """Four samples; those of the first half lack 4 and 2 of their 6 actions, those of the second none."""
    batch = make_batch(config, BATCH)
    batch["action_is_pad"][0, 2:] = True
    batch["action_is_pad"][1, 4:] = True
    return make_deepfusion_pre_post_processors(config, STATS)[0](batch)


def build(config: DeepFusionConfig) -> modeling_deepfusion.DeepFusionPolicy:
    """The same policy in every process, with weights large enough to show errors."""
    torch.manual_seed(0)
    policy = modeling_deepfusion.DeepFusionPolicy(config)
    enlarge(policy.model.expert, 2.0)
    return policy


def train(changes: dict[str, Any], folder: Path | None = None) -> dict[str, Any]:
    """A few of LeRobot's training steps, as this process sees them.

    Args:
        changes: of the policy's config.
        folder: for a checkpoint.

    Returns:
        `history`, the loss and gradient norm of each step, the weights `before` and `after`, the `average` of weights
        if there is one, and `_shards`.
    """
    accelerate, config = accelerator(changes.get("dtype", "float32")), config_of(changes)
    policy = build(config)
    before = {key: value.clone() for key, value in policy.state_dict().items()}
    batch = {
        key: value.chunk(accelerate.num_processes)[accelerate.process_index] if isinstance(value, Tensor) else value
        for key, value in padded_batch(config).items()
    }
    preset = config.get_optimizer_preset()
    policy, optimizer = accelerate.prepare(policy, preset.build(policy.get_optim_params()))
    history = []
    with shared_draws(accelerate):
        for step in range(STEPS):
            torch.manual_seed(step)
            meters = {name: AverageMeter(name) for name in ("loss", "grad_norm", "lr", "update_s")}
            tracker = MetricsTracker(BATCH, BATCH, 1, meters, accelerator=accelerate)
            update_policy(tracker, policy, batch, optimizer, preset.grad_clip_norm, accelerate)
            history.append([tracker.loss.val, tracker.grad_norm.val])
    plain = accelerate.unwrap_model(policy)
    if accelerate.distributed_type == DistributedType.FSDP:
        after, _ = gather_fsdp_state_dicts(policy, optimizer)
    else:
        after = plain.state_dict()
    if folder is not None and accelerate.is_main_process:
        plain.save_pretrained(folder, state_dict=after)
    shown = {} if plain.average is None else {"average": _averaged(plain)}
    return {"history": torch.tensor(history), "before": before, "after": after, **shown, **_shards(policy, before)}


def _averaged(policy: modeling_deepfusion.DeepFusionPolicy) -> dict[str, Tensor]:
    """The weights that it acts with."""
    averaged = {name: value.clone() for name, value in policy.eval().named_parameters()}
    policy.train()
    return averaged


def _shards(policy: torch.nn.Module, whole: dict[str, Tensor]) -> dict[str, Any]:
    """This process's share of the parameters, and the classes of the units that FSDP shards."""
    units = [unit for unit in FullyShardedDataParallel.fsdp_modules(policy) if unit._has_params]
    held = sum(parameter.numel() for parameter in policy.parameters())
    return {
        "share": held / sum(value.numel() for value in whole.values()),
        "units": Counter(type(unit.module).__name__ for unit in units),
    }


def train_all(strategy: str, folder: Path) -> None:
    """Train every case; what this process finds goes to `folder`, with the checkpoints of FSDP."""
    torch.set_num_threads(1)
    os.chdir(folder)
    rank, results = int(os.environ["RANK"]), {}
    for name, changes in CASES.items():
        results[name] = train(changes, folder / name if strategy == "fsdp" else None)
        if rank:
            del results[name]["before"], results[name]["after"]
    if strategy == "ddp":
        results["average"] = train(AVERAGE)
    torch.save(results, folder / f"{strategy}{rank}.pt")
    torch.distributed.destroy_process_group()
