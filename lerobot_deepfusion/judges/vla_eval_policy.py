"""vla-eval's LeRobot server for our checkpoints.

    python -m lerobot_deepfusion.judges.vla_eval_policy --address=127.0.0.1:8000 --args.checkpoint=<checkpoint>

Theirs takes any policy type that is registered, but imports no plugin, so that `--args.policy_type=deepfusion` is
unknown to its own command. And it hands cameras to a policy by the alphabet: with two or more, pictures would land in
each other's place without a word.
"""

from __future__ import annotations

from typing import Any

from lerobot.configs.policies import PreTrainedConfig
from lerobot.utils.constants import OBS_IMAGES
from lerobot.utils.random_utils import set_seed
from vla_eval.model_servers.lerobot import LeRobotModelServer
from vla_eval.model_servers.serve import run_server

from .. import processor_deepfusion  # noqa: F401 - registers config and processor steps


class DeepFusionServer(LeRobotModelServer):
    """Acts as in `lerobot-eval`: `n_action_steps` of a chunk, then looks again.

    Args:
        checkpoint: folder, or name on the Hub.
        device: where it acts; without a GPU, `cuda` is `cpu`.
        seed: what is drawn begins here, as with `lerobot-eval --seed`.
        image_keys: by the benchmark's camera the policy's column. By default a camera has the name that
            `observation.images.` stands before, and one camera alone is the policy's only one.
        options: of vla-eval's `LeRobotModelServer`.

    Raises:
        FileNotFoundError: if there is no such checkpoint.
        ValueError: if it is another policy's.
    """

    def __init__(
        self,
        checkpoint: str,
        device: str = "cuda",
        seed: int = 1000,
        image_keys: dict[str, str] | None = None,
        **options: Any,
    ) -> None:
        config = PreTrainedConfig.from_pretrained(checkpoint)
        if config.type != "deepfusion":
            raise ValueError(
                f"{checkpoint} is a policy of type {config.type}; vla-eval's own server takes it: "
                f"python -m vla_eval.model_servers.lerobot --args.policy_type={config.type}"
            )
        if image_keys is None and len(config.image_features) > 1:
            image_keys = {key.removeprefix(f"{OBS_IMAGES}."): key for key in config.image_features}
        set_seed(seed)  # before the policy is made, since that draws too
        super().__init__("deepfusion", checkpoint, image_keys, device=device, **options)


if __name__ == "__main__":
    run_server(DeepFusionServer)
