"""Wrote the checkpoints in `0.1/` with version 0.1.0 (commit eb8730f), before any file of the package had moved.

They are never written again: what a release wrote, every later version of the same major loads
(`test_contract_0_1.py`). Kept to say what they are made of, and as the model for the next release's:

    python -m tests.contract.write_0_1 tests/contract/0.1

`llava` is a policy around a small CLIP and Llama, without adapters, with a narrower expert that reads hidden states.
`tiny` is a small policy of `vlm_path=tiny`, with its processors, stopped in the middle of a run of lerobot-train:
what resuming reads is beside it. `expected.safetensors` has one batch as a data set gives it and the flow's first
noise, and for each policy the chunk that comes of both, as the network and as the robot knows it, and the loss of
each sample from a seed.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from lerobot.common.train_utils import save_training_state
from lerobot.configs import FeatureType, PolicyFeature
from safetensors.torch import save_file

from lerobot_deepfusion import DeepFusionConfig
from lerobot_deepfusion.llava.reader import read_vlm_config
from lerobot_deepfusion.modeling_deepfusion import DeepFusionPolicy
from lerobot_deepfusion.processor_deepfusion import make_deepfusion_pre_post_processors
from tests.checkpoints import write_llava
from tests.llavas import enlarge

SEED, STEPS = 7, 3
STATS = {
    "observation.state": {"mean": torch.tensor([1.0, 2.0, 3.0, 4.0]), "std": torch.full((4,), 2.0)},
    "action": {"mean": torch.tensor([0.5, -0.5, 0.0]), "std": torch.full((3,), 0.5)},
}
POLICIES: dict[str, dict[str, Any]] = {
    "llava": {"fusion": "hidden", "expert_width_multiplier": 0.5, "time_conditioning": "token"},
    "tiny": {"fusion": "kv", "num_flow_samples": 2},
}


def small_tiny() -> dict[str, Any]:
    """The tiny LLaVA at a tenth of its size: its files have to travel with the tests."""
    config = read_vlm_config("tiny")
    config["model"]["vision_config"] |= {"image_size": 32, "channels": [4, 8, 8], "num_tokens": 2, "hidden_size": 16}
    text = {"hidden_size": 24, "intermediate_size": 48, "head_dim": 8}
    config["model"]["text_config"] |= text
    return config


def make_config(name: str, vlm_path: str, vlm_config: dict[str, Any] | None) -> DeepFusionConfig:
    config = DeepFusionConfig(
        vlm_path=vlm_path,
        vlm_config=vlm_config,
        device="cpu",
        chunk_size=6,
        n_action_steps=3,
        num_inference_steps=4,
        tokenizer_max_length=48,
        max_state_dim=6,
        max_action_dim=5,
        push_to_hub=False,
        **POLICIES[name],
    )
    for camera in ("front", "wrist"):
        config.input_features[f"observation.images.{camera}"] = PolicyFeature(FeatureType.VISUAL, (3, 48, 64))
    config.input_features["observation.state"] = PolicyFeature(FeatureType.STATE, (4,))
    config.output_features = {"action": PolicyFeature(FeatureType.ACTION, (3,))}
    return config


def make_batch() -> dict[str, Any]:
    """As a data set gives it: three samples, one of which ends within its chunk."""
    generator = torch.Generator().manual_seed(SEED)
    batch = {
        f"observation.images.{camera}": torch.rand(3, 3, 48, 64, generator=generator) for camera in ("front", "wrist")
    }
    batch["observation.state"] = torch.randn(3, 4, generator=generator)
    batch["action"] = torch.randn(3, 6, 3, generator=generator)
    batch["action_is_pad"] = torch.zeros(3, 6, dtype=torch.bool)
    batch["action_is_pad"][1, 4:] = True
    return batch


def train(policy: DeepFusionPolicy, batch: dict[str, Any], folder: Path) -> None:
    """A few steps of a run of ten, and what lerobot-train keeps of it."""
    preset = policy.config.get_optimizer_preset()
    optimizer = preset.build(policy.get_optim_params())
    scheduler = policy.config.get_scheduler_preset().build(optimizer, 10)
    torch.manual_seed(SEED)
    policy.train()
    for _ in range(STEPS):
        policy.forward(batch)[0].backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    save_training_state(folder, STEPS, optimizer, scheduler)


def main(root: Path) -> None:
    torch.set_num_threads(1)
    vlms = {"llava": (str(write_llava(root.parent / "vlm", "clip_llama")), None), "tiny": ("tiny", small_tiny())}
    expected = {}
    for name in POLICIES:
        torch.manual_seed(SEED)
        config = make_config(name, *vlms[name])
        policy = DeepFusionPolicy(config)
        enlarge(policy.model.expert, 2.0)
        pre, post = make_deepfusion_pre_post_processors(config, STATS)
        batch = make_batch()
        ready = pre({**batch, "task": ["push", "pull", "turn the tap"]})
        if name == "tiny":
            train(policy, ready, root / name)
        config.vlm_path = "small" if name == "llava" else "tiny"
        for part in (policy, pre, post):
            part.save_pretrained(root / name / "pretrained_model")
        policy.eval()
        noise = torch.randn(3, 6, 3, generator=torch.Generator().manual_seed(SEED))
        chunk = policy.predict_action_chunk(ready, noise=noise)
        torch.manual_seed(SEED)
        with torch.no_grad():
            losses = policy.forward(ready, reduction="none")[0]
        found = {"chunk": chunk, "executed": post(chunk), "losses": losses}
        expected |= {f"{name}.{key}": value.contiguous() for key, value in found.items()}
        expected |= {**batch, "noise": noise}  # the same for both
    save_file(expected, root / "expected.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
