"""The I/O contract of a policy, before anything is loaded: `deepfusion-info <what>`.

What goes in and comes out, what the expert reads of which VLM layer, what is trained, and how much memory acting
and training take. It builds the model on the meta device and reads config files only, never a weight. <what> is

    a checkpoint of this policy      a directory or Hub id
    a train config                   configs/policy/llava_1.5_7b.yaml
    a LLaVA                          a directory or Hub id, under this policy's default options
    llava-1.5-7b, onevision-0.5b     the same for two published LLaVAs, without the Hub; or `tiny`
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import draccus
import torch
import yaml
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from lerobot.configs import FeatureType, PolicyFeature

from .configuration_deepfusion import TINY, DeepFusionConfig
from .describe import report
from .limits import LLAVA_MODEL_TYPES
from .lockstep import DeepFusionModel, build_model
from .vlm_source import check_vlm_config, read_vlm_config

# The shapes of published checkpoints, from their config.json.
PUBLISHED: dict[str, dict[str, Any]] = {
    "llava-hf/llava-1.5-7b-hf": {
        "model_type": "llava",
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "vision_config": {
            "model_type": "clip_vision_model",
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "image_size": 336,
            "patch_size": 14,
        },
        "text_config": {
            "model_type": "llama",
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "vocab_size": 32064,
            "max_position_embeddings": 4096,
        },
    },
    "llava-hf/llava-onevision-qwen2-0.5b-ov-hf": {
        "model_type": "llava_onevision",
        "vision_feature_layer": -1,
        "vision_config": {
            "model_type": "siglip_vision_model",
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "num_hidden_layers": 26,
            "num_attention_heads": 16,
            "image_size": 384,
            "patch_size": 14,
        },
        "text_config": {
            "model_type": "qwen2",
            "hidden_size": 896,
            "intermediate_size": 4864,
            "num_hidden_layers": 24,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "vocab_size": 152000,
        },
    },
}
SHORT_NAMES = dict(zip(("llava-1.5-7b", "onevision-0.5b"), PUBLISHED, strict=True))
BATCH_SIZE, LORA_RANK = 8, 16  # LeRobot's own defaults, where no train config gives them


# --- what is asked about ----------------------------------------------------------------------------------


def read_json(source: str) -> dict[str, Any]:
    """`config.json` of a directory or of the Hub, of which nothing else is read; published LLaVAs are known.

    Raises:
        ValueError: if there is none.
    """
    if source in PUBLISHED:
        return PUBLISHED[source]
    try:
        path = Path(source) / "config.json" if Path(source).is_dir() else hf_hub_download(source, "config.json")
        return json.loads(Path(path).read_text())
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        raise ValueError(
            f"{source!r}: no config.json in a directory of that name or on the Hub ({str(error).splitlines()[0]}); "
            f"{' and '.join(SHORT_NAMES)} need neither"
        ) from error


def read_policy(source: str, overrides: dict[str, Any]) -> tuple[DeepFusionConfig, dict[str, Any]]:
    """The policy's config with some fields replaced, and the rest of a train config if it is one.

    Raises:
        ValueError: if `source` is none of what the module's docstring lists.
        draccus.utils.DecodingError: for a field that does not exist or a value of the wrong type.
    """
    rest: dict[str, Any] = {}
    source = SHORT_NAMES.get(source, source)
    if source == TINY:
        fields = {"vlm_path": TINY}
    elif Path(source).is_file():
        try:
            rest = yaml.safe_load(Path(source).read_text())
        except yaml.YAMLError as error:
            raise ValueError(f"{source} is not YAML, as a train config is: {error}") from error
        if not isinstance(rest, dict) or not isinstance(rest.get("policy"), dict):
            raise ValueError(f"{source}: a train config has a `policy:` block, and this file has none")
        fields = dict(rest["policy"])
    else:
        fields = dict(read_json(source))
        if fields.get("model_type") in LLAVA_MODEL_TYPES:
            fields = {"vlm_path": source}
    found = fields.pop("type", "deepfusion" if "vlm_path" in fields else fields.get("model_type"))
    if found != "deepfusion":
        raise ValueError(
            f"{source} is a {found!r} model; expected a 'deepfusion' policy or one of {', '.join(LLAVA_MODEL_TYPES)}"
        )
    # Where it would run does not matter here, and LeRobot warns of a device that this machine lacks.
    config = draccus.decode(DeepFusionConfig, {**fields, **overrides, "device": "cpu"})
    if config.vlm_config is None and config.vlm_path == TINY:
        config.vlm_config = read_vlm_config(TINY)
    return config, rest


def build(config: DeepFusionConfig) -> DeepFusionModel:
    """The policy's network on the meta device, frozen where the policy would freeze it.

    Raises:
        ValueError: if its VLM is not found or is no LLaVA that can be cut.
    """
    if config.vlm_config is None:
        vlm = read_json(config.vlm_path)
    else:
        check_vlm_config(config.vlm_config)
        vlm = config.vlm_config["model"]
    with torch.device("meta"):
        return build_model(config, vlm)


def assume_cameras(config: DeepFusionConfig, count: int | None) -> None:
    """Put cameras where the config leaves them to the data set: `count`, or one.

    Raises:
        ValueError: if there is a count and the config has cameras.
    """
    if config.image_features:
        if count is not None:
            raise ValueError(f"--cameras={count}: the config has its own, {', '.join(config.cameras)}")
        return
    for index in range(count or 1):
        # The shape plays no part: images are resized to what the vision tower takes.
        feature = PolicyFeature(type=FeatureType.VISUAL, shape=(3, 1, 1))
        config.input_features[f"observation.images.<camera {index + 1}>"] = feature


# --- command line -----------------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> None:
    """Command line entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("what", help="checkpoint, train config, LLaVA or one of the two names")
    parser.add_argument("--batch-size", type=int, help=f"of a training step; the train config's, else {BATCH_SIZE}")
    parser.add_argument("--cameras", type=int, help="how many, where the config leaves it to the data set; else 1")
    parser.add_argument_group("policy options", "--policy.<field>=<value> replaces one, as in lerobot-train")
    args, others = parser.parse_known_args(argv)
    for name in ("batch_size", "cameras"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')}={getattr(args, name)}: needs at least 1")
    overrides = {}
    for option in others:
        name, equals, value = option.removeprefix("--policy.").partition("=")
        if not option.startswith("--policy.") or not equals:
            parser.error(f"{option}: expected --policy.<field>=<value>")
        overrides[name] = yaml.safe_load(value)
    try:
        config, rest = read_policy(args.what, overrides)
        assume_cameras(config, args.cameras)
        peft = rest.get("peft") or {}
        batch_size = args.batch_size or rest.get("batch_size", BATCH_SIZE)
        model = build(config)
        if peft:  # freezes what it adapts
            model.requires_grad_(False)
        print(report(config, model, batch_size, peft.get("r") or LORA_RANK))
    except draccus.utils.ParsingError as error:
        sys.exit(f"deepfusion-info: {error.__cause__ or error}")
    except ValueError as error:
        sys.exit(f"deepfusion-info: {error}")


if __name__ == "__main__":
    main()
