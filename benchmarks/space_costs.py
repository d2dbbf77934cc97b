"""What seeing in 3D costs: a chunk and a training step beside the flat policy's, interleaved, in one process.

    OMP_WAIT_POLICY=passive python -m benchmarks.space_costs

`tiny`, and a CLIP tower and Llama of a few layers at LLaVA's proportions; two cameras, both with depth.
Process time of one thread, median of the ratios within each round (quartiles).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lerobot.configs import FeatureType, PolicyFeature
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

from lerobot_deepfusion import DeepFusionConfig
from lerobot_deepfusion.inputs.depth_keys import depth_key
from lerobot_deepfusion.llava.reader import read_vlm_config
from lerobot_deepfusion.modeling_deepfusion import DeepFusionPolicy

from . import clock, report

CAMERAS = ("observation.images.top", "observation.images.wrist")
CASES = (("tiny", 96, 96), ("tiny", 480, 640), ("CLIP and Llama", 480, 640))  # height and width of the cameras
BATCH, ROUNDS = 4, 9


def small_llava() -> dict[str, Any]:
    """144 patches a camera, as tokens of a width of 512."""
    vision = CLIPVisionConfig(
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=7,
        num_attention_heads=4,
        image_size=168,
        patch_size=14,
    )
    text = LlamaConfig(
        hidden_size=512, intermediate_size=1536, num_hidden_layers=8, num_attention_heads=8, vocab_size=32064
    )
    return LlavaConfig(vision_config=vision, text_config=text, image_token_index=32000).to_dict()


def policy_of(vlm: str, size: tuple[int, int], frame: str, **options: Any) -> DeepFusionPolicy:
    torch.manual_seed(0)
    tiny = read_vlm_config("tiny")
    vlm_config = tiny if vlm == "tiny" else {**tiny, "model": small_llava()}
    identity = {"intrinsics": [0.9, 1.2, 0.5, 0.5], "pose": [1.0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0]}
    config = DeepFusionConfig(
        vlm_path="tiny", vlm_config=vlm_config, position_3d=frame, device="cpu", push_to_hub=False, **options
    )
    config.camera_calibration = dict.fromkeys(CAMERAS, identity)
    config.input_features = {key: PolicyFeature(FeatureType.VISUAL, (3, *size)) for key in CAMERAS}
    if frame != "none":
        depth = {depth_key(key): PolicyFeature(FeatureType.VISUAL, (1, *size)) for key in CAMERAS}
        config.input_features |= depth
    config.input_features["observation.state"] = PolicyFeature(FeatureType.STATE, (8,))
    config.output_features = {"action": PolicyFeature(FeatureType.ACTION, (8,))}
    return DeepFusionPolicy(config)


def batch_of(policy: DeepFusionPolicy, size: int) -> dict[str, Any]:
    token = policy.config.vlm_config["model"]["image_token_index"]
    words = torch.tensor([[token, *range(1, 30)]]).expand(size, -1)
    height, width = policy.config.image_features[CAMERAS[0]].shape[1:]
    batch: dict[str, Any] = {key: torch.rand(size, 3, height, width) for key in CAMERAS}
    batch |= {depth_key(key): 500 + 1000 * torch.rand(size, 1, height, width) for key in CAMERAS}
    batch["observation.state"], batch["action"] = torch.randn(size, 8), torch.randn(size, 50, 8)
    batch["observation.language.tokens"] = words
    return {**batch, "observation.language.attention_mask": torch.ones_like(words, dtype=torch.bool)}


def step_of(policy: DeepFusionPolicy, batch: dict[str, Any]) -> Callable[[], None]:
    def step() -> None:
        policy.train()
        policy.zero_grad()
        policy.forward(batch)[0].backward()

    return step


def main() -> None:
    torch.set_num_threads(1)
    report.print_machine(report.machine("cpu", "float32", ROUNDS))
    print("| VLM | cameras | what | `world` / 2D | `cloud` / 2D | 2D, ms |")
    print("| --- | --- | --- | --- | --- | --- |")
    for vlm, *size in CASES:
        for what, options in (
            ("chunk", {}),
            ("step", {}),
            ("step, VLM frozen", {"train_expert_only": True}),
        ):
            jobs: dict[str, Callable[[], object]] = {}
            for frame in ("none", "world", *["cloud"] * (vlm == "tiny")):
                policy = policy_of(vlm, tuple(size), frame, **options)
                batch = batch_of(policy, 1 if what == "chunk" else BATCH)
                # Bound now: the next policy is another.
                jobs[frame] = (
                    step_of(policy, batch) if what != "chunk" else lambda p=policy, b=batch: p.predict_action_chunk(b)
                )
            seconds = clock.race(jobs, ROUNDS)
            cells = [_ratio(seconds, frame) for frame in ("world", "cloud")]
            flat = clock.quartiles(seconds["none"])[1]
            print(f"| {vlm} | {size[0]} x {size[1]} | {what} | {' | '.join(cells)} | {flat * 1000:.0f} |", flush=True)


def _ratio(seconds: clock.Seconds, frame: str) -> str:
    if frame not in seconds:
        return ""
    low, middle, high = clock.ratio(seconds, frame, "none")
    return f"{middle:.3f} ({low:.3f} to {high:.3f})"


if __name__ == "__main__":
    main()
