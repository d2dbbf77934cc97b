"""A checkpoint as a policy of robo-evals, which sees the front camera, the gripper and the instruction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from lerobot.policies.utils import prepare_observation_for_inference

from ..looking.observations import load
from ..sim.robo_evals_expert import ROBOT_TYPE, columns


class RoboEvalsPolicy:
    """What `robo_evals.evaluate(policy, image_obs=True)` calls. It is not told where things are, which a state-based
    policy of robo-evals is.

    Args:
        checkpoint: folder, trained on demonstrations of `deepfusion demos --simulator robo_evals`.

    Raises:
        ValueError: for a checkpoint of adapters.
    """

    def __init__(self, checkpoint: str) -> None:
        self.policy, self.before, self.after = load(checkpoint)

    def reset(self, task: str, seed: int) -> None:
        """Before each episode. What the policy draws depends on the episode's seed, and so on no other episode."""
        self.policy.reset()
        torch.manual_seed(seed)

    def __call__(self, obs: Mapping[str, Any]) -> np.ndarray:
        """One control step.

        Args:
            obs: robo-evals' observation, with `image`, uint8 (H, W, 3).

        Returns:
            float32 (4,): dx, dy, dz as shares of 3 cm, and the gripper, -1 open to 1 closed.

        Raises:
            ValueError: without a picture.
        """
        if "image" not in obs:
            raise ValueError(
                "no picture in the observation: evaluate with image_obs=True, or robo-evals run --image-obs"
            )
        device = torch.device(str(self.policy.config.device))
        batch = prepare_observation_for_inference(columns(obs), device, obs["instruction"], ROBOT_TYPE)
        with torch.inference_mode():
            action = self.after(self.policy.select_action(self.before(batch)))
        return action[0].float().cpu().numpy()
