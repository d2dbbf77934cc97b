"""A small policy of `tiny`, a batch for it and its pipelines."""

from __future__ import annotations

import torch
from lerobot.configs import FeatureType, PolicyFeature

from lerobot_deepfusion import DeepFusionConfig
from lerobot_deepfusion.inputs.depth_keys import depth_key
from lerobot_deepfusion.modeling_deepfusion import DeepFusionPolicy
from lerobot_deepfusion.processor_deepfusion import make_deepfusion_pre_post_processors

STATS = {
    "observation.state": {"mean": torch.tensor([1.0, 2.0, 3.0, 4.0]), "std": torch.full((4,), 2.0)},
    "action": {"mean": torch.tensor([0.5, -0.5, 0.0]), "std": torch.full((3,), 0.5)},
}
INTRINSICS = [0.9, 1.1, 0.5, 0.5]
POSE = [0.0, -1, 0, 0.1, -1, 0, 0, 0.2, 0, 0, -1, 0.9]


def make_config(cameras: tuple[str, ...] = ("image",), **changes) -> DeepFusionConfig:
    small = {"chunk_size": 6, "n_action_steps": 3, "num_inference_steps": 2, "tokenizer_max_length": 24}
    small |= {"max_state_dim": 6, "max_action_dim": 5, "vlm_path": "tiny", "device": "cpu", "push_to_hub": False}
    config = DeepFusionConfig(**{**small, **changes})
    config.input_features = {
        f"observation.{name}": PolicyFeature(type=FeatureType.VISUAL, shape=(3, 64, 80)) for name in cameras
    }
    config.input_features["observation.state"] = PolicyFeature(type=FeatureType.STATE, shape=(4,))
    config.output_features = {"action": PolicyFeature(type=FeatureType.ACTION, shape=(3,))}
    if config.position_3d != "none":  # the first camera has depth, the others not
        camera = f"observation.{cameras[0]}"
        config.input_features[depth_key(camera)] = PolicyFeature(type=FeatureType.VISUAL, shape=(1, 64, 80))
        if "camera_calibration" not in changes:
            config.camera_calibration = {camera: {"intrinsics": INTRINSICS, "pose": POSE}}
    return config


def make_batch(config: DeepFusionConfig, size: int = 3, training: bool = True) -> dict:
    generator = torch.Generator().manual_seed(0)
    batch = {key: torch.rand(size, 3, 64, 80, generator=generator) for key in config.cameras if "empty" not in key}
    batch["observation.state"] = torch.randn(size, 4, generator=generator)
    batch["task"] = [f"do {index}" for index in range(size)]
    if training:
        batch["action"] = torch.randn(size, config.chunk_size, 3, generator=generator)
        batch["action_is_pad"] = torch.zeros(size, config.chunk_size, dtype=torch.bool)
    for camera in config.depth_cameras:  # millimetres, a third of them without a return
        seen = torch.rand(size, 1, 64, 80, generator=generator) > 1 / 3
        batch[depth_key(camera)] = (400 + 1200 * torch.rand(size, 1, 64, 80, generator=generator)) * seen
    return batch


def make(**changes) -> tuple[DeepFusionPolicy, dict, dict]:
    """A policy, a pre-processed training batch and the pipelines."""
    torch.manual_seed(0)
    config = make_config(**changes)
    policy = DeepFusionPolicy(config)
    pre, post = make_deepfusion_pre_post_processors(config, STATS)
    return policy, pre(make_batch(config)), {"pre": pre, "post": post}


def loss(policy: DeepFusionPolicy, batch: dict, **kwargs) -> torch.Tensor:
    torch.manual_seed(7)
    return policy.forward(batch, **kwargs)[0]
