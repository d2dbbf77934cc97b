"""Drifting: the network's answer at t = 1 is the chunk, and training drifts what it answers towards the data.

K answers to K noises of one observation (siblings) are drawn to its demonstration and pushed off each other, with
weights that sum to zero, so that they spread over what demonstrations there are and do not meet at their mean. The
field of Deng et al. 2026 ("Generative modeling via drifting", arXiv:2602.04770), as used for policies by DBP
(arXiv:2604.03540) and lerobot_policy_pi05_drift. With distances D[k, y] of sibling k from y, a sibling or the
demonstration a, for each dimension of the action by itself:

    A = sqrt(softmax_y(-D / tau) * softmax_k(-D / tau)),   D in units of its mean s, a sibling's from itself left out
    w[k, a] = A[k, a] * sum_j A[k, j],   w[k, j] = -A[k, j] * A[k, a]
    F_k = sum_y w[k, y] (y - g_k) / s',   V = sum over tau of F / rms(F),   loss = |g / s' - stop(g / s' + V)|^2

where s' = s / sqrt(T). Forces are normalised, so the loss stays near a constant; what shows learning is how far the
siblings' mean lies from the demonstration, and what shows collapse is their variance.

Axis letters: B batch, K siblings, Y siblings and the demonstration, T actions of a chunk, A action dim.
"""

from __future__ import annotations

import torch
from torch import Tensor

TEMPERATURES = (0.02, 0.05, 0.2)
LEAST = 1e-8  # of what is divided by


def drift_losses(chunks: Tensor, action: Tensor, valid: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """
    Args:
        chunks: the network's answers at t = 1, [B, K, T, A] with K >= 2.
        action: demonstrations [B, T, A].
        valid: bool [B, T]; other actions are neither drawn nor pushed.

    Returns:
        Loss of each observation [B], float32, and what to watch: `centroid_distance`, root mean squared distance of
        the siblings' mean from the demonstration, and `sibling_variance`, both in normalised actions.
    """
    there = valid[:, None, :, None].float()
    chunks, action = chunks.float() * there, action[:, None].float() * there
    force, unit = drift_force(chunks.detach(), action, valid)
    # The gradient of each chunk is -2 V / s', and the value that of the squared force.
    error = ((chunks / unit - (chunks.detach() / unit + force)) ** 2 * there).mean((1, 3)).sum(1)
    counts = valid.sum(1).clamp(min=1)
    with torch.no_grad():
        total = counts.sum() * action.shape[-1]
        centroid = ((chunks.mean(1, keepdim=True) - action) ** 2).sum() / total
        variance = chunks.var(1, correction=0).sum() / total
    return error / counts, {"centroid_distance": centroid.sqrt(), "sibling_variance": variance}


@torch.no_grad()
def drift_force(chunks: Tensor, action: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """
    Args:
        chunks: [B, K, T, A], zero where not valid.
        action: [B, 1, T, A], likewise.
        valid: bool [B, T].

    Returns:
        V [B, K, T, A], and its unit s' of each action dimension [A].
    """
    siblings, size = chunks.shape[1:3]
    there = valid[:, None, :, None]
    # [B, K, Y, T, A] and [B, K, Y, A].
    difference = torch.cat([chunks, action], dim=1)[:, None] - chunks[:, :, None]
    distance = difference.norm(dim=3)
    own = torch.eye(siblings, siblings + 1, dtype=torch.bool, device=chunks.device)[None, :, :, None]
    mean = distance.masked_fill(own, 0).sum((0, 1, 2)) / (len(chunks) * siblings * siblings)
    mean = mean.clamp(min=LEAST)
    unit = mean / size**0.5
    force = torch.zeros_like(chunks)
    for temperature in TEMPERATURES:
        logits = (-distance / (mean * temperature)).masked_fill(own, -torch.inf)
        affinity = (logits.softmax(2) * logits.softmax(1)).sqrt()
        to_siblings, to_action = affinity.split((siblings, 1), dim=2)
        weights = torch.cat([-to_siblings * to_action, to_action * to_siblings.sum(2, keepdim=True)], dim=2)
        drift = (weights[:, :, :, None] * difference).sum(2) / unit
        entries = there.sum() * siblings
        rms = ((drift**2 * there).sum((0, 1, 2)) / entries.clamp(min=1)).sqrt()
        force += drift / rms.clamp(min=LEAST)
    return force, unit
