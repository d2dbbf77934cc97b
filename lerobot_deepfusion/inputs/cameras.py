"""A pre-processed batch to what the VLM takes: cameras in their slots, image tokens in the prompt.

Axis letters: B batch, C cameras.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .images import letterbox

EMPTY_CAMERA = "empty_camera"  # in the key of a slot that no camera fills


def absent_cameras(batch: Mapping[str, Any], cameras: Sequence[str]) -> list[str]:
    """Those that a batch has no pictures of, if it has any of the others."""
    absent = [key for key in cameras if key not in batch and EMPTY_CAMERA not in key]
    return absent if any(key in batch for key in cameras) else []


def stack_cameras(
    batch: dict[str, Tensor], cameras: list[str], size: int, resample: str
) -> tuple[Tensor, Tensor, bool]:
    """Pictures of all cameras in their slots.

    Args:
        batch: pictures [B, 3, height, width] in [0, 1] by camera, and where a sample may lack one
            `<camera>_padding_mask`, bool [B], False where it does.
        cameras: batch keys in the order of the slots.
        size: side of the square that the vision tower takes, pixels.
        resample: see `letterbox`.

    Returns:
        Pictures [B, C, 3, size, size], which of them are there (bool [B, C]), and whether all are for sure.

    Raises:
        ValueError: if a camera is not in the batch.
    """
    found = sorted(key for key in cameras if key in batch)
    missing = [key for key in cameras if key not in batch and EMPTY_CAMERA not in key]
    if missing or not found:
        keys = sorted(key for key in batch if key.startswith("observation.image"))
        raise ValueError(
            f"camera {(missing or cameras)[0]!r} is not in the batch, which has {keys}. Rename with --rename_map, "
            "or take the data set's cameras with --policy.input_features=null, or declare slots that no camera "
            "fills with --policy.empty_cameras"
        )
    first = batch[found[0]]
    there = torch.ones(len(first), dtype=torch.bool, device=first.device)
    nothing = torch.zeros(len(first), 3, size, size, device=first.device)
    images = [letterbox(batch[key], size, resample) if key in batch else nothing for key in cameras]
    present = [batch.get(f"{key}_padding_mask", there if key in batch else ~there).bool() for key in cameras]
    whole = not any(EMPTY_CAMERA in key or f"{key}_padding_mask" in batch for key in cameras)
    return torch.stack(images, dim=1), torch.stack(present, dim=1), whole
