"""Camera images to what the vision tower takes, on the device: free functions.

Axis letters: B batch, C cameras.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def letterbox(image: Tensor, size: int, resample: str = "bilinear") -> Tensor:
    """Resize without distortion to a square, with black bars where the sides differ.

    Args:
        image: [B, 3, height, width] in [0, 1].
        size: side of the square, pixels.
        resample: `bilinear` or `bicubic`.

    """
    if tuple(image.shape[-2:]) == (size, size):
        return image
    new, bars = letterbox_geometry(image.shape[-2], image.shape[-1], size)
    # Antialiased, as image processors do: a plain resize would drop thin things when it shrinks.
    image = F.interpolate(image, new, mode=resample, align_corners=False, antialias=True)
    image = image.clamp(0, 1)  # bicubic overshoots at edges
    return F.pad(image, bars)


def letterbox_geometry(height: int, width: int, size: int) -> tuple[tuple[int, int], tuple[int, int, int, int]]:
    """What a picture is resized to, and the bars around that: left, right, top, bottom; pixels."""
    scale = size / max(height, width)
    new = max(1, round(height * scale)), max(1, round(width * scale))
    top, left = (size - new[0]) // 2, (size - new[1]) // 2
    return new, (left, size - new[1] - left, top, size - new[0] - top)


def other_proportions(height: int, width: int, other_height: int, other_width: int) -> bool:
    """Whether they are not one picture at two resolutions, rounded by half a pixel on each side."""
    room = (height + width) / 2 + (other_height + other_width) / 2
    return abs(height * other_width - width * other_height) > room


def random_shift(images: Tensor, pixels: int) -> Tensor:
    """Shift each image by up to `pixels` in each direction, edges repeated (DrQ, Kostrikov et al. 2020).

    Args:
        images: [B, C, channels, height, width]; every image gets a shift of its own, with all that lies under it.
        pixels: largest shift.
    """
    if pixels == 0:
        return images
    flat = images.flatten(0, 1)
    count, channels, height, width = flat.shape
    padded = F.pad(flat, (pixels,) * 4, mode="replicate")
    offset = torch.randint(0, 2 * pixels + 1, (2, count, 1), device=images.device)
    rows = (offset[0] + torch.arange(height, device=images.device))[:, None, :, None]
    columns = (offset[1] + torch.arange(width, device=images.device))[:, None, None, :]
    item = torch.arange(count, device=images.device)[:, None, None, None]
    channel = torch.arange(channels, device=images.device)[None, :, None, None]
    return padded[item, channel, rows, columns].view_as(images)
