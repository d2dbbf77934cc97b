"""Peak memory of a training step, one process for each variant: what `memory_step` finds there."""

from __future__ import annotations

import importlib
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

STEP = f"{__package__}.memory_step"  # imports `measures`, which imports this
# Importing LeRobot takes longer than the steps: all are forked from one process, which does no more than that.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload([STEP])
TRAININGS = ("plain", "checkpointing", "expert only")


def peak(arm: str, case: str, training: str, device: str = "cpu", dtype: str = "float32") -> int:
    """Bytes that a training step of an arm takes at its peak, measured in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=PROCESSES) as pool:
        return pool.submit(_there, arm, case, training, device, dtype).result()


def _there(*arguments: str) -> int:
    return importlib.import_module(STEP).peak(*arguments)
