"""Verbs for data sets: `demos`, `check-data`, `space`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..sim.recording import FIRST_SEED

EPISODES, SIZE, WORKERS = 60, 96, 2  # of `demos`


@click.command()
@click.option("--simulator", type=click.Choice(["metaworld", "pusht", "robo_evals"]), default="metaworld")
@click.option(
    "--task", help="Task or comma-separated tasks.", show_default="push-v3; pusht of PushT; push of robo-evals"
)
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
    from ..sim.recording import Recipe, record

    tasks = task or {"metaworld": "push-v3", "pusht": "pusht", "robo_evals": "push"}[fields["simulator"]]
    recipe = Recipe(tasks=tuple(name.strip() for name in tasks.split(",") if name.strip()), **fields)
    try:
        counts = record(recipe, root, workers)
    except RuntimeError as error:  # the expert hardly ever succeeds
        raise click.ClickException(str(error)) from error
    click.echo(
        f"{root}: {counts['kept']} episodes, {counts['frames']} frames; "
        f"{counts['failed']} more episodes failed and were left out"
    )


@click.command("check-data")
@click.argument("root", type=click.Path(path_type=Path))
def check_data(root: Path) -> None:
    """Name the files of a data set that were cut short."""
    from ..inputs.damaged_files import damaged_files

    if not (root / "meta").is_dir():
        raise click.ClickException(f"{root} has no folder `meta`, so it is no data set")
    damaged = damaged_files(root)
    if damaged:
        raise click.ClickException("\n".join(damaged))
    click.echo(f"every file of {root} is whole")


@click.command()
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
    from ..looking.space_drawn import look_at_space

    click.echo(look_at_space(root, output_dir, **options))
