"""Small LLaVAs on disk as `save_pretrained` writes the real ones: weights, tokenizer, images, chat template."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers.processors import TemplateProcessing
from transformers import (
    CLIPImageProcessor,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    SiglipImageProcessor,
)

from lerobot_deepfusion.llava.tiny import byte_tokenizer
from tests.llavas import llava_config, plain_llava

IMAGE_ID = 256
TEXT = {"vocab_size": 264, "pad_token_id": 257}
PART = "{% if part['type'] == 'image' %}<image>{{ gap }}{% else %}{{ part['text'] }}{% endif %}"
LOOP = f"{{% for message in messages %}}{{% for part in message['content'] %}}{PART}{{% endfor %}}{{% endfor %}}"
# The text around the content, as in the published chat templates: Vicuna's, ChatML, Mistral's with its own <s>.
TEMPLATES = {
    "clip_llama": ("USER: ", " ASSISTANT:"),
    "siglip_qwen2": ("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"),
    "clip_mistral": ("<s>[INST] ", " [/INST]"),
    "next_mistral": ("<s>[INST] ", " [/INST]"),
    "onevision": ("<|im_start|>user ", "<|im_end|><|im_start|>assistant\n"),
}


def tokenizer(make: str) -> PreTrainedTokenizerFast:
    """Bytes; Llama's and Mistral's put `<s>` in front by themselves. It cuts at 8 tokens unless told not to."""
    base = byte_tokenizer()
    if make in ("clip_llama", "clip_mistral", "next_mistral"):
        base.add_special_tokens({"bos_token": "<s>"})
        base.backend_tokenizer.post_processor = TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", base.bos_token_id)]
        )
    base.backend_tokenizer.enable_truncation(8)
    return base


def processor(make: str, size: int) -> ProcessorMixin:
    start, end = TEMPLATES[make]
    gap = "" if make == "siglip_qwen2" else "\n"
    options = {
        "tokenizer": tokenizer(make),
        "chat_template": "{% set gap = " + repr(gap) + " %}" + start + LOOP + end,
    }
    square = {"height": size, "width": size}
    if make == "onevision":
        images = LlavaOnevisionImageProcessor(size=square, image_grid_pinpoints=[[size, size]])
        videos = LlavaOnevisionVideoProcessor(size=square)
        return LlavaOnevisionProcessor(image_processor=images, video_processor=videos, num_image_tokens=17, **options)
    options |= {"patch_size": 8, "vision_feature_select_strategy": "default"}
    edge = {"size": {"shortest_edge": size}, "crop_size": size}
    if make == "next_mistral":
        images = LlavaNextImageProcessor(**edge, image_grid_pinpoints=[[size, size]])
        return LlavaNextProcessor(image_processor=images, **options)
    if make == "siglip_qwen2":
        options["vision_feature_select_strategy"] = "full"
        return LlavaProcessor(image_processor=SiglipImageProcessor(size=square), **options)
    return LlavaProcessor(image_processor=CLIPImageProcessor(**edge), num_additional_image_tokens=1, **options)


def write_llava(
    folder: Path, make: str, dtype: torch.dtype = torch.float32, sharded: bool = True, tied: bool = False
) -> Path:
    """A checkpoint of a small LLaVA, in one file or several."""
    config = llava_config(make, IMAGE_ID, **TEXT, tie_word_embeddings=tied)
    model = plain_llava(make, config).to(dtype)
    model.save_pretrained(folder, max_shard_size="60KB" if sharded else "1GB")
    processor(make, config.vision_config.image_size).save_pretrained(folder)
    return folder
