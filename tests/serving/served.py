"""The policy server in this process, and a robot that speaks its protocol word by word."""

from __future__ import annotations

import asyncio
import functools
import logging
import pickle
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import grpc
import numpy as np
from lerobot.async_inference.configs import PolicyServerConfig
from lerobot.async_inference.helpers import RemotePolicyConfig, TimedAction, TimedObservation
from lerobot.transport import services_pb2, services_pb2_grpc
from lerobot.transport.utils import send_bytes_in_chunks

# On import, LeRobot's server writes `logs/` where it is and takes over logging.
with mock.patch("lerobot.async_inference.helpers.get_logger", logging.getLogger):
    from lerobot.async_inference import policy_server as lerobot_server

from lerobot_deepfusion.serving.policy_server import Tls, start_server
from lerobot_deepfusion.serving.service import PolicyService

__all__ = ["JOINTS", "SIZE", "RawRobot", "lerobot_server", "refused", "running"]

JOINTS = ["shoulder.pos", "elbow.pos", "gripper.pos", "base.vel"]
SIZE = (64, 80, 3)


@functools.cache
def event_loop() -> asyncio.AbstractEventLoop:
    """One for all servers of this process, which ends with it: gRPC's poller is the process's, and wakes every loop
    that it has ever served (grpc/grpc#25364). `deepfusion serve` has one, too.
    """
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    return loop


@contextmanager
def running(policies: tuple[str, ...] = (), tls: Tls | None = None, **options: Any) -> Iterator[PolicyService]:
    """A server on a free port of the loopback, its `port` an attribute of the service."""
    # No sleep up to a latency; an answer without observation at once.
    service = PolicyService(PolicyServerConfig(**{"inference_latency": 0, **options}), policies, refusal_seconds=0)

    def wait_for(coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, event_loop()).result(60)

    server, service.port = wait_for(start_server(service, "127.0.0.1", 0, tls))
    service.address = f"127.0.0.1:{service.port}"
    try:
        yield service
    finally:
        wait_for(server.stop(None))
        service.worker.shutdown()


class RawRobot:
    """A client that can say anything; what LeRobot's says otherwise."""

    def __init__(self, service: PolicyService, policy: Any = "", channel: grpc.Channel | None = None) -> None:
        # A connection of its own: gRPC shares one between channels that are alike.
        self.channel = channel or grpc.insecure_channel(service.address, [("grpc.use_local_subchannel_pool", 1)])
        self.stub = services_pb2_grpc.AsyncInferenceStub(self.channel)
        self.policy = str(policy)

    def __enter__(self) -> RawRobot:
        return self

    def __exit__(self, *_: object) -> None:
        self.channel.close()

    def ready(self) -> None:
        self.stub.Ready(services_pb2.Empty(), timeout=30)

    def instructions(self, **changes: Any) -> RemotePolicyConfig:
        state = {"dtype": "float32", "shape": (len(JOINTS),), "names": JOINTS}
        picture = {"dtype": "image", "shape": SIZE, "names": ["height", "width", "channels"]}
        features = {"observation.state": state, "observation.images.front": picture}
        values = {"policy_type": "deepfusion", "pretrained_name_or_path": self.policy, "actions_per_chunk": 5}
        return RemotePolicyConfig(**{"lerobot_features": features, **values, **changes})

    def choose(self, message: Any = None, **changes: Any) -> None:
        data = message if isinstance(message, bytes) else pickle.dumps(message or self.instructions(**changes))
        self.stub.SendPolicyInstructions(services_pb2.PolicySetup(data=data), timeout=120)

    def see(self, timestep: int = 0, must_go: bool = True, timestamp: float = 100.0, **changes: Any) -> None:
        values = {**dict.fromkeys(JOINTS, 0.5), "front": np.full(SIZE, 7, np.uint8), "task": "push", **changes}
        self.send(TimedObservation(timestamp, timestep, values, must_go))

    def send(self, message: Any) -> None:
        data = message if isinstance(message, bytes) else pickle.dumps(message)
        self.stub.SendObservations(send_bytes_in_chunks(data, services_pb2.Observation), timeout=60)

    def act(self) -> list[TimedAction]:
        data = self.stub.GetActions(services_pb2.Empty(), timeout=120).data
        return pickle.loads(data) if data else []


@contextmanager
def refused(status: str, *texts: str) -> Iterator[None]:
    """The call inside is answered with this status, and each of these texts in its reason."""
    try:
        yield
    except grpc.RpcError as error:
        answer = f"{error.code().name}: {error.details()}"
        if error.code().name != status or not all(text in error.details() for text in texts):
            raise AssertionError(f"expected {status} with {texts}, got {answer}") from None
        return
    raise AssertionError(f"expected {status}, and the call went well")
