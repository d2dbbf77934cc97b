"""One faucet, two tasks: `one-faucet-open` and `one-faucet-close`, which only the instruction tells apart.

Meta-World's own two faucet tasks look like that and are not: they mark their goals in the picture, and draw the
faucet's place from other ranges. Here one sampler serves both, nothing is marked, and the first state and picture of
a seed are the same to the bit whichever task is asked. Only what is judged differs, and what the expert is told.
"""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np
from gymnasium.spaces import Box
from metaworld.envs import SawyerFaucetCloseEnvV3, SawyerFaucetOpenEnvV3
from metaworld.sawyer_xyz_env import SawyerXYZEnv

TURNED = 1.2  # rad; Meta-World's own goals are at 1.2 and 1.3, and its experts pass 1.4 on their way to the stop
PLACES = Box(np.array([-0.1, 0.8, 0.0]), np.array([0.1, 0.85, 0.0]), dtype=np.float64)  # the wider of its two ranges


class OneFaucet(SawyerXYZEnv):  # type: ignore[misc]  # Meta-World's bases disagree
    """What the two tasks share, over either of Meta-World's classes: all but the direction that is asked."""

    asked: int  # sign of the handle's angle, which grows counter-clockwise, seen from above

    def __init__(self: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._random_reset_space = PLACES
        self._turned = 0

    def reset_model(self: Any) -> np.ndarray:
        self._turned = 0
        self._reset_hand()
        self.obj_init_pos = self._target_pos = self._get_state_rand_vec()
        self.model.body("faucetBase").pos = self.obj_init_pos
        mujoco.mj_forward(self.model, self.data)
        return self._get_obs()

    def step(self: Any, action: np.ndarray) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Meta-World's, and the episode is cut off once the handle is turned the other way: it can't succeed then."""
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward, terminated, truncated or self._turned == -self.asked, info

    def evaluate_state(self: Any, obs: np.ndarray, action: np.ndarray) -> tuple[float, dict[str, Any]]:
        """Reward, the share of the way that the handle is turned as asked, and success.

        The way in which it is turned first counts, so that no episode could succeed in both tasks: a policy that
        does not know which is asked has half of them at most.
        """
        angle = float(self.data.joint("knob_Joint_1").qpos[0])
        if not self._turned and abs(angle) >= TURNED:
            self._turned = int(np.sign(angle))
        share = min(max(self.asked * angle / TURNED, 0.0), 1.0)
        return share, {"success": float(self._turned == self.asked)}


class OneFaucetOpen(OneFaucet, SawyerFaucetOpenEnvV3):  # type: ignore[misc]  # Meta-World's bases disagree
    asked = 1


class OneFaucetClose(OneFaucet, SawyerFaucetCloseEnvV3):  # type: ignore[misc]  # Meta-World's bases disagree
    asked = -1


# The simulator of each, and the task of Meta-World whose sentence and scripted expert it has.
TASKS = {
    "one-faucet-open": (OneFaucetOpen, "faucet-open-v3"),
    "one-faucet-close": (OneFaucetClose, "faucet-close-v3"),
}
