"""Shared builders: small LLaVAs of every supported make, in code, with weights large enough to show errors."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MUJOCO_GL", "egl")

import pytest
import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    PreTrainedConfig,
    Qwen2Config,
    SiglipVisionConfig,
)

torch.set_num_threads(1)

IMAGE_TOKEN_ID = 90
PAD_TOKEN_ID = 0
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "head_dim": 8,
    "vocab_size": 96,
    "max_position_embeddings": 256,
    "pad_token_id": PAD_TOKEN_ID,
}
VISION = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 24,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
}


def llava_config(make: str) -> PreTrainedConfig:
    """Config of a small LLaVA: `clip_llama` (as LLaVA-1.5), `siglip_qwen2` (GQA) or `onevision` (GQA)."""
    if make == "clip_llama":
        return LlavaConfig(
            vision_config=CLIPVisionConfig(**VISION),
            text_config=LlamaConfig(**TEXT, num_key_value_heads=4),
            image_token_index=IMAGE_TOKEN_ID,
            vision_feature_layer=-2,
            vision_feature_select_strategy="default",
        )
    text = Qwen2Config(**TEXT, num_key_value_heads=2)
    vision = SiglipVisionConfig(**VISION)
    if make == "siglip_qwen2":
        return LlavaConfig(
            vision_config=vision,
            text_config=text,
            image_token_index=IMAGE_TOKEN_ID,
            vision_feature_layer=-1,
            vision_feature_select_strategy="full",
        )
    return LlavaOnevisionConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE_TOKEN_ID,
        vision_feature_layer=-1,
        image_grid_pinpoints=[[32, 32]],
    )


MAKES = ("clip_llama", "siglip_qwen2", "onevision")


def plain_llava(make: str) -> torch.nn.Module:
    """transformers' own model with random weights four times their usual size.

    At the usual size attention is nearly uniform and even wrong rotary positions move the output by only
    1e-2; at four times it they move it by about 1.
    """
    classes = {"onevision": LlavaOnevisionForConditionalGeneration}
    torch.manual_seed(0)
    model = classes.get(make, LlavaForConditionalGeneration)(llava_config(make)).eval()
    enlarge(model)
    return model


def enlarge(module: torch.nn.Module, factor: float = 4.0) -> None:
    """Multiply every weight matrix by `factor`, and give vectors (norms, biases) some spread."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            if not parameter.any() and parameter.ndim > 1:  # zero-initialised
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
            elif parameter.ndim > 1:
                parameter.mul_(factor)
            else:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


@pytest.fixture(params=MAKES)
def make(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=("kv", "hidden", "late"))
def fusion(request: pytest.FixtureRequest) -> str:
    return request.param
