"""Train and act from Python, on any LeRobot data set with a state, an action and at least one camera.

python examples/train_and_act.py --root outputs/data/push --steps 20
"""

import argparse

import torch
from lerobot.configs import FeatureType
from lerobot.datasets.lerobot_dataset import LeRobotDataset, LeRobotDatasetMetadata
from lerobot.utils.feature_utils import dataset_to_policy_features

from lerobot_deepfusion import DeepFusionConfig
from lerobot_deepfusion.modeling_deepfusion import DeepFusionPolicy
from lerobot_deepfusion.processor_deepfusion import make_deepfusion_pre_post_processors

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--repo-id", default="local/data", help="data set on the Hub; any name for a local one")
parser.add_argument("--root", default=None, help="folder of a local data set")
parser.add_argument("--vlm", default="tiny", help="LLaVA on the Hub or in a folder, or 'tiny'")
parser.add_argument("--steps", type=int, default=100)
parser.add_argument("--out", default="outputs/from_python")
args = parser.parse_args()

meta = LeRobotDatasetMetadata(args.repo_id, root=args.root)
features = dataset_to_policy_features(meta.features)
config = DeepFusionConfig(vlm_path=args.vlm, chunk_size=8, n_action_steps=4, num_flow_samples=4, push_to_hub=False)
config.output_features = {key: ft for key, ft in features.items() if ft.type is FeatureType.ACTION}
config.input_features = {key: ft for key, ft in features.items() if key not in config.output_features}

policy = DeepFusionPolicy(config)
preprocess, postprocess = make_deepfusion_pre_post_processors(config, meta.stats)
window = {"action": [index / meta.fps for index in config.action_delta_indices]}
data = LeRobotDataset(args.repo_id, root=args.root, delta_timestamps=window)
sampler = torch.utils.data.RandomSampler(data, replacement=True, num_samples=16 * args.steps)
loader = torch.utils.data.DataLoader(data, batch_size=16, sampler=sampler)
optimizer = torch.optim.AdamW(policy.get_optim_params(), lr=1e-3)

policy.train()
for step, batch in enumerate(loader):
    loss, _ = policy.forward(preprocess(batch))
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    print(f"step {step + 1}: loss {loss.item():.3f}")

for pipeline in (preprocess, postprocess):
    pipeline.save_pretrained(args.out)
policy.save_pretrained(args.out)
policy = DeepFusionPolicy.from_pretrained(args.out)

observation = {key: data[0][key] for key in (*config.input_features, "task")}
action = postprocess(policy.select_action(preprocess(observation)))
print(f"action {action[0].tolist()}; the demonstration had {data[0]['action'][0].tolist()}")
