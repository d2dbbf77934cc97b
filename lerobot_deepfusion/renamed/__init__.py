"""Commands of 0.1 under their old names, until 0.3.

This folder is also where `python -m lerobot_deepfusion.<old name>` is looked for (`__path__` of the package).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import click

from lerobot_deepfusion.cli import main


def renamed(verb: str) -> Callable[[], None]:
    """A command that says what it is called now, and does it."""

    def run() -> None:
        click.echo(f"{Path(sys.argv[0]).stem} is now `deepfusion {verb}`; the old name goes with 0.3", err=True)
        main([verb, *sys.argv[1:]])

    return run


demos, info = renamed("demos"), renamed("info")
