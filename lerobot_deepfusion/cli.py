"""The one command: `deepfusion <verb>`.

A verb imports what it needs when it is called: LeRobot takes 15 seconds to import, and `--help` must not wait for it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

EPISODES, SIZE, FIRST_SEED, WORKERS = 60, 96, 100_000, 2  # of `demos`
BATCH_SIZE, LORA_RANK = 8, 16  # of `info`, where no train config gives them: LeRobot's own defaults
# Options that this command hands on as they are, to a parser that needs LeRobot.
HANDED_ON = {"ignore_unknown_options": True, "allow_extra_args": True}


@click.group(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(package_name="lerobot_policy_deepfusion")
def deepfusion() -> None:
    """Everything around the deepfusion policy that LeRobot's own commands do not do.

    Training, evaluation and rollout are lerobot-train, lerobot-eval and lerobot-rollout.

    \b
    Shell completion, in ~/.bashrc (zsh_source and fish_source for those shells):
      eval "$(_DEEPFUSION_COMPLETE=bash_source deepfusion)"
    """


@deepfusion.command()
@click.option("--simulator", type=click.Choice(["metaworld", "pusht"]), default="metaworld")
@click.option("--task", help="Task or comma-separated tasks.", show_default="push-v3; pusht of PushT")
@click.option(
    "--episodes",
    type=click.IntRange(1),
    default=EPISODES,
    help="Successful episodes to keep for each task.",
)
@click.option("--root", type=click.Path(path_type=Path), required=True, help="Folder of the new data set.")
@click.option("--size", default=SIZE, help="Width and height of the frames, pixels.")
@click.option("--seed", default=FIRST_SEED, help="First environment seed, far from those of lerobot-eval.")
@click.option(
    "--noise",
    default=0.0,
    help="Standard deviation of the noise on the executed action (full scale is 1). The recorded action is the "
    "expert's own, so the data show how to recover.",
)
@click.option(
    "--cameras", default="", help="Comma-separated Meta-World cameras (corner2,corner).", show_default="LeRobot's one"
)
@click.option(
    "--goal-markers/--no-goal-markers",
    default=True,
    help="Show what Meta-World marks in its pictures. Evaluate with --env.goal_markers as recorded.",
)
@click.option(
    "--depth/--no-depth",
    default=False,
    help="Record each camera's depth too, with intrinsics and pose. Evaluate with --env.depth as recorded.",
)
@click.option(
    "--camera-poses",
    default="fixed",
    help="Where Meta-World's cameras stand in each episode: few_train, narrow_train or wide_train. Evaluate with "
    "--env.camera_poses, the same or its _held_out.",
)
@click.option("--workers", default=WORKERS, help="Recording processes.")
def demos(task: str | None, root: Path, workers: int, **fields: Any) -> None:
    """Record demonstrations from scripted experts as a data set.

    Episodes are recorded in parts beside the target and merged at the end: an interrupted run goes on where it
    stopped when the same command is given again. Episodes that the expert fails are left out and counted.
    """
    from .sim.recording import Recipe, record

    tasks = task or {"metaworld": "push-v3", "pusht": "pusht"}[fields["simulator"]]
    recipe = Recipe(tasks=tuple(name.strip() for name in tasks.split(",") if name.strip()), **fields)
    try:
        counts = record(recipe, root, workers)
    except RuntimeError as error:  # the expert hardly ever succeeds
        raise click.ClickException(str(error)) from error
    click.echo(
        f"{root}: {counts['kept']} episodes, {counts['frames']} frames; "
        f"{counts['failed']} more episodes failed and were left out"
    )


@deepfusion.command(context_settings=HANDED_ON)
@click.argument("what")
@click.option(
    "--batch-size",
    type=click.IntRange(1),
    help="Of a training step.",
    show_default=f"the train config's, else {BATCH_SIZE}",
)
@click.option(
    "--cameras",
    type=click.IntRange(1),
    help="How many, where the config leaves it to the data set.",
    show_default="1",
)
@click.pass_context
def info(context: click.Context, what: str, batch_size: int | None, cameras: int | None) -> None:
    """What goes in and out of a policy, and the memory it takes.

    Nothing is loaded: the network is built on the meta device, from config files alone. Counting the memory takes
    half a minute or more. WHAT is

    \b
    a checkpoint of this policy      a directory or Hub id
    a train config                   $(deepfusion config llava_1.5_7b), or a file of yours
    a LLaVA                          a directory or Hub id, under this policy's default options
    llava-1.5-7b, onevision-0.5b     two published LLaVAs, without the Hub; or tiny

    --policy.<field>=<value> replaces an option, as in lerobot-train.
    """
    from .cost.blueprint import assume_cameras, build, read_policy
    from .cost.report import report

    config, rest = read_policy(what, policy_options(context))
    assume_cameras(config, cameras)
    peft = rest.get("peft") or {}
    model = build(config)
    if peft:  # freezes what it adapts
        model.requires_grad_(False)
    batch = batch_size or rest.get("batch_size", BATCH_SIZE)
    click.echo(report(config, model, batch, peft.get("r") or LORA_RANK))


def policy_options(context: click.Context) -> dict[str, Any]:
    """`--policy.<field>=<value>` among the options that were handed on."""
    import yaml

    options = {}
    for option in context.args:
        name, equals, value = option.removeprefix("--policy.").partition("=")
        if not option.startswith("--policy.") or not equals:
            raise click.UsageError(f"{option}: expected --policy.<field>=<value>", context)
        options[name] = yaml.safe_load(value)
    return options


@deepfusion.command()
@click.argument("name", required=False)
def config(name: str | None) -> None:
    """Where a config that comes with the policy lies.

    For lerobot-train --config_path=$(deepfusion config tiny). Without NAME, lists them.
    """
    from .storage.shipped_configs import shipped_configs

    found = shipped_configs()
    if name is None:
        click.echo("\n".join(f"{name:20} {path}" for name, path in found.items()))
    elif name in found:
        click.echo(found[name])
    else:
        raise click.ClickException(f"no config {name!r}; there are {', '.join(found)}")


@deepfusion.command(context_settings=HANDED_ON)
@click.pass_context
def base(context: click.Context) -> None:
    """Write the checkpoint that adapters are put around.

    VLM, fresh expert and processors. Takes the options of lerobot-train: --config_path, --dataset.repo_id,
    --output_dir, --policy.<field>, --seed.
    """
    hand_on(context)
    from .storage.adapter_checkpoints import write_base

    write_base()


@deepfusion.command()
@click.argument("adapters")
@click.argument("output_dir", type=click.Path(path_type=Path))
def merge(adapters: str, output_dir: Path) -> None:
    """Add adapters to their base.

    ADAPTERS is a checkpoint of lerobot-train --peft..., OUTPUT_DIR a folder for one that needs neither PEFT nor the
    base.
    """
    import lerobot_policy_deepfusion  # noqa: F401  # registers the policy and its steps

    from .storage.adapter_checkpoints import merge as merge_adapters

    merge_adapters(adapters, output_dir)


@deepfusion.command()
@click.argument("output_dir", type=click.Path(path_type=Path))
def recover(output_dir: Path) -> None:
    """Find a run's newest complete checkpoint.

    After a crash or a full disk; OUTPUT_DIR is that of the run. Says of each newer checkpoint what is missing or
    damaged, points the link checkpoints/last at the complete one and prints the command that resumes. Nothing is
    deleted.
    """
    from .storage.recovery import finished, newest_complete, point_last, resume_command

    checkpoint, incomplete = newest_complete(output_dir)
    for path, found in incomplete.items():
        click.echo("\n    ".join([f"{path} is not complete:", *found]))
    if checkpoint is None:
        raise click.ClickException(f"no checkpoint of {output_dir} is complete; the run has to start again")
    point_last(checkpoint)
    what_next = "The run is finished" if finished(checkpoint) else f"Resume with {resume_command(output_dir)}"
    click.echo(f"{checkpoint} is complete, and `last` points at it. {what_next}")


@deepfusion.command("check-data")
@click.argument("root", type=click.Path(path_type=Path))
def check_data(root: Path) -> None:
    """Name the files of a data set that were cut short."""
    from .inputs.damaged_files import damaged_files

    if not (root / "meta").is_dir():
        raise click.ClickException(f"{root} has no folder `meta`, so it is no data set")
    damaged = damaged_files(root)
    if damaged:
        raise click.ClickException("\n".join(damaged))
    click.echo(f"every file of {root} is whole")


@deepfusion.command()
@click.argument("root", type=click.Path(path_type=Path))
@click.option("--repo-id", default="local/data", help="The data set's name.")
@click.option("--episode", type=click.IntRange(0), default=0)
@click.option("--frame", type=click.IntRange(0), default=0, help="The one that is drawn.")
@click.option("--frames", type=click.IntRange(1), default=30, help="How many are recorded for Rerun.")
@click.option(
    "--depth-range",
    nargs=2,
    type=float,
    default=(0.02, 5.0),
    help="Nearest and farthest metres, as policy.depth_range.",
)
@click.option("--camera-calibration", help="As policy.camera_calibration (YAML), for what the data set does not say.")
@click.option("--output-dir", type=click.Path(path_type=Path), default=Path("outputs/space"))
def space(root: Path, output_dir: Path, **options: Any) -> None:
    """Draw where a data set's depth says that things are.

    To check intrinsics and poses before training: ROOT is the data set's folder. Writes space.png, the points of a
    frame from three sides, and, with Rerun (extra `look`), space.rrd, the points over an episode.
    """
    from .looking.space_drawn import look_at_space

    click.echo(look_at_space(root, output_dir, **options))


@deepfusion.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--repo-id", help="Its place on the Hub, owner/name.")
@click.option(
    "--eval-info", type=click.Path(path_type=Path), help="eval_info.json that lerobot-eval wrote for this checkpoint."
)
def card(checkpoint: Path, repo_id: str | None, eval_info: Path | None) -> None:
    """Write the model card of a checkpoint.

    CHECKPOINT is its folder pretrained_model. With --repo-id, prints the command that pushes both.
    """
    import lerobot_policy_deepfusion  # noqa: F401  # registers what train_config.json may name

    from .storage.hub_push import upload_command
    from .storage.model_card import write_card

    click.echo(f"wrote {write_card(checkpoint, repo_id, eval_info)}")
    if repo_id:
        click.echo(upload_command(repo_id, checkpoint))


@deepfusion.command()
@click.option("--host", default="localhost", help="Where to listen; another one needs --policy.")
@click.option("--port", default=8080)
@click.option(
    "--policy",
    "policies",
    multiple=True,
    help="A policy that may be served: directory, Hub id or id@revision. Once for each.",
)
@click.option("--tls-cert", type=click.Path(path_type=Path), help="The server's certificate, PEM.")
@click.option("--tls-key", type=click.Path(path_type=Path), help="Its key.")
@click.option(
    "--tls-client-ca", type=click.Path(path_type=Path), help="Of the certificates that clients then must show."
)
@click.option("--fps", default=30, help="Of the robot.")
@click.option(
    "--inference-latency", "--inference_latency", default=0.0333, help="Seconds that a chunk takes at least."
)
@click.option(
    "--obs-queue-timeout",
    "--obs_queue_timeout",
    default=2.0,
    help="Seconds to wait for an observation.",
)
def serve(**options: Any) -> None:
    """Serve policies to LeRobot's asynchronous clients.

    One robot at a time; nothing that a client sends is run. Other machines are let in with --host, and choose among
    the policies given. The robot's side, TLS and tunnels: docs/serving.md.
    """
    from .serving.policy_server import serve as serve_policies

    try:
        serve_policies(**options)
    except (ImportError, RuntimeError) as error:  # no gRPC; a port in use
        raise click.ClickException(f"deepfusion serve: {error}") from error


def hand_on(context: click.Context) -> None:
    """Leave the options to LeRobot's own parser, which reads them from the command line."""
    sys.argv = [f"deepfusion {context.info_name}", *context.args]
    import lerobot_policy_deepfusion  # noqa: F401  # registers the policy and its steps


def main(arguments: list[str] | None = None) -> None:
    """Console script. What a user can mend is said in a line and not in a traceback."""
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
    except (OSError, ValueError) as error:
        sys.exit(f"deepfusion {verb}: {error}")
