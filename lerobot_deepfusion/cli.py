"""The one command: `deepfusion <verb>`.

A verb imports what it needs when it is called: LeRobot takes 15 seconds to import, and `--help` must not wait for it.
"""

from __future__ import annotations

import logging
import sys

import click

from .commands import checkpoints, data, work


@click.group(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(package_name="lerobot_policy_deepfusion")
def deepfusion() -> None:
    """Everything around the deepfusion policy that LeRobot's own commands do not do.

    Training, evaluation and rollout are lerobot-train, lerobot-eval and lerobot-rollout.

    \b
    Shell completion, in ~/.bashrc (zsh_source and fish_source for those shells):
      eval "$(_DEEPFUSION_COMPLETE=bash_source deepfusion)"
    """


for module in (data, checkpoints, work):
    for verb in vars(module).values():
        if isinstance(verb, click.Command):
            deepfusion.add_command(verb)


def shorten(record: logging.LogRecord) -> bool:
    """Of LeRobot's warning that torchcodec finds no FFmpeg: the last line, without a hundred of tracebacks."""
    record.msg, record.args = record.getMessage().strip().splitlines()[-1], None
    return True


def main(arguments: list[str] | None = None) -> None:
    """Console script. What a user can mend is said in a line and not in a traceback."""
    logging.getLogger("lerobot.utils.import_utils").addFilter(shorten)
    verb = next(iter(sys.argv[1:] if arguments is None else arguments), "")
    try:
        deepfusion.main(arguments, prog_name="deepfusion", standalone_mode=False)
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "deepfusion"
        click.echo(f"{command}: {error.format_message()} ({command} --help)", err=True)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        sys.exit(error.format_message())
    except click.Abort:
        sys.exit(130)
    except (OSError, ValueError, ImportError) as error:
        sys.exit(f"deepfusion {verb}: {error}")
