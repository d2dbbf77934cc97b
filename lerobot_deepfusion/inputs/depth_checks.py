"""What stops a picture of depth: its shape, in the policy; its unit, in the pre-processor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .depth_keys import depth_key
from .images import other_proportions

# Millimetres: cameras see from some centimetres on, and a video has no return at 10 (read with an error below 1).
LEAST, MOST = 9.0, 100_000.0


def check_depth_shape(camera: str, batch: Mapping[str, Tensor]) -> None:
    """
    Args:
        camera: whose depth is in the batch.
        batch: pre-processed.

    Raises:
        ValueError: if it is not [B, 1, height, width] in the proportions of the camera's picture.
    """
    key, shape = depth_key(camera), tuple(batch[depth_key(camera)].shape)
    if len(shape) != 4 or shape[1] != 1 or batch[key].dtype == torch.bool:
        raise ValueError(
            f"{key} is {batch[key].dtype} of the shape {shape}; expected [batch, 1, height, width], millimetres"
        )
    if camera in batch:
        height, width = batch[camera].shape[-2:]
        if other_proportions(shape[2], shape[3], height, width):
            raise ValueError(
                f"{key} is {shape[2]} x {shape[3]} pixels and {camera} {height} x {width}: other proportions, so "
                "that depth does not lie under the picture. Register depth to colour (align), or crop both alike"
            )


def check_depth_unit(key: str, depth: Any) -> None:
    """What can be told of the unit by the values: no number, zero and what is out of range are no returns.

    Raises:
        ValueError: for metres or fractions, and for micrometres.
    """
    if not isinstance(depth, Tensor) or not depth.numel():
        return
    values = depth.float()
    measured = torch.isfinite(values) & (values != 0)
    counts = torch.stack([measured.sum(), (measured & (values < LEAST)).sum(), (measured & (values > MOST)).sum()])
    count, low, high = counts.tolist()
    if 2 * low > count or 2 * high > count:
        middle = values[measured].median().item()
        mend = "multiply by 1000, or drop --dataset.depth_output_unit=m" if low > high else "divide by 1000"
        raise ValueError(
            f"{key} has {middle:.4g} in the middle of its values; expected millimetres, as LeRobot gives them. "
            f"If these are {'metres' if low > high else 'micrometres'}, {mend}"
        )
