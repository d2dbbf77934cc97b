"""A training step as LeRobot does it: observations a second and peak memory, beside what `deepfusion info` says."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import torch

from lerobot_deepfusion.cost import memory
from lerobot_deepfusion.cost.fake_step import Workload
from lerobot_deepfusion.modeling_deepfusion import DeepFusionPolicy

from ..allocations import allocated
from ..clock import quartiles, race
from ..report import Row
from .options import Options
from .policies import ONEVISION, make_batch, random_policy

BATCH = 8  # as the shipped config has it


def training(options: Options) -> list[Row]:
    """OneVision 0.5B, all but its vision tower trained, eight flow samples; plain and checkpointed."""
    table = []
    for checkpointing in (False, True):
        before = torch.cuda.memory_allocated() if options.device.startswith("cuda") else 0  # of whoever was here
        case = f"training, {'checkpointed' if checkpointing else 'plain'}"
        policy = random_policy(ONEVISION, options.small, options.device, gradient_checkpointing=checkpointing)
        policy.train()
        batch = make_batch(policy, 2 if options.small else BATCH)
        estimate = estimated(policy, len(batch["action"]))
        try:
            step = stepper(policy, batch)
            for _ in range(2):  # the optimizer's states are there after the first
                step()
            peak = measured(policy, step, options.device) - before
            seconds = race({case: step}, options.rounds, options.device)[case]
        except torch.OutOfMemoryError:
            table.append(Row("gpu", case, "out of memory", [estimate / 2**20], "MiB"))
            continue
        finally:
            step = None
            del policy
            gc.collect()
        rate = quartiles([len(batch["action"]) / value for value in seconds])
        table.append(Row("gpu", case, f"batch {len(batch['action'])}", rate, "samples/s"))
        table.append(Row("gpu", case, "peak", [peak / 2**20], "MiB", "estimate", [peak / estimate]))
        table.append(Row("gpu", case, "estimate", [estimate / 2**20], "MiB"))
    return table


def stepper(policy: DeepFusionPolicy, batch: dict[str, Any]) -> Callable[[], None]:
    """Forward and backward pass, the gradient's norm and the optimizer's step."""
    optimizer = policy.config.get_optimizer_preset().build(policy.get_optim_params())

    def step() -> None:
        loss, _ = policy.forward(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), policy.config.optimizer_grad_clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def estimated(policy: DeepFusionPolicy, size: int) -> int:
    """Bytes, by the code behind `deepfusion info`."""
    config, model = policy.config, policy.model
    words, samples = config.tokenizer_max_length, config.num_flow_samples
    load = Workload(size, len(config.cameras), words, config.chunk_size, samples)
    half, trained = config.dtype == "bfloat16", memory.trained_parts(model)
    return memory.training_bytes(model, load, half, trained, config.gradient_checkpointing)


def measured(policy: DeepFusionPolicy, step: Callable[[], None], device: str) -> int:
    """Bytes at the peak of a step: on a card what torch allocated, on a CPU weights and states and what the
    profiler saw come and go.
    """
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()
    trained, frozen = (sum(memory.parameters(policy.model, trained=flag).values()) for flag in (True, False))
    half = policy.config.dtype == "bfloat16"
    states = (memory.FLOAT32 * 3) * trained + (memory.BFLOAT16 if half else memory.FLOAT32) * frozen
    return states + allocated(step)
