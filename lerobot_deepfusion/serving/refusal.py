"""The one error of this package that is meant for the client: what is not done for it, and why."""

from __future__ import annotations

LONGEST = 1500  # bytes; gRPC writes some as three, and drops an answer whose text is above 8 KB


class Refused(ValueError):
    """
    Args:
        status: name of a `grpc.StatusCode`. (A name, so that what reads messages needs no gRPC.)
        reason: goes into the server's log and to the client, cut to a length that gRPC carries.
    """

    def __init__(self, status: str, reason: str) -> None:
        text = reason[:LONGEST].encode("utf-8", "backslashreplace")  # a lone surrogate is no UTF-8
        super().__init__(text[:LONGEST].decode("utf-8", "ignore") + (" ..." if len(reason) > LONGEST else ""))
        self.status = status


def invalid(reason: str) -> Refused:
    """A message that says what this server can't take."""
    return Refused("INVALID_ARGUMENT", reason)


def too_much(reason: str) -> Refused:
    """A message above one of the limits."""
    return Refused("RESOURCE_EXHAUSTED", reason)


def quoted(value: object) -> str:
    """A value from a message for a text: short, on one line, and never walked through.

    A container that holds itself twice, thirty levels deep, takes a billion steps to print.
    """
    if value is None or isinstance(value, str | int | float):
        text = repr(value[:200] if isinstance(value, str) else value)
        return text if len(text) <= 200 else f"{text[:200]}..."
    return f"a {type(value).__name__}"
