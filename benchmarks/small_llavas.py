"""Small LLaVAs of every supported make, in code: of the memory benchmark and of the tests."""

from __future__ import annotations

from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaNextConfig,
    LlavaOnevisionConfig,
    MistralConfig,
    PreTrainedConfig,
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
