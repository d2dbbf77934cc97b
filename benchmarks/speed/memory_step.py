"""Peak memory of one training step above what model and inputs take, in this process.

On a CPU the resident set is sampled while the step runs, with an allocator that returns what is freed; on CUDA the
allocator's own count is read. The median of three steps, after one to warm up.

    python -m benchmarks.speed.memory_step "deepfusion kv" S256-P1200-B4 checkpointing
"""

from __future__ import annotations

import ctypes
import gc
import os
import statistics
import sys
import threading
from pathlib import Path

import torch

from .measures import autocast, build, prepare

M_MMAP_THRESHOLD = -3  # of the C library's `mallopt`


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Sampler(threading.Thread):
    """Highest resident set while it runs, looked at every 2 ms."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.highest, self.done = 0, threading.Event()

    def run(self) -> None:
        while not self.done.wait(0.002):
            self.highest = max(self.highest, resident())


def peak(name: str, case: str, training: str, device: str = "cpu", dtype: str = "float32") -> int:
    """Bytes; the process is for nothing else."""
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 65536)  # what is freed is the system's again
    prepare()
    arm = build(name, case, device=device)
    arm.model.train()
    if training == "checkpointing":
        arm.checkpoint()
    if training == "expert only":
        arm.vlm.requires_grad_(False)
    peaks = []
    for _ in range(4):
        arm.model.zero_grad(set_to_none=True)
        gc.collect()
        with autocast(device, dtype):
            peaks.append(_cuda_peak(arm) if device.startswith("cuda") else _cpu_peak(arm))
    return round(statistics.median(peaks[1:]))


def _cpu_peak(arm) -> int:
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    before, sampler = resident(), Sampler()
    sampler.start()
    arm.train_step()
    sampler.done.set()
    sampler.join()
    return sampler.highest - before


def _cuda_peak(arm) -> int:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    arm.train_step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


if __name__ == "__main__":
    print(peak(*sys.argv[1:]))
