"""A LLaVA on disk in the real format: weights, prompt and tokenizer come from there, and only once."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from conftest import TEXT, VISION
from test_policy import STATS, make_batch, make_config
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from lerobot_deepfusion.modeling_deepfusion import DeepFusionPolicy
from lerobot_deepfusion.processor_deepfusion import make_deepfusion_pre_post_processors
from lerobot_deepfusion.tiny import byte_tokenizer

TEMPLATE = (
    "USER: {% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)


@pytest.fixture
def llava(tmp_path: Path) -> Path:
    """A small LLaVA-1.5 as `save_pretrained` writes it, sharded."""
    folder = tmp_path / "llava"
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**VISION),
        text_config=LlamaConfig(**{**TEXT, "vocab_size": 264, "pad_token_id": 257}),
        image_token_index=256,
    )
    torch.manual_seed(0)
    LlavaForConditionalGeneration(config).save_pretrained(folder, max_shard_size="100KB")
    LlavaProcessor(
        image_processor=CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32),
        tokenizer=byte_tokenizer(),
        patch_size=8,
        vision_feature_select_strategy="default",
        chat_template=TEMPLATE,
    ).save_pretrained(folder)
    return folder


def test_policy_starts_from_a_llava_and_leaves_it_behind(llava: Path, tmp_path: Path) -> None:
    plain = LlavaForConditionalGeneration.from_pretrained(llava)
    config = make_config(expert_init="vlm")
    config.vlm_path, config.tokenizer_max_length = str(llava), 40
    policy = DeepFusionPolicy(config)
    source = plain.model.state_dict()
    for name, value in policy.model.perception.state_dict().items():
        assert torch.equal(value, source[name]), name
    expert = policy.model.expert.backbone.layers[0].mlp.down_proj.weight
    assert torch.equal(expert, source["language_model.layers.0.mlp.down_proj.weight"])
    assert config.vlm_config["prompt"] == "USER: <image>\n{task} ASSISTANT:"
    assert config.vlm_config["image_mean"] == pytest.approx([0.48145466, 0.4578275, 0.40821073])

    pre, post = make_deepfusion_pre_post_processors(config, STATS)
    for pipeline in (pre, post):
        pipeline.save_pretrained(tmp_path / "policy")
    policy.save_pretrained(tmp_path / "policy")
    batch, noise = pre(make_batch(config, training=False)), torch.randn(3, 6, 3)
    expected = policy.predict_action_chunk(batch, noise=noise)
    shutil.rmtree(llava)
    again = DeepFusionPolicy.from_pretrained(tmp_path / "policy")
    assert torch.equal(again.predict_action_chunk(batch, noise=noise), expected)


def test_missing_vlm_is_an_error(tmp_path: Path) -> None:
    config = make_config()
    config.vlm_path = str(tmp_path / "nowhere")
    with pytest.raises(OSError, match="nowhere"):
        DeepFusionPolicy(config)


def test_a_weight_that_is_missing_stops_the_build(llava: Path) -> None:
    from safetensors.torch import load_file, save_file

    ending = "layers.0.mlp.up_proj.weight"
    shards = {path: load_file(path) for path in llava.glob("*.safetensors")}
    shard, weights = next(item for item in shards.items() if any(key.endswith(ending) for key in item[1]))
    save_file(
        {key: value for key, value in weights.items() if not key.endswith(ending)}, shard, metadata={"format": "pt"}
    )
    config = make_config()
    config.vlm_path = str(llava)
    with pytest.raises(RuntimeError, match=r"lacks the weights language_model\.layers\.0\.mlp\.up_proj"):
        DeepFusionPolicy(config)
