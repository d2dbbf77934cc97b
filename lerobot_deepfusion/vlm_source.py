"""Where a LLaVA comes from: `tiny`, a local directory or the Hub.

What a policy must remember of it is a plain dict, `DeepFusionConfig.vlm_config`, that goes into
`config.json`; with it, and the tokenizer in the processor's state, a checkpoint needs nothing else.
"""

from __future__ import annotations

import json
from typing import Any

from tokenizers import Tokenizer
from transformers import AutoConfig, AutoImageProcessor, AutoProcessor, AutoTokenizer, PreTrainedConfig
from transformers.models.auto.modeling_auto import AutoModel

from . import tiny
from .perception import LLAVA_MODEL_TYPES, Perception

TASK = "{task}"  # stands for the task text in a prompt


def read_vlm_config(vlm_path: str) -> dict[str, Any]:
    """What a policy keeps of a VLM besides its weights and tokenizer.

    Returns:
        `model` (the whole transformers config), `prompt` (the text around one task, with one image token
        for each camera to come), `image_token`, `image_mean` and `image_std` (three numbers each).

    Raises:
        ValueError: if `vlm_path` is no LLaVA, or has no chat template or fast tokenizer.
        OSError: if it can't be found; transformers' message.
    """
    if vlm_path == "tiny":
        return {
            "model": _as_json(tiny.tiny_llava_config()),
            "prompt": tiny.PROMPT,
            "image_token": tiny.IMAGE_TOKEN,
            "image_mean": list(tiny.IMAGE_MEAN),
            "image_std": list(tiny.IMAGE_STD),
        }
    config = AutoConfig.from_pretrained(vlm_path)
    if config.model_type not in LLAVA_MODEL_TYPES:
        raise ValueError(
            f"policy.vlm_path={vlm_path!r} is a {config.model_type!r} model; "
            f"expected one of {', '.join(LLAVA_MODEL_TYPES)}"
        )
    images = AutoImageProcessor.from_pretrained(vlm_path)
    image_token = AutoTokenizer.from_pretrained(vlm_path).convert_ids_to_tokens(config.image_token_id)
    conversation = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": TASK}]}]
    prompt = AutoProcessor.from_pretrained(vlm_path).apply_chat_template(conversation, add_generation_prompt=True)
    if prompt.count(image_token) != 1 or prompt.count(TASK) != 1:
        raise ValueError(
            f"policy.vlm_path={vlm_path!r}: its chat template gives {prompt!r}, where one {image_token!r} "
            "and one task text were expected"
        )
    return {
        "model": _as_json(config),
        "prompt": prompt,
        "image_token": image_token,
        "image_mean": list(images.image_mean),
        "image_std": list(images.image_std),
    }


def _as_json(config: PreTrainedConfig) -> dict[str, Any]:
    """The config as `config.json` gives it back, so that it equals itself when it is read again."""
    return json.loads(json.dumps(config.to_dict()))


def read_tokenizer(vlm_path: str) -> Tokenizer:
    """The VLM's tokenizer as one self-contained object.

    Raises:
        ValueError: if it has no fast version.
    """
    tokenizer = tiny.byte_tokenizer() if vlm_path == "tiny" else AutoTokenizer.from_pretrained(vlm_path)
    if not tokenizer.is_fast:
        raise ValueError(f"policy.vlm_path={vlm_path!r} has no fast tokenizer, which checkpoints need")
    return Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())


def load_vlm_weights(perception: Perception, vlm_path: str) -> None:
    """Put a pretrained LLaVA's weights into a perception; `tiny` has none and keeps its random ones.

    Raises:
        RuntimeError: if the checkpoint lacks a weight that the perception has; the message names it.
    """
    if vlm_path == "tiny":
        return
    # transformers gives a weight that it does not find random values, and a warning.
    llava, info = AutoModel.from_pretrained(
        vlm_path, config=perception.config, dtype="auto", output_loading_info=True
    )
    source, wanted = llava.state_dict(), perception.state_dict()
    missing = sorted((set(wanted) - set(source)) | (set(wanted) & set(info["missing_keys"])))
    if missing:
        raise RuntimeError(f"policy.vlm_path={vlm_path!r} lacks the weights {', '.join(missing[:5])}")
    perception.load_state_dict({key: source[key] for key in wanted})
