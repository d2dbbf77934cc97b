"""The command `deepfusion` with its help as Markdown, for mkdocs-click, which takes help for that."""

from __future__ import annotations

import copy
import inspect

import click

from lerobot_deepfusion.cli import deepfusion as original

WIDTH = 108  # characters of a line in a fence of the site
AS_IT_IS = "\b"  # click keeps the lines of a paragraph below it


def for_the_page(command: click.Command) -> click.Command:
    """A copy of a command and its verbs."""
    shown = copy.copy(command)
    shown.context_settings = {**command.context_settings, "terminal_width": WIDTH}
    shown.help = as_markdown(command.help or "")
    if isinstance(shown, click.Group):
        shown.commands = {name: for_the_page(verb) for name, verb in shown.commands.items()}
    return shown


def as_markdown(text: str) -> str:
    """Help as click prints it, in Markdown."""
    paragraphs = []
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        first, _, rest = paragraph.partition("\n")
        if first.strip() == AS_IT_IS:
            paragraphs.append(f"```text\n{rest}\n```")
        else:
            paragraphs.append(paragraph.replace("<", "&lt;").replace("*", "\\*"))
    return "\n\n".join(paragraphs)


deepfusion = for_the_page(original)
