"""Verbs for a policy at work: `try`, `serve`, `look`, `open-loop`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .handed_on import HANDED_ON, fields_of


@click.command("try")
@click.option("--policy", default="mt10", help="Name of one that comes with the package, a folder, or a Hub id.")
@click.option(
    "--task",
    "tasks",
    help="Meta-World task or comma-separated tasks, such as push-v3.",
    show_default="all that the policy was trained on",
)
@click.option("--instruction", default="", help="What it is told.", show_default="the task's own sentence")
@click.option("--episodes", type=click.IntRange(1), default=1, help="For each task.")
@click.option("--seed", default=1000, help="Of the first environment.")
@click.option("--output-dir", type=click.Path(path_type=Path), default=Path("outputs/try"))
def try_(**options: Any) -> None:
    """Watch a trained policy act in the simulator.

    Without options, the one that comes with the package does each of its ten tasks once. Writes strip.png, a film of
    each episode and try.json. Needs the extras `metaworld` and `look`.
    """
    import lerobot_policy_deepfusion  # noqa: F401  # registers the policy and its simulators

    from ..looking.try_out import try_out

    click.echo(try_out(**options))


@click.command()
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
    from ..serving.policy_server import serve as serve_policies

    try:
        serve_policies(**options)
    except (ImportError, RuntimeError) as error:  # no gRPC; a port in use
        raise click.ClickException(f"deepfusion serve: {error}") from error


@click.command(context_settings=HANDED_ON)
@click.argument("checkpoint")
@click.option("--dataset", type=click.Path(path_type=Path), help="Folder of a data set to show it.")
@click.option("--repo-id", default="local/data", help="The data set's name.")
@click.option("--episode", type=click.IntRange(0), default=0, help="Of the data set.")
@click.option("--seed", default=1000, help="Of the simulator's episode, and of the noise.")
@click.option("--frames", type=click.IntRange(1), default=30, help="How many observations to look at.")
@click.option("--occlusion", is_flag=True, help="Heat is how far the chunk moves when a cell is hidden.")
@click.option(
    "--hide", "percent", type=click.FloatRange(0, 50, min_open=True), default=10.0, help="Percent of the cells."
)
@click.option("--output-dir", type=click.Path(path_type=Path), default=Path("outputs/look"))
@click.pass_context
def look(context: click.Context, dataset: Path | None, **options: Any) -> None:
    """Draw what a policy looks at.

    CHECKPOINT is a policy's folder or Hub id. It is shown frames of a data set (--dataset), or acts in a simulator
    (--env.type=metaworld_fast --env.task=push-v3, as in lerobot-eval). Writes strip.png, layers.png, heads.png,
    look.mp4, look.json and, with Rerun (extra `look`), look.rrd.

    Heat is the expert's attention over each camera's pixels. Attention can mislead, so the hottest and the coldest
    cells are hidden, and how far the chunk moves is said. With --occlusion, and where a vision tower's tokens have no
    places, as those of tiny, heat is how far the chunk moves when a cell is hidden.
    """
    env = fields_of(context, "env")
    if (dataset is None) == (not env):
        raise click.UsageError("give either --dataset or --env.type=... and --env.task=...", context)
    import lerobot_policy_deepfusion  # noqa: F401  # registers the policy and its simulators

    from ..looking.look import look as look_at

    click.echo(look_at(dataset=dataset, env=env, **options))


@click.command("open-loop")
@click.argument("checkpoint")
@click.option("--dataset", type=click.Path(path_type=Path), required=True, help="Folder of the data set.")
@click.option(
    "--repo-id",
    help="The data set's name, by which it is known whether the policy was trained on it.",
    show_default="by its folder alone",
)
@click.option("--episodes", default="0", help="Which, such as 0,3,7-9.")
@click.option(
    "--stride",
    type=click.IntRange(1),
    help="Frames from one chunk to the next.",
    show_default="as many as are executed of a chunk",
)
@click.option("--output-dir", type=click.Path(path_type=Path), default=Path("outputs/open_loop"))
def open_loop(**options: Any) -> None:
    """Compare a policy's chunks with recorded ones.

    To be done before it moves a robot.

    CHECKPOINT is a policy's folder. Along the episodes it predicts chunks, by 1, 2, 5 and 10 evaluations, and with
    black pictures and other instructions: a policy that does as well without looking does not look. Says which
    episodes it was trained on, from train_config.json. Writes open_loop.png, one page, and open_loop.json.
    """
    import lerobot_policy_deepfusion  # noqa: F401  # registers the policy

    from ..looking.open_loop import open_loop as compare

    click.echo(compare(**options))
