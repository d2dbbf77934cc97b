"""What the server does for one robot: LeRobot's queue and inference, and none of LeRobot's doors.

LeRobot's `PolicyServer` is at once a gRPC service that unpickles and an engine that keeps the newest observation,
skips what is like the last, and makes chunks. Here each robot gets an engine of its own, and the service is
`service.PolicyService`: no call from outside reaches LeRobot's methods that unpickle.
"""

from __future__ import annotations

import asyncio
import pickle
from collections import deque
from queue import Queue
from typing import Any

from lerobot.async_inference.configs import PolicyServerConfig
from lerobot.async_inference.helpers import TimedObservation
from lerobot.async_inference.policy_server import PolicyServer

from .messages import Instructions, Observation
from .refusal import invalid
from .robot_check import check_pictures, check_robot
from .robot_depth import fit_depth, without_unseen_depth

REMEMBERED = 1000  # timesteps that were acted on; LeRobot keeps all, which grows for as long as a robot runs


class RobotWork:
    """One robot's policy, its newest observation, and its chunks.

    Args:
        config: LeRobot's options of a server.
        instructions: of the robot.
        policy: on its device.
        preprocessor: LeRobot's pipeline of the policy.
        postprocessor: likewise.

    Raises:
        ValueError: if the robot and the policy do not fit.
    """

    def __init__(
        self,
        config: PolicyServerConfig,
        instructions: Instructions,
        policy: Any,
        preprocessor: Any,
        postprocessor: Any,
    ) -> None:
        self.features = without_unseen_depth(instructions.features, policy.config)
        check_robot(self.features, policy.config)
        self.engine = PolicyServer(config)
        self.engine.device = instructions.device
        self.engine.policy_type = instructions.policy_type
        self.engine.lerobot_features = self.features
        self.engine.actions_per_chunk = instructions.actions_per_chunk
        self.engine.policy = policy
        self.engine.preprocessor, self.engine.postprocessor = preprocessor, postprocessor
        self.engine._predicted_timesteps = deque(maxlen=REMEMBERED)
        self._arrived = asyncio.Event()
        # LeRobot's client asks for an answer once (`must_go`) and waits. Where that one came to nothing, the next
        # observation is answered, or the robot would stand still for ever.
        self._owes_answer = False

    def drop_queued(self) -> None:
        """Forget what was seen over a connection that is gone."""
        self.engine.observation_queue = Queue(maxsize=1)
        self._arrived.clear()
        self._owes_answer = True

    def owe(self) -> None:
        """An observation or a chunk was lost."""
        self._owes_answer = True

    def put(self, observation: Observation) -> None:
        """Queue an observation in place of an older one, unless LeRobot finds it too like the last.

        Raises:
            Refused: for a picture that LeRobot's server would stretch.
        """
        try:
            check_pictures(observation.values, self.features, self.engine.policy.config)
        except ValueError as error:
            raise invalid(str(error)) from error
        timed = TimedObservation(
            timestamp=observation.timestamp,
            timestep=observation.timestep,
            observation=fit_depth(observation.values, self.engine.policy.config),
            must_go=observation.must_go or self._owes_answer,
        )
        if self.engine._enqueue_observation(timed):
            self._owes_answer = False
            self._arrived.set()

    async def next(self, seconds: float) -> TimedObservation | None:
        """The newest observation that was not taken yet; None if there is none for so long."""
        try:
            await asyncio.wait_for(self._arrived.wait(), seconds)
        except TimeoutError:
            return None
        self._arrived.clear()
        return self.engine.observation_queue.get_nowait()

    def act(self, observation: TimedObservation) -> bytes:
        """A chunk of actions, pickled as LeRobot's client expects it: a list of `TimedAction`."""
        self.engine._predicted_timesteps.append(observation.get_timestep())
        return pickle.dumps(self.engine._predict_action_chunk(observation))
