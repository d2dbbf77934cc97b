"""Small LLaVAs of every supported make, in code, with weights large enough to show errors."""

from __future__ import annotations

import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    SiglipVisionConfig,
)

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


MAKES = ("clip_llama", "siglip_qwen2", "clip_mistral", "next_mistral", "onevision")


def llava_config(make: str, image_token_id: int = IMAGE_TOKEN_ID, **text: int | bool) -> PreTrainedConfig:
    """Config of a small LLaVA, named by its vision tower and text model.

    `clip_llama` is LLaVA-1.5, `siglip_qwen2` LLaVA-interleave, `next_mistral` LLaVA-1.6 and `onevision`
    LLaVA-OneVision; all but the first have grouped queries.
    """
    values = {**TEXT, "num_key_value_heads": 4 if make == "clip_llama" else 2, **text}
    if make in ("clip_llama", "clip_mistral", "next_mistral"):
        vision = CLIPVisionConfig(**VISION)
        language = LlamaConfig(**values) if make == "clip_llama" else MistralConfig(**values, sliding_window=None)
        layer, strategy = -2, "default"
    else:
        vision, language, layer, strategy = SiglipVisionConfig(**VISION), Qwen2Config(**values), -1, "full"
    classes = {"next_mistral": LlavaNextConfig, "onevision": LlavaOnevisionConfig}
    tiles = {"image_grid_pinpoints": [[32, 32]]} if make in classes else {}
    return classes.get(make, LlavaConfig)(
        vision_config=vision,
        text_config=language,
        image_token_index=image_token_id,
        vision_feature_layer=layer,
        vision_feature_select_strategy=strategy,
        tie_word_embeddings=values.get("tie_word_embeddings", False),
        **tiles,
    )


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
