"""Who is served: one robot at a time, told from the others by its connection.

LeRobot's server keeps one queue for all its clients, so that a second robot gets actions for what the first one saw.
Here a robot has the server to itself until it falls silent, and the next begins with nothing of it.

A robot is its connection (`ip:port`; LeRobot's client keeps one open). When a network breaks off, the client connects
anew from another port and goes on: it keeps its place, and its old observations are dropped, if the old
connection is silent. Where TLS tells who the clients are, that is part of who they are.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from .refusal import Refused, too_much

# Seconds without a call. LeRobot's client always has one open: it asks for actions in a loop.
SILENT = 10.0  # until another robot may have the place
SILENT_SAME_HOST = 2.0  # until another connection from the same host may have it


@dataclass(frozen=True)
class Client:
    """Who calls.

    Attributes:
        peer: gRPC's name of the connection, such as `ipv4:192.168.1.20:51234`.
        identity: what its certificate says, or nothing.
    """

    peer: str
    identity: tuple[bytes, ...] = ()

    def same_host(self, other: Client) -> bool:
        """Whether it may be the same robot over another connection."""
        return self.identity == other.identity and self.peer.rpartition(":")[0] == other.peer.rpartition(":")[0]


@dataclass(eq=False)
class Session[T]:
    """One robot's time at the server.

    Attributes:
        work: policy and observations, once the robot has said which.
        calls: its calls that are being answered, by method.
        heard: when the last one ended.
    """

    client: Client
    heard: float
    work: T | None = None
    calls: set[str] = field(default_factory=set)


class Sessions[T]:
    """The one place at the server."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.current: Session[T] | None = None

    def enter(self, client: Client) -> Session[T]:
        """Take the place, with nothing in it: for the first call of a robot, and its first again.

        Raises:
            Refused: while another robot is served.
        """
        current = self.current
        if current is not None and "SendPolicyInstructions" in current.calls and current.client == client:
            raise too_much("the policy that this client chose is being loaded")
        if current is not None and current.client != client and not self._is_over(current, client):
            raise too_much(
                f"busy with {current.client.peer}; this server serves one robot at a time. Stop that robot's client, "
                f"or connect again when it has been silent for {SILENT:g} seconds"
            )
        self.current = Session(client, self.clock())
        return self.current

    def find(self, client: Client, drop: Callable[[T], None]) -> Session[T]:
        """The session of a robot that has chosen its policy.

        Args:
            drop: called with the session's work when another connection goes on with it, to drop what is queued.

        Raises:
            Refused: if it has none.
        """
        current = self.current
        if current is not None and current.work is not None:
            if current.client == client:
                return current
            if current.client.same_host(client) and self._is_over(current, client):
                drop(current.work)
                self.current = Session(client, self.clock(), current.work)
                return self.current
        other = current is not None and current.client != client
        raise Refused(
            "FAILED_PRECONDITION",
            f"{'busy with ' + current.client.peer + ', and ' if current is not None and other else ''}"
            "no policy was chosen over this connection; start the robot's client again",
        )

    def leave(self, session: Session[T]) -> None:
        """Give the place back."""
        if self.current is session:
            self.current = None

    @contextmanager
    def call(self, session: Session[T], method: str) -> Iterator[None]:
        """While a call is answered, its session is not silent.

        Raises:
            Refused: if the robot has such a call open: LeRobot's client waits for each answer.
        """
        if method in session.calls:
            raise too_much(f"another {method} of this client is being answered")
        session.calls.add(method)
        try:
            yield
        finally:
            session.calls.discard(method)
            session.heard = self.clock()

    def _is_over(self, session: Session[T], next_client: Client) -> bool:
        limit = SILENT_SAME_HOST if session.client.same_host(next_client) else SILENT
        return not session.calls and self.clock() - session.heard >= limit
