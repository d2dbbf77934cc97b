"""Every shipped YAML parses as LeRobot's train command would, and its policy builds."""

from __future__ import annotations

from pathlib import Path

import draccus
import pytest
import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.configs.train import TrainPipelineConfig
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaOnevisionConfig,
    Qwen2Config,
    SiglipVisionConfig,
)

from lerobot_deepfusion.lockstep import DeepFusionModel

CONFIGS = sorted((Path(__file__).parents[1] / "configs" / "policy").glob("*.yaml"))

# The shapes of the published checkpoints, from their config.json.
FULL_SIZE = {
    "llava-hf/llava-1.5-7b-hf": LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=1024,
            intermediate_size=4096,
            num_hidden_layers=24,
            num_attention_heads=16,
            image_size=336,
            patch_size=14,
        ),
        text_config=LlamaConfig(vocab_size=32064),
    ),
    "llava-hf/llava-onevision-qwen2-0.5b-ov-hf": LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(
            hidden_size=1152,
            intermediate_size=4304,
            num_hidden_layers=26,
            num_attention_heads=16,
            image_size=384,
            patch_size=14,
        ),
        text_config=Qwen2Config(
            hidden_size=896,
            intermediate_size=4864,
            num_hidden_layers=24,
            num_attention_heads=14,
            num_key_value_heads=2,
            vocab_size=152000,
        ),
    ),
}


def test_there_are_configs() -> None:
    assert {path.stem for path in CONFIGS} >= {"tiny", "onevision_0.5b", "llava_1.5_7b", "llava_1.5_7b_lora"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_parses_and_builds(path: Path) -> None:
    config = draccus.parse(
        TrainPipelineConfig, config_path=str(path), args=["--dataset.repo_id=local/x", "--policy.device=cpu"]
    )
    policy = config.policy
    assert policy.type == "deepfusion"
    assert policy.push_to_hub is False
    policy.input_features = {
        "observation.image": PolicyFeature(type=FeatureType.VISUAL, shape=(3, 96, 96)),
        "observation.state": PolicyFeature(type=FeatureType.STATE, shape=(4,)),
    }
    policy.output_features = {"action": PolicyFeature(type=FeatureType.ACTION, shape=(4,))}
    policy.validate_features()
    if policy.vlm_path == "tiny":
        from lerobot_deepfusion.modeling_deepfusion import DeepFusionPolicy

        assert sum(p.numel() for p in DeepFusionPolicy(policy).parameters()) > 0
        return
    with torch.device("meta"):
        model = DeepFusionModel(
            FULL_SIZE[policy.vlm_path],
            policy.fusion,
            policy.expert_width_multiplier,
            policy.time_conditioning,
            policy.max_state_dim,
            policy.max_action_dim,
        )
    layers = model.expert.backbone.layers
    assert len(layers) == FULL_SIZE[policy.vlm_path].text_config.num_hidden_layers
    # Under `kv` nothing projects the context, whatever the expert's width.
    assert all(layer.context_proj is None for layer in layers)
