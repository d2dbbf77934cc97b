"""What real-time chunking leaves for a policy that goes on from it."""

from __future__ import annotations

import pytest
import torch

from lerobot_deepfusion.inputs.real_time import left_over, without_padding

T, A = 5, 3


def test_what_is_left_over() -> None:
    left = torch.arange(12.0).view(1, 4, 3)
    mask, actions = left_over(left, 2, (2, T, A))
    assert mask.tolist() == [[True, True, False, False, False]]
    assert torch.equal(actions[1, :2], left[0, :2])
    assert left_over(left[0], 9, (1, T, A))[0].sum() == 4  # no more than there are
    assert left_over(torch.zeros(1, 9, A), 9, (1, T, A))[0].sum() == T - 1  # nor a whole chunk
    assert left_over(None, 3, (2, T, A))[0].sum() == 0
    with pytest.raises(ValueError, match=r"prev_chunk_left_over has the shape \(1, 4, 3\); expected \[1, "):
        left_over(left, 2, (1, T, A + 1))
    with pytest.raises(ValueError, match="not finite"):
        left_over(left * torch.nan, 2, (1, T, A))


def test_zeros_of_the_rollout_are_no_actions() -> None:
    """LeRobot fills what is left up to its horizon; an action that is zero before others is one."""
    left = torch.zeros(2, 6, A)
    left[0, 0], left[1, 2] = 1.0, 1.0
    assert torch.equal(without_padding(left), left[:, :3])
    assert without_padding(torch.zeros(1, 6, A)).shape == (1, 0, A)
