"""Bounds on what a LLaVA's config may ask for: a wrong or hostile file is refused before anything is allocated.

They are far above any model that exists, and far below what makes a machine run out of memory before the
real check: the number and shapes of weights, which must be those of the checkpoint's file.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

# Fields of the VLM's transformers config, in whichever part they stand. The largest LLaVA has 80 layers of 8192.
VLM_SIZES = {
    "hidden_size": (1, 2**16),
    "intermediate_size": (1, 2**19),
    "num_hidden_layers": (1, 1024),  # each is a Python object even without memory for its weights
    "num_attention_heads": (1, 1024),
    "num_key_value_heads": (1, 1024),
    "head_dim": (1, 4096),
    "vocab_size": (1, 2**22),
    "max_position_embeddings": (1, 2**24),
    "sliding_window": (1, 2**24),
    "image_size": (1, 2**13),
    "patch_size": (1, 2**10),
    "num_channels": (3, 3),  # pictures are RGB
    "num_tokens": (1, 4096),  # of the tiny tower
    "num_labels": (0, 10_000),  # transformers makes a table of that many names
}
# Then derived, or off.
MAY_BE_NONE = {"num_key_value_heads", "head_dim", "sliding_window", "num_labels"}
MAX_PATCHES_A_SIDE = 512  # position ids, which are real memory, are its square
MAX_CHANNELS = 16, 4096  # convolutions of the tiny tower, and the width of each
MAX_NUMBER = 2**31  # of whole numbers that are not named above
MAX_DEPTH = 16  # of nesting; real configs have 3

LLAVA_MODEL_TYPES = ("llava", "llava_next", "llava_onevision")
VISION_TYPES = ("clip_vision_model", "siglip_vision_model", "deepfusion_tiny_vision")
TEXT_TYPES = ("llama", "mistral", "qwen2")
# Fields by which transformers would fetch code or kernels by name, or build other layers than those here.
NOT_TAKEN = (
    "auto_map",
    "attn_implementation",
    "_attn_implementation",
    "experts_implementation",
    "quantization_config",
)


def check_size(name: str, value: Any, bounds: tuple[int, int]) -> None:
    """
    Raises:
        ValueError: naming the field, the value and the bound.
    """
    low, high = bounds
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{name}={value!r:.200}: needs a whole number, from {low} to {high}")
    if value < low:
        raise ValueError(f"{name}={_short(value)}: needs at least {low}")
    if value > high:
        raise ValueError(f"{name}={_short(value)}: needs at most {high}, far above any real use")


def check_vlm_model(model: Any) -> None:
    """Sizes, types and parts of a LLaVA's config, as far as memory and code that is run depend on them.

    Args:
        model: `policy.vlm_config.model`, as transformers' `to_dict` gave it.

    Raises:
        ValueError: naming the field, its value and what was expected.
    """
    if not isinstance(model, dict):
        raise ValueError(f"policy.vlm_config.model is {type(model).__name__}, expected the config of a LLaVA")
    if model.get("model_type") not in LLAVA_MODEL_TYPES:
        raise ValueError(
            f"VLM of model_type {model.get('model_type')!r:.80}: expected one of {', '.join(LLAVA_MODEL_TYPES)}"
        )
    for path, name, value in _walk(model, "model"):
        label = f"policy.vlm_config.{path}"
        if name in VLM_SIZES and not (value is None and name in MAY_BE_NONE):
            check_size(label, value, VLM_SIZES[name])
        elif isinstance(value, int) and abs(value) > MAX_NUMBER:
            raise ValueError(f"{label}={_short(value)}: needs at most {MAX_NUMBER}, far above any real use")
    for name, types in (("vision_config", VISION_TYPES), ("text_config", TEXT_TYPES)):
        part = model.get(name)
        if not isinstance(part, dict):
            raise ValueError(
                f"policy.vlm_config.model.{name} is {part!r:.80}, expected the config of a {name[:-7]} model"
            )
        if part.get("model_type") not in types:
            raise ValueError(
                f"policy.vlm_config.model.{name}.model_type={part.get('model_type')!r:.80}: expected one of "
                f"{', '.join(types)}"
            )
    _check_tower(model["vision_config"], model.get("vision_feature_layer", -1))


def _check_tower(vision: dict[str, Any], layer: Any) -> None:
    """How many patches, and which layer's features; the defaults are those of transformers."""
    patches = vision.get("image_size", 224) // vision.get("patch_size", 16)
    if "patch_size" in vision and not 1 <= patches <= MAX_PATCHES_A_SIDE:
        raise ValueError(
            f"policy.vlm_config.model.vision_config.image_size={vision.get('image_size', 224)} is {patches} patches "
            f"of patch_size={vision['patch_size']} in a row: needs 1 to {MAX_PATCHES_A_SIDE}"
        )
    channels = vision.get("channels", [])
    most, widest = MAX_CHANNELS
    if not isinstance(channels, list) or len(channels) > most:
        raise ValueError(
            f"policy.vlm_config.model.vision_config.channels={channels!r:.80}: needs a list of at most {most}"
        )
    for width in channels:
        check_size("policy.vlm_config.model.vision_config.channels", width, (1, widest))
    layers = vision.get("num_hidden_layers", 12)
    if isinstance(layer, int) and not -layers - 1 <= layer <= layers:
        raise ValueError(
            f"policy.vlm_config.model.vision_feature_layer={_short(layer)}: the vision tower has {layers} layers"
        )


def _walk(values: Any, path: str, depth: int = 0) -> Iterator[tuple[str, str, Any]]:
    """Path, name and value of all that stands in nested dicts and lists."""
    if depth > MAX_DEPTH:
        raise ValueError(f"policy.vlm_config.{path} is nested more than {MAX_DEPTH} deep")
    items = values.items() if isinstance(values, dict) else enumerate(values)
    for name, value in items:
        yield f"{path}.{name}", str(name), value
        if isinstance(value, dict | list):
            yield from _walk(value, f"{path}.{name}", depth + 1)


def without_code(values: dict[str, Any]) -> dict[str, Any]:
    """The config without the fields that name code; which attention runs is decided here."""
    return {
        key: without_code(value) if isinstance(value, dict) else value
        for key, value in values.items()
        if key not in NOT_TAKEN
    }


def least_parameters(model: dict[str, Any]) -> int:
    """Weights that a checkpoint of this LLaVA has at least: the text model's embeddings, and the MLPs."""
    text, vision = model["text_config"], model["vision_config"]
    least = text.get("hidden_size", 0) * text.get("vocab_size", 0)
    for part, matrices in ((text, 3), (vision, 2)):
        sizes = (part.get(name, 0) for name in ("num_hidden_layers", "hidden_size", "intermediate_size"))
        least += matrices * math.prod(sizes)
    return least


def finite(values: Any, count: int, least: float = -math.inf) -> bool:
    """Whether it is a list of that many finite numbers above `least`."""
    return (
        isinstance(values, list | tuple)
        and len(values) == count
        and all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
        and all(math.isfinite(value) and value > least for value in values)
    )


def _short(value: int) -> str:
    """A whole number in a message; Python refuses to print one of many thousand digits."""
    return (
        str(value) if value.bit_length() < 128 else f"{'-' if value < 0 else ''}2**{value.bit_length() - 1} and more"
    )
