"""A prompt: text around one task, with one token where the pictures go.

The text side writes that one token; how many it becomes depends on the cameras and is settled next to them, so
that a checkpoint's prompt serves a robot with other cameras.

Axis letters: B batch, L tokens of the text with its one image token, M image tokens, S = L + M - 1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..llava.chat_template import TASK


def fill_prompt(prompt: str, image_token: str, task: str) -> str:
    """The prompt for one task.

    Raises:
        ValueError: if the task text contains the image token, which would put pictures into it.
    """
    if image_token in task:
        raise ValueError(f"the task text {task!r} contains the image token {image_token!r}; take it out")
    return prompt.replace(TASK, task)


def fit_tokens(token_ids: Tensor, valid: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Prompts of one length: filled up, or rid of what fills them.

    Args:
        token_ids: int64 [B, L].
        valid: bool [B, L], False at the end where a prompt is shorter.
        size: L to be, with the image token.

    Raises:
        ValueError: if a prompt is longer.
    """
    extra = token_ids.shape[1] - size
    if extra > 0 and valid[:, size:].any():
        longest = int(valid.sum(1).max()) - 1
        raise ValueError(
            f"a prompt has {longest} tokens besides the pictures and policy.tokenizer_max_length is {size - 1}; set "
            f"it to {longest} or more"
        )
    return F.pad(token_ids, (0, -extra)), F.pad(valid, (0, -extra))


def expand_image_token(
    token_ids: Tensor, valid: Tensor, image_token_id: int, present: Tensor, image_tokens: int
) -> tuple[Tensor, Tensor]:
    """Put the image tokens of all cameras in the place of the one that each prompt has.

    Args:
        token_ids: int64 [B, L].
        valid: bool [B, L].
        image_token_id: occurs once in each row.
        present: bool [B, C], which cameras a sample has.
        image_tokens: tokens of one camera.

    Returns:
        Token ids and validity, both [B, S]; tokens of absent cameras are not valid.
    """
    seen = present.repeat_interleave(image_tokens, dim=1)  # [B, M]
    count = seen.shape[1]
    index = torch.arange(token_ids.shape[1] + count - 1, device=token_ids.device)
    start = (token_ids == image_token_id).int().argmax(dim=1, keepdim=True)
    inside = (index >= start) & (index < start + count)
    source = torch.where(index < start, index, torch.where(inside, start, index - count + 1))
    seen = seen.gather(1, (index - start).clamp(0, count - 1))
    return token_ids.gather(1, source), valid.gather(1, source) & (seen | ~inside)
