"""The average of a run's weights, beside those with which it resumes.

lerobot-train's checkpoint .... model.safetensors is what is trained on, averaged.safetensors what acts
any other save, the Hub ....... model.safetensors is the average
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ..training.averaging import WeightAverage
from .checkpoint_place import file_of
from .safetensors_files import some, stored_tensors

FILE, UPDATES = "averaged.safetensors", "updates"


def write_average(average: WeightAverage, folder: Path) -> None:
    """Trained weights alone, in float32; a policy that is training has its own in their places."""
    values = {name: value.contiguous() for name, value in average.values.items()}
    save_file(values, folder / FILE, {UPDATES: str(average.updates)})


def read_average(policy: Any, source: str | Path, hub: dict[str, Any], acts: bool) -> None:
    """Into a policy that was loaded, if the checkpoint has one.

    Args:
        policy: a `DeepFusionPolicy`.
        source: of the checkpoint, a directory or Hub id.
        hub: `revision`, `token` and the like.
        acts: whether the policy acts with it, or trains on and goes on averaging.

    Raises:
        RuntimeError: if it is of other weights.
        ValueError: if the file is damaged.
    """
    file = file_of(source, FILE, hub)
    if file is None:
        return
    stored = stored_tensors([file])
    own = dict(policy.named_parameters())
    wrong = {name for name, value in stored.items() if name not in own or own[name].shape != value.dimensions}
    average = None if acts else WeightAverage(policy, policy.config.ema_decay)
    if wrong:
        raise RuntimeError(f"{file} does not fit this policy: {some(wrong)}; remove it to go on without the average")
    if average is None:
        with torch.no_grad():
            for name, value in stored.items():
                own[name].copy_(value[...])
        return
    with safe_open(file, framework="pt") as opened:
        updates = int((opened.metadata() or {}).get(UPDATES, 0))
    # What was not trained before begins its average where it is.
    own_values = {name: stored[name][...] if name in stored else value for name, value in average.values.items()}
    average.load(own_values, updates)
    policy.average = average
