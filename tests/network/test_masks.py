"""Masks and positions: the examples in the docstrings, and properties."""

from __future__ import annotations

import torch

from lerobot_deepfusion.network.masks import causal_mask, expert_mask, expert_positions, positions_from_valid


def test_positions_count_valid_tokens_only() -> None:
    valid = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 0, 1, 0]], dtype=torch.bool)
    assert positions_from_valid(valid).tolist() == [[0, 0, 0, 1, 2], [0, 1, 1, 2, 2]]


def test_expert_mask_is_the_documented_example() -> None:
    mask = expert_mask(torch.tensor([[True, False]]), tokens=2, samples=2)
    expected = [[1, 0, 1, 1, 0, 0], [1, 0, 1, 1, 0, 0], [1, 0, 0, 0, 1, 1], [1, 0, 0, 0, 1, 1]]
    assert mask[0, 0].int().tolist() == expected


def test_causal_expert_mask_is_the_documented_example() -> None:
    """The prefix is seen whole, and of the own flow sample what stands before; for one sample too."""
    valid = torch.tensor([[True, False]])
    expected = [[1, 0, 1, 0, 0, 0], [1, 0, 1, 1, 0, 0], [1, 0, 0, 0, 1, 0], [1, 0, 0, 0, 1, 1]]
    assert expert_mask(valid, tokens=2, samples=2, causal=True)[0, 0].int().tolist() == expected
    assert expert_mask(valid, tokens=2, samples=1, causal=True)[0, 0].int().tolist() == [[1, 0, 1, 0], [1, 0, 1, 1]]


def test_one_flow_sample_needs_one_row() -> None:
    mask = expert_mask(torch.tensor([[True, False], [False, True]]), tokens=3, samples=1)
    assert mask.shape == (2, 1, 1, 5)
    assert mask[:, 0, 0].int().tolist() == [[1, 0, 1, 1, 1], [0, 1, 1, 1, 1]]


def test_expert_positions_go_on_from_each_row() -> None:
    valid = torch.tensor([[1, 1, 1, 0], [0, 1, 0, 0]], dtype=torch.bool)
    assert expert_positions(valid, tokens=2, samples=2).tolist() == [[3, 4, 3, 4], [1, 2, 1, 2]]


def test_causal_mask_hides_gaps_and_leaves_no_row_empty() -> None:
    valid = torch.tensor([[False, True, False, True]])
    expected = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0], [0, 1, 0, 1]]
    assert causal_mask(valid)[0, 0].int().tolist() == expected
