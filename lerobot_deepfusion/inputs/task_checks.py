"""All task texts of a data set, as the prompts that they become, before the first of them is drawn."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer

from .prompt import fill_prompt


def check_tasks(tasks: Sequence[str], prompt: str, image_token: str, tokenizer: Tokenizer, max_length: int) -> None:
    """
    Args:
        tasks: of the data set.
        prompt, image_token, tokenizer: of the policy's prompts.
        max_length: `policy.tokenizer_max_length`.

    Raises:
        ValueError: naming the longest text, or one with the image token in it.
    """
    # The image token stands for the pictures, which have their own places.
    lengths = {task: len(tokenizer.encode(fill_prompt(prompt, image_token, task)).ids) - 1 for task in tasks}
    longest = max(lengths, key=lambda task: lengths[task], default="")
    if lengths.get(longest, 0) > max_length:
        too_long = sum(length > max_length for length in lengths.values())
        raise ValueError(
            f"the task {longest!r} of the data set becomes a prompt of {lengths[longest]} tokens besides the "
            f"pictures and policy.tokenizer_max_length is {max_length}; {too_long} of {len(lengths)} texts are too "
            f"long. Set --policy.tokenizer_max_length={lengths[longest]} or more, or shorten the text "
            "(lerobot-edit-dataset)"
        )
