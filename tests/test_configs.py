"""Every shipped YAML parses as LeRobot's train command would, and its policy builds."""

from __future__ import annotations

from pathlib import Path

import draccus
import pytest
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.configs.train import TrainPipelineConfig

from lerobot_deepfusion.info import PUBLISHED, build

CONFIGS = sorted((Path(__file__).parents[1] / "configs" / "policy").glob("*.yaml"))


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
    layers = build(policy).expert.backbone.layers
    assert len(layers) == PUBLISHED[policy.vlm_path]["text_config"]["num_hidden_layers"]
    # Under `kv` nothing projects the context, whatever the expert's width.
    assert all(layer.context_proj is None for layer in layers)
