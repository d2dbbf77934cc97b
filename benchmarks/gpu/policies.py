"""Policies of the shipped configs with random weights, without a download, and batches for them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.utils.constants import ACTION, OBS_LANGUAGE_ATTENTION_MASK, OBS_LANGUAGE_TOKENS, OBS_STATE

from lerobot_deepfusion.cost.blueprint import read_policy
from lerobot_deepfusion.llava.published import CONFIGS
from lerobot_deepfusion.modeling_deepfusion import DeepFusionPolicy
from lerobot_deepfusion.storage.shipped import shipped_configs
from lerobot_deepfusion.training.precision import set_precision

from ..small_llavas import IMAGE_TOKEN_ID, llava_config
from ..speed.peers import fill

CAMERAS = ("observation.images.front", "observation.images.wrist")
DIMENSIONS = 14  # of state and action: two arms


@dataclass(frozen=True)
class Kind:
    """What is built.

    Attributes:
        config: name of a shipped train config.
        small: make of the small LLaVA that takes the place of its own with `--small`.
    """

    config: str
    small: str


ONEVISION, SEVEN_B = Kind("onevision_0.5b", "onevision"), Kind("llava_1.5_7b", "clip_llama")


def random_policy(kind: Kind, small: bool, device: str, **changes: Any) -> DeepFusionPolicy:
    """A policy as its config has it, two cameras, chunks of 50, and weights that know nothing."""
    config, _ = read_policy(str(shipped_configs()[kind.config]), changes)
    model = json.loads(json.dumps(llava_config(kind.small).to_dict())) if small else CONFIGS[config.vlm_path]
    config.device = device
    config.vlm_config = {
        "model": model,
        "prompt": "<image>",
        "image_token": "<image>",
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "image_resample": "bicubic",
    }
    config.input_features = {name: PolicyFeature(FeatureType.VISUAL, (3, 480, 640)) for name in CAMERAS}
    config.input_features[OBS_STATE] = PolicyFeature(FeatureType.STATE, (DIMENSIONS,))
    config.output_features = {ACTION: PolicyFeature(FeatureType.ACTION, (DIMENSIONS,))}
    policy = DeepFusionPolicy(config, vlm_weights=False)  # which leaves them empty
    set_precision(policy, config.dtype)
    torch.manual_seed(0)
    fill(policy, torch.device(device))
    for layer in policy.model.expert.backbone.layers:
        policy.model.expert.backbone._init_weights(layer)  # gates that are open
    return policy


def make_batch(policy: DeepFusionPolicy, size: int) -> dict[str, Any]:
    """A pre-processed batch to train and to act on: pictures as the cameras give them, a prompt without padding."""
    device, words = policy.config.device, policy.config.tokenizer_max_length
    generator = torch.Generator().manual_seed(0)
    known = policy.model.perception.config
    vocabulary = min(known.text_config.vocab_size, known.image_token_id, IMAGE_TOKEN_ID)
    tokens = torch.randint(1, vocabulary, (size, words + 1), generator=generator)
    tokens[:, 0] = known.image_token_id
    batch: dict[str, Any] = {name: torch.rand(size, 3, 480, 640, generator=generator) for name in CAMERAS}
    batch |= {
        OBS_STATE: torch.randn(size, DIMENSIONS, generator=generator),
        OBS_LANGUAGE_TOKENS: tokens,
        OBS_LANGUAGE_ATTENTION_MASK: torch.ones_like(tokens),
        ACTION: torch.randn(size, policy.config.chunk_size, DIMENSIONS, generator=generator),
        "action_is_pad": torch.zeros(size, policy.config.chunk_size, dtype=torch.bool),
    }
    return {key: value.to(device) for key, value in batch.items()}
