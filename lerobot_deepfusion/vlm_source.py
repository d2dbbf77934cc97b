"""Where a LLaVA comes from: `tiny`, a local directory or the Hub.

What a policy must remember of it is a plain dict, `DeepFusionConfig.vlm_config`, that goes into
`config.json`; with it, and the tokenizer in the processor's state, a checkpoint needs nothing else.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import snapshot_download
from tokenizers import Tokenizer
from transformers import (
    AutoConfig,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers import logging as transformers_logging
from transformers.models.auto.modeling_auto import MODEL_MAPPING

from . import tiny
from .limits import LLAVA_MODEL_TYPES, check_vlm_model, finite, least_parameters
from .perception import Perception
from .prompt import TASK
from .weights import StoredTensor, some, stored_tensors, weight_files

RESAMPLE = {2: "bilinear", 3: "bicubic"}  # as Pillow numbers them, and image processors after it


def read_vlm_config(vlm_path: str) -> dict[str, Any]:
    """What a policy keeps of a VLM besides its weights and tokenizer.

    Returns:
        `model` (the whole transformers config), `prompt` (the text around one task, with one image token),
        `image_token`, `image_mean` and `image_std` (three numbers each), and `image_resample`.

    Raises:
        ValueError: if `vlm_path` is no LLaVA, or its chat template or image processor is of another make.
        OSError: if it can't be found; transformers' message.
    """
    if vlm_path == "tiny":
        return {
            "model": _as_json(tiny.tiny_llava_config()),
            "prompt": tiny.PROMPT,
            "image_token": tiny.IMAGE_TOKEN,
            "image_mean": list(tiny.IMAGE_MEAN),
            "image_std": list(tiny.IMAGE_STD),
            "image_resample": "bilinear",
        }
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
        "prompt": _read_prompt(vlm_path, processor, image_token),
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
            f"policy.vlm_config lacks {some(missing)}; leave it empty to have it read from policy.vlm_path, or take "
            "the config.json of the checkpoint as it was saved"
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


def _read_prompt(vlm_path: str, processor: Any, image_token: str) -> str:
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
        if vlm_path == "tiny"
        else AutoTokenizer.from_pretrained(vlm_path, trust_remote_code=False)
    )
    if not tokenizer.is_fast:
        raise ValueError(f"policy.vlm_path={vlm_path!r} has no fast tokenizer, which checkpoints need")
    own = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    own.no_padding()
    own.no_truncation()
    return own


def check_vlm_weights(vlm_path: str, model: dict[str, Any]) -> None:
    """Before a network of its size is built: do the files hold as many numbers as the config describes?

    Raises:
        RuntimeError: if they hold fewer.
        ValueError: if a file is damaged.
        FileNotFoundError: if it has no safetensors files.
    """
    held, needed = sum(math.prod(t.dimensions) for t in _vlm_tensors(vlm_path).values()), least_parameters(model)
    if held < needed:
        raise RuntimeError(
            f"policy.vlm_path={vlm_path!r} lacks weights that its config.json asks for: its files hold {held} "
            f"numbers and the config describes {needed} and more"
        )


def _vlm_tensors(vlm_path: str) -> dict[str, StoredTensor]:
    folder = Path(vlm_path)
    if not folder.is_dir():
        folder = Path(snapshot_download(vlm_path, allow_patterns=["*.safetensors", "*.safetensors.index.json"]))
    return stored_tensors(weight_files(folder))


def load_vlm_weights(perception: Perception, vlm_path: str, dtype: torch.dtype) -> None:
    """Give a perception built under `empty_weights` a pretrained LLaVA's weights.

    Peak memory is that of the weights kept: each tensor is read, converted and let go by itself.

    Args:
        perception: to be filled.
        vlm_path: directory or Hub id.
        dtype: of the weights, whatever they are stored in.

    Raises:
        RuntimeError: if the checkpoint lacks a weight or has it in another shape; the message names it.
        ValueError: if a file is damaged.
        FileNotFoundError: if it has no safetensors files.
    """
    model_class = cast(type[PreTrainedModel], MODEL_MAPPING[type(perception.config)])
    with _quiet_transformers():
        # transformers knows the older names of weights; what it does not find it gives random values.
        loaded: Any = model_class.from_pretrained(
            None,
            config=perception.config,
            state_dict=_vlm_tensors(vlm_path),
            dtype=dtype,
            ignore_mismatched_sizes=True,  # or its error would point to the report that is not printed
            output_loading_info=True,
        )
    llava, info = loaded
    read, wanted = llava.state_dict(), perception.state_dict()
    missing = (wanted.keys() - read.keys()) | (wanted.keys() & info["missing_keys"])
    misshaped = wanted.keys() & {key for key, *_ in info["mismatched_keys"]}
    if missing or misshaped:
        raise RuntimeError(
            f"policy.vlm_path={vlm_path!r} lacks weights that its config.json asks for, or has them in another "
            f"shape: {some(missing | misshaped)}"
        )
    perception.load_state_dict({key: read[key] for key in wanted}, assign=True)


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Without its report of weights that are not used: the cut parts are left out on purpose."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
