"""The offline LLaVA: transformers' real classes at a size that a CPU trains from scratch, no download.

`--policy.vlm_path=tiny` builds it with random weights. Its tokenizer reads bytes, so any text in any
language has tokens, and it has nothing to be trained on.
"""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, PreTrainedTokenizerFast

IMAGE_TOKEN, PAD_TOKEN = "<image>", "<pad>"
PROMPT = f"{IMAGE_TOKEN}{{task}}\n"  # what a chat template is to a pretrained LLaVA
IMAGE_MEAN, IMAGE_STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token for each of the 256 bytes, plus `<image>` (256) and `<pad>` (257)."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(IMAGE_TOKEN, special=True), AddedToken(PAD_TOKEN, special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD_TOKEN)


def tiny_llava_config(**changes: Any) -> LlavaConfig:
    """Config of the tiny LLaVA.

    Args:
        changes: fields of the text or vision config to replace, prefixed `text_` or `vision_`, such as
            `text_hidden_size=64`.
    """
    vision = {
        "image_size": 96,
        "patch_size": 8,
        "hidden_size": 96,
        "intermediate_size": 192,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    text = {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 32,
        "vocab_size": 260,
        "max_position_embeddings": 2048,
        "pad_token_id": 257,
    }
    for name, value in changes.items():
        part, _, field = name.partition("_")
        {"vision": vision, "text": text}[part][field] = value
    return LlavaConfig(
        vision_config=CLIPVisionConfig(**vision),
        text_config=LlamaConfig(**text),
        image_token_index=256,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )
