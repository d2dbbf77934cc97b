"""What a LLaVA's config says of its tokens: how many an image becomes, and how many the text model can tell apart."""

from __future__ import annotations

from transformers import PreTrainedConfig

from .tiny import TinyVisionConfig


def context_window(config: PreTrainedConfig) -> int:
    """Positions that the text model can tell apart, and attends over without a sliding window."""
    text = config.text_config
    return min(text.max_position_embeddings, getattr(text, "sliding_window", None) or text.max_position_embeddings)


def patches_in_a_row(config: PreTrainedConfig) -> int:
    """Of a vision tower that has patches."""
    return config.vision_config.image_size // config.vision_config.patch_size


def tokens_nowhere(config: PreTrainedConfig) -> tuple[int, int]:
    """Tokens of one image before and behind those of its patches: a class token, a newline."""
    clip = config.vision_config.model_type == "clip_vision_model"
    class_token = clip and config.vision_feature_select_strategy == "full"
    return int(class_token), int(config.model_type in ("llava_next", "llava_onevision"))


def image_tokens(config: PreTrainedConfig, pooling: int = 1) -> int:
    """Tokens that one image becomes.

    Raises:
        ValueError: if the patches do not divide into blocks of `pooling` x `pooling`.
    """
    vision = config.vision_config
    if isinstance(vision, TinyVisionConfig):
        if pooling > 1:
            raise ValueError(f"image_token_pooling={pooling}: the tiny LLaVA has no patches to average, set it to 1")
        return vision.num_tokens
    side = patches_in_a_row(config)
    class_token, newline = tokens_nowhere(config)
    if pooling > 1 and (side % pooling or class_token):
        raise ValueError(
            f"image_token_pooling={pooling}: the vision tower gives {side} x {side} patches"
            f"{' and a class token' if class_token else ''}, which do not divide into such blocks"
        )
    return (side // pooling) ** 2 + class_token + newline
