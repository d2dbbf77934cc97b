"""What each cut of the LLaVA saves: `python -m benchmarks.perception`.

Time: transformers' whole model against ours, cut by cut, on two pictures and 48 tokens of text, one thread,
float32, process time, medians of ratios within a round (see `clock`). Parameters: the published shapes, counted
on the meta device.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration
from transformers.models.auto.modeling_auto import AutoModel

from lerobot_deepfusion.llava.published import CONFIGS
from lerobot_deepfusion.llava.reader import llava_config_from_dict
from lerobot_deepfusion.network.perception import Perception

from .clock import race, ratio

IMAGE, CAMERAS, WORDS, PATCHES = 32000, 2, 48, 196


def shape() -> LlavaConfig:
    """A LLaVA-1.5 an eighth as wide and a third as deep, with 196 tokens a picture."""
    vision = CLIPVisionConfig(
        image_size=224,
        patch_size=16,
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=8,
        num_attention_heads=4,
    )
    text = LlamaConfig(
        hidden_size=512,
        intermediate_size=1376,
        num_hidden_layers=11,
        num_attention_heads=8,
        vocab_size=32064,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )


def tower_cut(config: LlavaConfig) -> LlavaConfig:
    """The same features from a tower that ends at the feature layer."""
    config = copy.deepcopy(config)
    config.vision_config.num_hidden_layers += 1 + config.vision_feature_layer
    config.vision_feature_layer = -1
    return config


@torch.inference_mode()
def times(rounds: int) -> dict[str, float]:
    """Median time of each form over that of transformers' whole model."""
    config = shape()
    pixels = torch.randn(1, CAMERAS, 3, 224, 224)
    words = torch.randint(0, IMAGE, (1, WORDS))
    ids = torch.cat([torch.full((1, CAMERAS * PATCHES), IMAGE), words], dim=1)
    pooled_ids = torch.cat([torch.full((1, CAMERAS * PATCHES // 4), IMAGE), words], dim=1)
    whole = LlavaForConditionalGeneration(config).eval()
    body, short = AutoModel.from_config(config).eval(), AutoModel.from_config(tower_cut(config)).eval()
    ours, pooled = Perception(config, "kv").eval(), Perception(config, "kv", pooling=2).eval()
    jobs = {
        "transformers, whole": lambda: whole(input_ids=ids, pixel_values=pixels[0]),
        "without lm_head": lambda: body(input_ids=ids, pixel_values=pixels[0]),
        "and the tower cut at its feature layer": lambda: short(input_ids=ids, pixel_values=pixels[0]),
        "and the text model cut after what is read": lambda: ours(pixels, ids, torch.ones_like(ids).bool()),
        "and image_token_pooling=2": lambda: pooled(pixels, pooled_ids, torch.ones_like(pooled_ids).bool()),
    }
    seconds = race(jobs, rounds)
    return {name: ratio(seconds, name, "transformers, whole")[1] for name in jobs}


def parameters(values: dict) -> dict[str, float]:
    """Millions of parameters that each cut leaves out, at a published shape."""
    config = llava_config_from_dict(values)
    with torch.device("meta"):
        body, short = AutoModel.from_config(config), AutoModel.from_config(tower_cut(config))
        kept = {fusion: Perception(config, fusion) for fusion in ("kv", "hidden", "late")}

    def count(module: torch.nn.Module) -> float:
        return sum(p.numel() for p in module.parameters()) / 1e6

    head = config.text_config.vocab_size * config.text_config.hidden_size / 1e6
    left_out = {"lm_head (none where it is tied)": head, "tower": count(body) - count(short)}
    return left_out | {f"text model, and norms, {name}": count(short) - count(part) for name, part in kept.items()}


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    result = {
        "time": times(rounds=9),
        "parameters left out, millions": {k: parameters(v) for k, v in CONFIGS.items()},
    }
    print(json.dumps(result, indent=2))
    out = Path("benchmarks/results/perception.json")
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
