"""One faucet that may be turned either way: the scene of `one_faucet`, with a success for both directions."""

from __future__ import annotations

from typing import Any

import numpy as np
from lerobot.policies.pretrained import PreTrainedPolicy
from metaworld.envs import SawyerFaucetOpenEnvV3

from lerobot_deepfusion.sim import one_faucet

from ..rollouts import successes, told
from ..study.arms import NO_WORDS

NAME = "one-faucet-either"


class OneFaucetEither(one_faucet.OneFaucet, SawyerFaucetOpenEnvV3):  # type: ignore[misc]  # as those beside it
    """Notes which way it was turned."""

    asked = 2  # neither direction, which would end the episode in the other
    turned: list[int] = []  # of all episodes of this process

    def evaluate_state(self: Any, obs: np.ndarray, action: np.ndarray) -> tuple[float, dict[str, Any]]:
        before = self._turned
        super().evaluate_state(obs, action)
        if self._turned and not before:
            self.turned.append(self._turned)
        return 0.0, {"success": float(self._turned != 0)}


def judge(policy: PreTrainedPolicy, before: Any, after: Any, episodes: int, seed: int) -> tuple[int, int]:
    """How many episodes succeed, and how many of those opened it."""
    one_faucet.TASKS[NAME] = (OneFaucetEither, "faucet-open-v3")
    OneFaucetEither.turned.clear()
    won = successes(policy, before, after, NAME, episodes, seed, change=told(NO_WORDS))
    assert won == len(OneFaucetEither.turned), (won, OneFaucetEither.turned)
    return won, OneFaucetEither.turned.count(1)
