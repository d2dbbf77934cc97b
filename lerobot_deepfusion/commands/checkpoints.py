"""Verbs for configs and checkpoints: `info`, `config`, `policy`, `base`, `merge`, `recover`, `card`."""

from __future__ import annotations

from pathlib import Path

import click

from .handed_on import HANDED_ON, fields_of, hand_on

BATCH_SIZE, LORA_RANK = 8, 16  # of `info`, where no train config gives them: LeRobot's own defaults


@click.command(context_settings=HANDED_ON)
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
    from ..cost.blueprint import assume_cameras, build, read_policy
    from ..cost.report import report

    config, rest = read_policy(what, fields_of(context, "policy"))
    assume_cameras(config, cameras)
    peft = rest.get("peft") or {}
    model = build(config)
    if peft:  # freezes what it adapts
        model.requires_grad_(False)
    batch = batch_size or rest.get("batch_size", BATCH_SIZE)
    click.echo(report(config, model, batch, peft.get("r") or LORA_RANK))


@click.command()
@click.argument("name", required=False)
def config(name: str | None) -> None:
    """Where a config that comes with the policy lies.

    For lerobot-train --config_path=$(deepfusion config tiny). Without NAME, lists them.
    """
    from ..storage.shipped import shipped_configs

    _say_where("config", name, shipped_configs())


@click.command()
@click.argument("name", required=False)
def policy(name: str | None) -> None:
    """Where a trained policy that comes with the package lies.

    For lerobot-eval and lerobot-train --policy.path=$(deepfusion policy mt10). Without NAME, lists them.
    """
    from ..storage.shipped import shipped_policies

    _say_where("policy", name, shipped_policies())


def _say_where(kind: str, name: str | None, found: dict[str, Path]) -> None:
    if name is None:
        click.echo("\n".join(f"{name:20} {path}" for name, path in found.items()))
    elif name in found:
        click.echo(found[name])
    else:
        raise click.ClickException(f"no {kind} {name!r}; there are {', '.join(found)}")


@click.command(context_settings=HANDED_ON)
@click.pass_context
def base(context: click.Context) -> None:
    """Write the checkpoint that adapters are put around.

    VLM, fresh expert and processors. Takes the options of lerobot-train: --config_path, --dataset.repo_id,
    --output_dir, --policy.<field>, --seed.
    """
    hand_on(context)
    from ..storage.adapter_checkpoints import write_base

    write_base()


@click.command()
@click.argument("adapters")
@click.argument("output_dir", type=click.Path(path_type=Path))
def merge(adapters: str, output_dir: Path) -> None:
    """Add adapters to their base.

    ADAPTERS is a checkpoint of lerobot-train --peft..., OUTPUT_DIR a folder for one that needs neither PEFT nor the
    base.
    """
    import lerobot_policy_deepfusion  # noqa: F401  # registers the policy and its steps

    from ..storage.adapter_checkpoints import merge as merge_adapters

    merge_adapters(adapters, output_dir)


@click.command()
@click.argument("output_dir", type=click.Path(path_type=Path))
def recover(output_dir: Path) -> None:
    """Find a run's newest complete checkpoint.

    After a crash or a full disk; OUTPUT_DIR is that of the run. Says of each newer checkpoint what is missing or
    damaged, points the link checkpoints/last at the complete one and prints the command that resumes. Nothing is
    deleted.
    """
    from ..storage.recovery import finished, newest_complete, point_last, resume_command

    checkpoint, incomplete = newest_complete(output_dir)
    for path, found in incomplete.items():
        click.echo("\n    ".join([f"{path} is not complete:", *found]))
    if checkpoint is None:
        raise click.ClickException(f"no checkpoint of {output_dir} is complete; the run has to start again")
    point_last(checkpoint)
    what_next = "The run is finished" if finished(checkpoint) else f"Resume with {resume_command(output_dir)}"
    click.echo(f"{checkpoint} is complete, and `last` points at it. {what_next}")


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--repo-id", help="Its place on the Hub, owner/name.")
@click.option(
    "--eval-info", type=click.Path(path_type=Path), help="eval_info.json that lerobot-eval wrote for this checkpoint."
)
@click.option("--look", type=click.Path(path_type=Path), help="Folder that `deepfusion look` wrote for it.")
@click.option("--open-loop", type=click.Path(path_type=Path), help="Folder that `deepfusion open-loop` wrote for it.")
def card(checkpoint: Path, repo_id: str | None, **found: Path | None) -> None:
    """Write the model card of a checkpoint.

    CHECKPOINT is its folder pretrained_model. Pictures of `look` and `open-loop` go with it. With --repo-id, prints
    the command that pushes everything.
    """
    import lerobot_policy_deepfusion  # noqa: F401  # registers what train_config.json may name

    from ..storage.hub_push import upload_command
    from ..storage.model_card import write_card

    click.echo(f"wrote {write_card(checkpoint, repo_id, **found)}")
    if repo_id:
        click.echo(upload_command(repo_id, checkpoint))
