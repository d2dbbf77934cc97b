"""Which of torch's attention kernels each pass runs, with a mask and without, as its profiler names them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

from lerobot_deepfusion.training.precision import autocast

from ..report import Row
from .options import Options
from .policies import CAMERAS, ONEVISION, make_batch, random_policy

FUSED = "aten::_scaled_dot_product_"


def kernels(options: Options) -> list[Row]:
    """Calls of each attention kernel: in the passes of a chunk, in those of one without the first camera (which
    needs a mask in the VLM), and in a training step.
    """
    policy = random_policy(ONEVISION, options.small, options.device)
    batch = make_batch(policy, 1)
    gap = {**batch, f"{CAMERAS[0]}_padding_mask": torch.zeros(1, dtype=torch.bool, device=options.device)}
    policy.eval()
    config = policy.config
    table = []
    with autocast(torch.device(options.device), config.dtype), torch.no_grad():
        states = policy._observe(batch)
        table += count("VLM", lambda: policy._observe(batch))
        table += count("VLM, a camera absent", lambda: policy._observe(gap))
        state = batch["observation.state"].new_zeros(1, config.max_state_dim)
        noisy = state.new_zeros(1, 1, config.chunk_size, config.max_action_dim)
        time = policy.model.embed_time(state.new_full((1, 1), 0.5))
        table += count("expert, one sample", lambda: policy.model.denoise(states, state, noisy, time))
    policy.train()
    table += count("training, forward", lambda: policy.forward(batch))
    return table


def count(case: str, job: Callable[[], object]) -> list[Row]:
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        job()
    found = {event.key: event.count for event in profiler.key_averages() if event.key.startswith(FUSED)}
    return [Row("attention", case, name.removeprefix(FUSED), [calls], "calls") for name, calls in found.items()]
