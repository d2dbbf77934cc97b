"""A policy before anything is loaded: its config and its network on the meta device, from the name of

    a checkpoint of this policy      a directory or Hub id
    a train config                   $(deepfusion config llava_1.5_7b), or a file of yours
    a LLaVA                          a directory or Hub id, under this policy's default options
    llava-1.5-7b, onevision-0.5b     the same for two published LLaVAs, without the Hub; or `tiny`

Config files are read and never a weight.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import draccus
import torch
import yaml
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from lerobot.configs import FeatureType, PolicyFeature

from ..configuration_deepfusion import DeepFusionConfig
from ..llava.bounds import LLAVA_MODEL_TYPES
from ..llava.published import CONFIGS, SHORT_NAMES
from ..llava.reader import check_vlm_config, read_vlm_config
from ..llava.tiny import TINY
from ..network.lockstep import DeepFusionModel, build_model


def read_json(source: str) -> dict[str, Any]:
    """`config.json` of a directory or of the Hub, of which nothing else is read; published LLaVAs are known.

    Raises:
        ValueError: if there is none.
    """
    if source in CONFIGS:
        return CONFIGS[source]
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
        ValueError: if `source` is none of what the module's docstring lists, or for a field that does not exist or a
            value of the wrong type.
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
    elif source.endswith((".yaml", ".yml", ".json")) and not Path(source).is_dir():
        raise ValueError(
            f"{source}: there is no such file; `deepfusion config` lists the train configs that come along"
        )
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
    try:
        config = draccus.decode(DeepFusionConfig, {**fields, **overrides, "device": "cpu"})
    except draccus.utils.ParsingError as error:
        raise ValueError(str(error.__cause__ or error)) from error
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
    config.input_features = dict(config.input_features or {})  # none: --policy.input_features=null
    for index in range(count or 1):
        # The shape plays no part: images are resized to what the vision tower takes.
        feature = PolicyFeature(type=FeatureType.VISUAL, shape=(3, 1, 1))
        config.input_features[f"observation.images.<camera {index + 1}>"] = feature
