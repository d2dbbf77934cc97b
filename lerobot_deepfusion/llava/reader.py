"""What is read of a LLaVA besides its weights: from `tiny`, a local directory or the Hub.

What a policy must remember of it is a plain dict, `DeepFusionConfig.vlm_config`, that goes into
`config.json`; with it, and the tokenizer in the processor's state, a checkpoint needs nothing else.
"""

from __future__ import annotations

import json
from typing import Any

from tokenizers import Tokenizer
from transformers import AutoConfig, AutoProcessor, AutoTokenizer, PreTrainedConfig

from . import tiny
from .bounds import LLAVA_MODEL_TYPES, check_vlm_model, finite, without_code
from .chat_template import read_prompt
from .place import check_place

RESAMPLE = {2: "bilinear", 3: "bicubic"}  # as Pillow numbers them, and image processors after it


def read_vlm_config(vlm_path: str) -> dict[str, Any]:
    """What a policy keeps of a VLM besides its weights and tokenizer.

    Returns:
        `model` (the whole transformers config), `prompt` (the text around one task, with one image token),
        `image_token`, `image_mean` and `image_std` (three numbers each), and `image_resample`.

    Raises:
        ValueError: if `vlm_path` is no LLaVA, or its chat template or image processor is of another make.
        OSError: if it can't be found.
    """
    if vlm_path == tiny.TINY:
        return {
            "model": _as_json(tiny.tiny_llava_config()),
            "prompt": tiny.PROMPT,
            "image_token": tiny.IMAGE_TOKEN,
            "image_mean": list(tiny.IMAGE_MEAN),
            "image_std": list(tiny.IMAGE_STD),
            "image_resample": "bilinear",
        }
    vlm_path = check_place("policy.vlm_path", vlm_path)
    config = AutoConfig.from_pretrained(vlm_path, trust_remote_code=False)  # or it asks, and waits for an answer
    if config.model_type not in LLAVA_MODEL_TYPES:
        raise ValueError(
            f"policy.vlm_path={vlm_path!r} is a {config.model_type!r} model; "
            f"expected one of {', '.join(LLAVA_MODEL_TYPES)}"
        )
    processor = AutoProcessor.from_pretrained(vlm_path, trust_remote_code=False)
    images, tokenizer = processor.image_processor, processor.tokenizer
    if images.resample not in RESAMPLE:
        raise ValueError(
            f"policy.vlm_path={vlm_path!r}: its image processor resamples by {images.resample!r}; expected one of "
            f"{', '.join(RESAMPLE.values())}"
        )
    image_token = str(tokenizer.convert_ids_to_tokens(config.image_token_id))
    return {
        "model": _as_json(config),
        "prompt": read_prompt(vlm_path, processor, image_token),
        "image_token": image_token,
        "image_mean": list(images.image_mean),
        "image_std": list(images.image_std),
        "image_resample": RESAMPLE[images.resample],
    }


def check_vlm_config(vlm_config: dict[str, Any]) -> None:
    """
    Raises:
        ValueError: if an entry that `read_vlm_config` gives is missing or can't be one.
    """
    entries = {"model", "prompt", "image_token", "image_mean", "image_std", "image_resample"}
    if missing := entries - vlm_config.keys():
        raise ValueError(
            f"policy.vlm_config lacks {', '.join(sorted(missing))}; leave it empty to have it read from "
            "policy.vlm_path, or take the config.json of the checkpoint as it was saved"
        )
    for name, wanted, good in (
        ("prompt", "text", isinstance(vlm_config["prompt"], str)),
        ("image_token", "text", isinstance(vlm_config["image_token"], str) and vlm_config["image_token"] != ""),
        ("image_mean", "three finite numbers", finite(vlm_config["image_mean"], 3)),
        ("image_std", "three finite numbers above zero", finite(vlm_config["image_std"], 3, 0)),
        (
            "image_resample",
            f"one of {', '.join(RESAMPLE.values())}",
            vlm_config["image_resample"] in [*RESAMPLE.values()],
        ),
    ):
        if not good:
            raise ValueError(f"policy.vlm_config.{name}={vlm_config[name]!r:.200}: expected {wanted}")
    check_vlm_model(vlm_config["model"])


def llava_config_from_dict(values: dict[str, Any]) -> PreTrainedConfig:
    """A LLaVA config from what `PreTrainedConfig.to_dict` gave.

    Raises:
        ValueError: if it is not one of the LLaVA families, or a size is out of bounds.
    """
    check_vlm_model(values)
    values = without_code(values)
    return AutoConfig.for_model(values.pop("model_type"), **values)


def _as_json(config: PreTrainedConfig) -> dict[str, Any]:
    """The config as `config.json` gives it back, so that it equals itself when it is read again."""
    return json.loads(json.dumps(config.to_dict()))


def read_tokenizer(vlm_path: str) -> Tokenizer:
    """The VLM's tokenizer as one self-contained object, which neither pads nor cuts.

    Raises:
        ValueError: if it has no fast version.
    """
    tokenizer = (
        tiny.byte_tokenizer()
        if vlm_path == tiny.TINY
        else AutoTokenizer.from_pretrained(check_place("policy.vlm_path", vlm_path), trust_remote_code=False)
    )
    if not tokenizer.is_fast:
        raise ValueError(f"policy.vlm_path={vlm_path!r} has no fast tokenizer, which checkpoints need")
    own = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    own.no_padding()
    own.no_truncation()
    return own
