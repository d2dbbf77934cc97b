"""From a LLaVA to a policy that needs it no more: build, train two steps, save, load alone, act.

    python examples/from_llava.py --vlm path/to/llava   # a directory, or a Hub id such as the default

Pictures, states and actions are random numbers: this shows the steps, and takes the place of a data set with two
cameras. Training for real is `lerobot-train --config_path=configs/policy/onevision_0.5b.yaml`.
"""

import argparse
from pathlib import Path

import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.policies.factory import make_pre_post_processors

from lerobot_deepfusion import DeepFusionConfig
from lerobot_deepfusion.modeling_deepfusion import DeepFusionPolicy
from lerobot_deepfusion.processor_deepfusion import make_deepfusion_pre_post_processors

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--vlm", default=DeepFusionConfig.vlm_path, help="LLaVA in a directory or on the Hub")
parser.add_argument("--out", type=Path, default=Path("outputs/from_llava"))
parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
args = parser.parse_args()

CAMERAS, STATE, ACTION, BATCH = ("front", "wrist"), 7, 7, 2
config = DeepFusionConfig(
    vlm_path=args.vlm,
    device=args.device,
    dtype="bfloat16",
    train_expert_only=True,  # the LLaVA stays as it is, in bfloat16
    expert_width_multiplier=0.5,
    push_to_hub=False,
)
config.input_features = {
    f"observation.images.{name}": PolicyFeature(type=FeatureType.VISUAL, shape=(3, 240, 320)) for name in CAMERAS
}
config.input_features["observation.state"] = PolicyFeature(type=FeatureType.STATE, shape=(STATE,))
config.output_features = {"action": PolicyFeature(type=FeatureType.ACTION, shape=(ACTION,))}
statistics = {
    "observation.state": {"mean": torch.zeros(STATE), "std": torch.ones(STATE)},
    "action": {"mean": torch.zeros(ACTION), "std": torch.ones(ACTION)},
}


def observation(size: int) -> dict:
    pictures = {f"observation.images.{name}": torch.rand(size, 3, 240, 320) for name in CAMERAS}
    return {**pictures, "observation.state": torch.randn(size, STATE), "task": ["pick up the cup"] * size}


policy = DeepFusionPolicy(config)
print(policy.describe())
preprocess, postprocess = make_deepfusion_pre_post_processors(config, statistics)
optimizer = torch.optim.AdamW(policy.get_optim_params(), lr=1e-4)
policy.train()
for step in range(2):
    batch = preprocess({**observation(BATCH), "action": torch.randn(BATCH, config.chunk_size, ACTION)})
    loss, _ = policy.forward(batch)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    print(f"step {step + 1}: loss {loss.item():.3f}")

for part in (policy, preprocess, postprocess):
    part.save_pretrained(args.out)
del policy

policy = DeepFusionPolicy.from_pretrained(args.out)  # reads nothing but args.out
preprocess, postprocess = make_pre_post_processors(policy.config, pretrained_path=str(args.out))
action = postprocess(policy.select_action(preprocess(observation(1))))
print(f"first of {config.n_action_steps} actions: {[round(value, 2) for value in action[0].tolist()]}")
