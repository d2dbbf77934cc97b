"""LLaVAs on the Hub: the shapes of two, known without it, and the licences of some."""

from __future__ import annotations

from typing import Any

# Their shapes, from their config.json.
CONFIGS: dict[str, dict[str, Any]] = {
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
SHORT_NAMES = dict(zip(("llava-1.5-7b", "onevision-0.5b"), CONFIGS, strict=True))
# Licences, as their cards state them; a policy's weights contain the VLM's.
LICENCES = {
    "llava-hf/llava-onevision-qwen2-0.5b-ov-hf": "apache-2.0",
    "llava-hf/llava-onevision-qwen2-7b-ov-hf": "apache-2.0",
    "llava-hf/llava-1.5-7b-hf": "llama2",
    "llava-hf/llava-1.5-13b-hf": "llama2",
}
