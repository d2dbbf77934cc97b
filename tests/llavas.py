"""Small LLaVAs as transformers runs them, with weights large enough to show errors."""

from __future__ import annotations

import torch
from transformers import (
    LlavaForConditionalGeneration,
    LlavaNextForConditionalGeneration,
    LlavaOnevisionForConditionalGeneration,
    PreTrainedConfig,
    PreTrainedModel,
)

from benchmarks.small_llavas import IMAGE_TOKEN_ID, MAKES, PAD_TOKEN_ID, llava_config

__all__ = ["IMAGE_TOKEN_ID", "MAKES", "PAD_TOKEN_ID", "enlarge", "llava_config", "plain_image_tokens", "plain_llava"]


def plain_llava(make: str, config: PreTrainedConfig | None = None) -> PreTrainedModel:
    """transformers' own model with random weights four times their usual size.

    At the usual size attention is nearly uniform and even wrong rotary positions move the output by only
    1e-2; at four times it they move it by about 1.
    """
    classes = {
        "next_mistral": LlavaNextForConditionalGeneration,
        "onevision": LlavaOnevisionForConditionalGeneration,
    }
    torch.manual_seed(0)
    model = classes.get(make, LlavaForConditionalGeneration)(config or llava_config(make)).eval()
    enlarge(model)
    return model


def plain_image_tokens(plain: PreTrainedModel, make: str, pixels: torch.Tensor) -> torch.Tensor:
    """transformers' own features of images [B * C, 3, height, width], without tiles: [B * C * N, D]."""
    config, options = plain.config, {}
    if make == "next_mistral":  # always tiles, so its pieces are called one by one
        hidden = plain.model.vision_tower(pixels, output_hidden_states=True).hidden_states
        features = plain.model.multi_modal_projector(hidden[config.vision_feature_layer][:, 1:])
        sizes = torch.full((len(pixels), 2), pixels.shape[-1])
        packed, _ = plain.model.pack_image_features(
            list(features[:, None]), sizes, "default", plain.model.image_newline
        )
        return torch.cat(list(packed))
    if make == "onevision":  # several images of one sample are taken as they are
        options["image_sizes"] = torch.full((len(pixels), 2), pixels.shape[-1])
        options["batch_num_images"] = torch.tensor([len(pixels)])
        pixels = pixels[:, None]
    features = plain.model.get_image_features(
        pixels,
        vision_feature_layer=config.vision_feature_layer,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        **options,
    ).pooler_output
    return torch.cat(list(features)).flatten(0, -2)


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
