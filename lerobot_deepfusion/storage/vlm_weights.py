"""The weights of a pretrained LLaVA, from a local directory or the Hub, given to a perception."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import snapshot_download
from transformers import PreTrainedModel
from transformers import logging as transformers_logging
from transformers.models.auto.modeling_auto import MODEL_MAPPING

from ..llava.bounds import least_parameters
from ..llava.place import check_place
from ..network.perception import Perception
from .safetensors_files import StoredTensor, some, stored_tensors, weight_files


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
    folder = Path(check_place("policy.vlm_path", vlm_path))
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
