"""Options that a command hands on as they are, to a parser that needs LeRobot."""

from __future__ import annotations

import sys
from typing import Any

import click

HANDED_ON = {"ignore_unknown_options": True, "allow_extra_args": True}


def hand_on(context: click.Context) -> None:
    """Leave the options to LeRobot's own parser, which reads them from the command line."""
    sys.argv = [f"deepfusion {context.info_name}", *context.args]
    import lerobot_policy_deepfusion  # noqa: F401  # registers the policy and its steps


def fields_of(context: click.Context, prefix: str) -> dict[str, Any]:
    """`--<prefix>.<field>=<value>` among the options that were handed on, values as YAML has them."""
    import yaml

    options = {}
    for option in context.args:
        name, equals, value = option.removeprefix(f"--{prefix}.").partition("=")
        if not option.startswith(f"--{prefix}.") or not equals:
            raise click.UsageError(f"{option}: expected --{prefix}.<field>=<value>", context)
        try:
            options[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ValueError(f"{option} is not YAML: {' '.join(str(error).split())}") from error
    return options
