"""What the command line chose."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    """
    Attributes:
        device: as torch names it.
        small: small stand-ins for the published LLaVAs, to prove that everything runs.
        rounds: of every measurement.
    """

    device: str
    small: bool
    rounds: int
