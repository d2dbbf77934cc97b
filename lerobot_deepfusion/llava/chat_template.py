"""The text around one task, as a LLaVA's chat template writes it."""

from __future__ import annotations

from typing import Any

TASK = "{task}"  # stands for the task text


def read_prompt(vlm_path: str, processor: Any, image_token: str) -> str:
    """The chat template around one picture and one task."""
    conversation = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": TASK}]}]
    prompt = processor.apply_chat_template(conversation, add_generation_prompt=True)
    if prompt.count(image_token) != 1 or prompt.count(TASK) != 1:
        raise ValueError(
            f"policy.vlm_path={vlm_path!r}: its chat template gives {prompt!r}, where one {image_token!r} "
            "and one task text were expected"
        )
    bos_token = processor.tokenizer.bos_token
    if bos_token and processor.tokenizer("").tokens() == [bos_token]:
        prompt = prompt.removeprefix(bos_token)  # the tokenizer puts one there itself
    return prompt
