"""Every shipped YAML parses as LeRobot's train command would, and its policy builds."""

from __future__ import annotations

from pathlib import Path

import draccus
import pytest
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.configs.train import TrainPipelineConfig

from lerobot_deepfusion.cost.blueprint import build
from lerobot_deepfusion.llava.published import CONFIGS as PUBLISHED

CONFIGS = sorted((Path(__file__).parents[1] / "configs" / "policy").glob("*.yaml"))


def test_there_are_configs() -> None:
    assert {path.stem for path in CONFIGS} >= {
        *("tiny", "onevision_0.5b", "onevision_0.5b_3d", "onevision_0.5b_half", "onevision_0.5b_lora"),
        *("llava_1.5_7b", "llava_1.5_7b_lora"),
    }


EVERY_ROW = """
policy:
  type: deepfusion
  vlm_path: llava-hf/llava-onevision-qwen2-0.5b-ov-hf
  fusion: late
  fusion_layers: first_8
  action_expert_type: late_gemma
  action_attention: causal
  expert_width_multiplier: 0.5
  expert_num_layers: 4
  expert_init: random
  time_conditioning: token
  num_flow_samples: 2
  knowledge_insulation: true
"""


@pytest.mark.medium
def test_every_row_of_the_switch_from_yaml_and_command_line(tmp_path: Path) -> None:
    """The fields of a file, or of the command line over it, reach the network."""
    (tmp_path / "rows.yaml").write_text(EVERY_ROW)
    common = ["--dataset.repo_id=local/x", "--policy.device=cpu"]
    config = draccus.parse(TrainPipelineConfig, config_path=str(tmp_path / "rows.yaml"), args=common).policy
    model = build(config)
    expert = model.expert.backbone.config
    assert len(model.perception.language_model.layers) == 8
    assert (expert.num_hidden_layers, expert.hidden_size, expert.num_key_value_heads) == (4, 448, 1)
    assert (expert.gemma, expert.causal, expert.adarms, config.num_flow_samples) == (True, True, False, 2)
    flags = ["fusion=kv", "fusion_layers=every_3", "action_expert_type=deep_llama", "action_attention=bidirectional"]
    args = [*common, *(f"--policy.{flag}" for flag in [*flags, "expert_num_layers=null"])]
    config = draccus.parse(TrainPipelineConfig, config_path=str(tmp_path / "rows.yaml"), args=args).policy
    model = build(config)
    assert model.perception.sources == [2, 5, 8, 11, 14, 17, 20, 23]
    expert = model.expert.backbone.config
    assert (expert.num_hidden_layers, expert.gemma, expert.causal) == (8, False, False)


@pytest.mark.medium
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_parses_and_builds(path: Path) -> None:
    config = draccus.parse(
        TrainPipelineConfig, config_path=str(path), args=["--dataset.repo_id=local/x", "--policy.device=cpu"]
    )
    policy = config.policy
    assert policy.type == "deepfusion"
    assert policy.push_to_hub is False
    flat = path.stem in ("onevision_0.5b", "onevision_0.5b_half", "onevision_0.5b_lora")
    assert config.dataset.image_transforms.enable == flat  # the turn and shift among them would tear depth off
    assert policy.num_flow_samples == 8 or "onevision" not in path.stem
    assert (config.peft is not None) == path.stem.endswith("_lora")
    policy.input_features = {
        "observation.image": PolicyFeature(type=FeatureType.VISUAL, shape=(3, 96, 96)),
        "observation.state": PolicyFeature(type=FeatureType.STATE, shape=(4,)),
    }
    policy.output_features = {"action": PolicyFeature(type=FeatureType.ACTION, shape=(4,))}
    assert (policy.position_3d != "none") == path.stem.endswith("_3d")
    if policy.position_3d != "none":
        policy.input_features["observation.image_depth"] = PolicyFeature(type=FeatureType.VISUAL, shape=(1, 96, 96))
    policy.validate_features()
    if policy.vlm_path == "tiny":
        from lerobot_deepfusion.modeling_deepfusion import DeepFusionPolicy

        assert sum(p.numel() for p in DeepFusionPolicy(policy).parameters()) > 0
        return
    layers = build(policy).expert.backbone.layers
    depth = PUBLISHED[policy.vlm_path]["text_config"]["num_hidden_layers"]
    assert len(layers) == (depth // 2 if path.stem.endswith("_half") else depth)
    # Under `kv` nothing projects the context, whatever the expert's width.
    assert all(layer.context_proj is None for layer in layers)
