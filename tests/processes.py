"""Training of small policies in one process or several; as a script, one of several that train all the cases.

    accelerate launch --config_file=configs/accelerate/fsdp.yaml --num_processes=2 tests/processes.py <folder>
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import cpu_fsdp
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedDataParallelKwargs, DistributedType
from conftest import enlarge
from lerobot.common.train_utils import gather_fsdp_state_dicts
from lerobot.scripts.lerobot_train import update_policy
from lerobot.utils.logging_utils import AverageMeter, MetricsTracker
from test_policy import STATS, make_batch, make_config
from torch import Tensor
from torch.distributed.fsdp import FullyShardedDataParallel

from lerobot_deepfusion import modeling_deepfusion
from lerobot_deepfusion.processor_deepfusion import make_deepfusion_pre_post_processors

CASES: dict[str, dict[str, Any]] = {
    "kv": {"fusion": "kv"},
    "hidden": {"fusion": "hidden", "expert_width_multiplier": 0.5},
    "kv, checkpointed, 3 flow samples": {"gradient_checkpointing": True, "num_flow_samples": 3},
    "hidden, checkpointed, 2 flow samples": {
        "fusion": "hidden",
        "gradient_checkpointing": True,
        "num_flow_samples": 2,
        "time_conditioning": "token",
    },
    "late": {"fusion": "late"},
    "frozen tower": {"freeze_vision_encoder": True},
    "frozen VLM": {"train_expert_only": True},
    "bfloat16": {"dtype": "bfloat16"},
    "bfloat16, frozen tower": {"dtype": "bfloat16", "freeze_vision_encoder": True, "gradient_checkpointing": True},
    "bfloat16, frozen VLM": {"dtype": "bfloat16", "train_expert_only": True},
}
STRATEGIES = ("ddp", "fsdp")
STEPS, BATCH = 3, 4


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


def share_draws(accelerate: Accelerator) -> None:
    """Noise and times are drawn for the batch of all processes, of which each takes its rows."""
    for name in ("sample_noise", "sample_time_beta"):
        drawn = getattr(modeling_deepfusion, name)
        original = getattr(drawn, "original", drawn)

        def rows(size: Any, *args: Any, original: Any = original, **kwargs: Any) -> Tensor:
            count = accelerate.num_processes
            whole = size * count if isinstance(size, int) else (size[0] * count, *size[1:])
            return original(whole, *args, **kwargs).chunk(count)[accelerate.process_index]

        rows.original = original  # type: ignore[attr-defined]
        setattr(modeling_deepfusion, name, rows)


def padded_batch() -> dict[str, Any]:
    """Four samples; those of the first half lack 4 and 2 of their 6 actions, those of the second none."""
    config = make_config()
    batch = make_batch(config, BATCH)
    batch["action_is_pad"][0, 2:] = True
    batch["action_is_pad"][1, 4:] = True
    return make_deepfusion_pre_post_processors(config, STATS)[0](batch)


def build(changes: dict[str, Any]) -> modeling_deepfusion.DeepFusionPolicy:
    """The same policy in every process, with weights large enough to show errors."""
    torch.manual_seed(0)
    policy = modeling_deepfusion.DeepFusionPolicy(make_config(optimizer_lr=1e-3, **changes))
    enlarge(policy.model.expert, 2.0)
    return policy


def train(changes: dict[str, Any]) -> dict[str, Any]:
    """A few of LeRobot's training steps: losses and gradient norms of this process, and the weights at the end."""
    accelerate = accelerator(changes.get("dtype", "float32"))
    share_draws(accelerate)
    policy = build(changes)
    total = sum(parameter.numel() for parameter in policy.parameters())
    batch = {
        key: value.chunk(accelerate.num_processes)[accelerate.process_index] if isinstance(value, Tensor) else value
        for key, value in padded_batch().items()
    }
    preset = policy.config.get_optimizer_preset()
    policy, optimizer = accelerate.prepare(policy, preset.build(policy.get_optim_params()))
    history = []
    for step in range(STEPS):
        torch.manual_seed(step)
        meters = {name: AverageMeter(name) for name in ("loss", "grad_norm", "lr", "update_s")}
        tracker = MetricsTracker(BATCH, BATCH, 1, meters, accelerator=accelerate)
        update_policy(tracker, policy, batch, optimizer, preset.grad_clip_norm, accelerate)
        history.append([tracker.loss.val, tracker.grad_norm.val])
    result = {"history": torch.tensor(history, dtype=torch.float64), **_shards(policy, total)}
    if accelerate.distributed_type == DistributedType.FSDP:
        weights, _ = gather_fsdp_state_dicts(policy, optimizer)
    else:
        weights = policy.state_dict()
    result["weights"] = {key.removeprefix("module."): value.clone() for key, value in weights.items()}
    result["policy"] = accelerate.unwrap_model(policy)
    return result


def _shards(policy: torch.nn.Module, total: int) -> dict[str, Any]:
    """This process's share of the parameters, and how many units of which class are sharded."""
    units = [unit for unit in FullyShardedDataParallel.fsdp_modules(policy) if unit._has_params]
    return {
        "share": sum(parameter.numel() for parameter in policy.parameters()) / total,
        "units": [type(unit.module).__name__ for unit in units],
        "loose": 0.0 if not units else units[0]._handle.flat_param._unpadded_unsharded_size.numel() / total,
    }


def main(folder: Path) -> None:
    """Train every case in both ways; what each process finds goes to `folder`, with one FSDP checkpoint."""
    cpu_fsdp.allow()
    torch.set_num_threads(1)
    rank, results = int(os.environ["RANK"]), {}
    for strategy in STRATEGIES:
        os.environ["ACCELERATE_USE_FSDP"] = str(strategy == "fsdp").lower()
        for name, changes in CASES.items():
            print(rank, strategy, name, flush=True)
            result = train(changes)
            policy = result.pop("policy")
            if rank == 0 and strategy == "fsdp":
                policy.save_pretrained(folder / name, state_dict=result["weights"])
            results[strategy, name] = result
    torch.save(results, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
