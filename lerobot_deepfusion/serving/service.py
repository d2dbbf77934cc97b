"""LeRobot's asynchronous inference as a gRPC service: who calls, what is sent, what is answered.

Asynchronous, so that a client that stops in the middle of a message holds a waiting task and not one of a few
threads. Loading and inference run one at a time in a thread of their own.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import grpc
from lerobot.async_inference.configs import PolicyServerConfig
from lerobot.transport import services_pb2
from lerobot.transport.utils import MAX_MESSAGE_SIZE, TransferState

from .messages import Instructions, read_instructions, read_observation
from .policies import Shelf, load_policy
from .refusal import Refused, invalid, too_much
from .robot_work import RobotWork
from .sessions import Client, Session, Sessions

logger = logging.getLogger(__name__)

MAX_INSTRUCTIONS_BYTES = 2**20
MAX_OBSERVATION_BYTES = 64 * 2**20  # ten pictures of 1920 x 1080
MESSAGE_SECONDS = 10.0  # for all pieces of an observation
REFUSAL_SECONDS = 0.2  # LeRobot's client asks again at once, whatever the answer

# What gRPC itself turns away.
CHANNEL_OPTIONS = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_SIZE),  # of one piece; LeRobot's client sends 2 MB
    ("grpc.max_concurrent_streams", 16),  # of a connection; LeRobot's client needs two
    # No compression: LeRobot's client uses none, and 4 MB of it can hold gigabytes.
    ("grpc.compression_enabled_algorithms_bitset", 1),
    ("grpc.so_reuseport", 0),  # a second server on the port is an error, not a lottery for the clients
    ("grpc.server_handshake_timeout_ms", 10_000),
    # A robot that is gone without a word is noticed after fifteen seconds, and its calls end.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
]


class PolicyService:
    """`transport.AsyncInference` for `grpc.aio`.

    Args:
        config: LeRobot's options of a server.
        policies: what a client may choose from; without any it names what it likes. See `Shelf`.
        refusal_seconds: before a refusal is answered.
    """

    def __init__(
        self, config: PolicyServerConfig, policies: Sequence[str] = (), refusal_seconds: float = REFUSAL_SECONDS
    ) -> None:
        self.config = config
        self.shelf = Shelf(policies)
        self.refusal_seconds = refusal_seconds
        self.sessions: Sessions[RobotWork] = Sessions()
        self.worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="policy")

    # --- the four calls, named by LeRobot's protocol ------------------------------------------------------

    async def Ready(self, request: Any, context: Any) -> Any:
        """A robot is there and wants to be served."""
        async with self._answered(context, "Ready") as client:
            self.sessions.enter(client)
            logger.info(f"{client.peer} is ready")
        return services_pb2.Empty()

    async def SendPolicyInstructions(self, request: Any, context: Any) -> Any:
        """A robot describes itself and chooses its policy, which is loaded."""
        async with self._answered(context, "SendPolicyInstructions") as client:
            session = self.sessions.enter(client)
            try:
                with self.sessions.call(session, "SendPolicyInstructions"):
                    if len(request.data) > MAX_INSTRUCTIONS_BYTES:
                        raise too_much(f"instructions of {len(request.data)} bytes; {MAX_INSTRUCTIONS_BYTES} at most")
                    instructions = read_instructions(request.data)
                    logger.info(f"{client.peer} chooses {instructions.policy!r} on {instructions.device}")
                    session.work = await self._in_worker(self._load, instructions)
            except BaseException:
                self.sessions.leave(session)
                raise
        return services_pb2.Empty()

    async def SendObservations(self, request_iterator: AsyncIterator[Any], context: Any) -> Any:
        """What a robot sees, in pieces."""
        async with self._answered(context, "SendObservations") as client:
            session, work = self._at_work(client)
            with self.sessions.call(session, "SendObservations"):
                try:
                    data = await _whole_message(request_iterator)
                    work.put(read_observation(data, work.features))
                except BaseException:
                    work.owe()
                    raise
        return services_pb2.Empty()

    async def GetActions(self, request: Any, context: Any) -> Any:
        """A chunk for the newest observation, or nothing if there is none for `obs_queue_timeout` seconds."""
        async with self._answered(context, "GetActions") as client:
            session, work = self._at_work(client)
            with self.sessions.call(session, "GetActions"):
                start = time.perf_counter()
                observation = await work.next(self.config.obs_queue_timeout)
                if observation is None:
                    return services_pb2.Actions()
                try:
                    data = await self._in_worker(work.act, observation)
                    await asyncio.sleep(max(0.0, self.config.inference_latency - (time.perf_counter() - start)))
                except BaseException:
                    work.owe()
                    raise
                return services_pb2.Actions(data=data)

    # --- what they share ----------------------------------------------------------------------------------

    def _load(self, instructions: Instructions) -> RobotWork:
        """
        Raises:
            Refused: if the policy can't be had or does not fit the robot; the reason is that of the error.
        """
        if instructions.rename_map:
            raise invalid(
                f"rename_map={instructions.rename_map}: LeRobot's server looks for pictures under the policy's names "
                "before it renames any, so that a map can't help. Name cameras and joints as the policy does"
            )
        try:
            folder = self.shelf.find(instructions)
            parts = load_policy(folder, instructions.device)
            return RobotWork(self.config, instructions, *parts)
        except Refused:
            raise
        except Exception as error:
            # A wrong value says itself what is wrong: the policy's file, or the robot's joints.
            told = isinstance(error, ValueError)
            logger.error(f"{instructions.policy!r} does not go to work: {error}", exc_info=not told)
            raise Refused("FAILED_PRECONDITION", str(error) or type(error).__name__) from error

    async def _in_worker(self, function: Any, *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self.worker, partial(function, *arguments))

    def _at_work(self, client: Client) -> tuple[Session[RobotWork], RobotWork]:
        session = self.sessions.find(client, RobotWork.drop_queued)
        assert session.work is not None
        return session, session.work

    @asynccontextmanager
    async def _answered(self, context: Any, method: str) -> AsyncIterator[Client]:
        """Who calls; what goes wrong is logged with it and answered, and the server goes on."""
        client = Client(context.peer(), tuple(context.peer_identities() or ()))
        try:
            yield client
        except Refused as refusal:
            logger.warning(f"refused {method} of {client.peer}: {refusal.status}: {refusal}")
            await asyncio.sleep(self.refusal_seconds)
            await context.abort(grpc.StatusCode[refusal.status], str(refusal))
        except Exception as error:
            logger.exception(f"{method} of {client.peer} failed")
            await asyncio.sleep(self.refusal_seconds)
            reason = str(Refused("INTERNAL", f"{type(error).__name__}: {error}"))
            await context.abort(grpc.StatusCode.INTERNAL, reason)


async def _whole_message(pieces: AsyncIterator[Any]) -> bytes:
    """LeRobot's pieces put together; its own function waits for ever and takes any size.

    Raises:
        Refused: if they are too many, too slow, or stop before the end.
    """
    data = bytearray()
    try:
        async with asyncio.timeout(MESSAGE_SECONDS):
            async for piece in pieces:
                if piece.transfer_state == TransferState.TRANSFER_BEGIN:
                    data.clear()
                elif piece.transfer_state not in (TransferState.TRANSFER_MIDDLE, TransferState.TRANSFER_END):
                    raise invalid(f"a piece of an observation is in the state {piece.transfer_state}")
                data += piece.data
                if len(data) > MAX_OBSERVATION_BYTES:
                    raise too_much(f"an observation of more than {MAX_OBSERVATION_BYTES} bytes")
                if piece.transfer_state == TransferState.TRANSFER_END:
                    return bytes(data)
    except TimeoutError as error:
        raise Refused(
            "DEADLINE_EXCEEDED", f"an observation of which {len(data)} bytes came in {MESSAGE_SECONDS:g} seconds"
        ) from error
    raise invalid(f"an observation that ends after {len(data)} bytes, before its last piece")
