"""Peak memory of a training step, one process for each variant: what `memory_step` finds there."""

from __future__ import annotations

import json
import os
import subprocess
import sys

TRAININGS = ("plain", "checkpointing", "expert only")


def peak(arm: str, case: str, training: str, device: str = "cpu", dtype: str = "float32") -> int:
    """Bytes that a training step of an arm takes at its peak, measured in a process of its own.

    Raises:
        RuntimeError: with the process's own words, if it failed.
    """
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, "-m", "benchmarks.speed.memory_step", arm, case, training, device, dtype]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])["bytes"]
