"""The clock: several jobs in random order, round after round, compared within a round.

On a CPU it counts the process's own time of one thread, which other programs on the machine hardly move; on CUDA
the time between two events.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping

import torch

Seconds = dict[str, list[float]]


def race(jobs: Mapping[str, Callable[[], object]], rounds: int, device: str = "cpu") -> Seconds:
    """Seconds of each job in each round, after one round to warm up."""
    for job in jobs.values():
        job()
    order, shuffle = list(jobs), random.Random(0).shuffle
    seconds: Seconds = {name: [] for name in jobs}
    for _ in range(rounds):
        shuffle(order)
        for name in order:
            seconds[name].append(elapsed(jobs[name], device))
    return seconds


def elapsed(job: Callable[[], object], device: str) -> float:
    """Seconds that one call takes."""
    if not device.startswith("cuda"):
        start = time.process_time()
        job()
        return time.process_time() - start
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    begin.record()
    job()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1e3


def quartiles(values: list[float]) -> list[float]:
    """Lower quartile, median and upper quartile."""
    return [values[0]] * 3 if len(values) == 1 else statistics.quantiles(values, n=4, method="inclusive")


def ratio(seconds: Seconds, name: str, reference: str) -> list[float]:
    """Quartiles of a job's time over another's in the same round."""
    return quartiles([a / b for a, b in zip(seconds[name], seconds[reference], strict=True)])
