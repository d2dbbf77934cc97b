"""The ladder's table, as Markdown."""

from __future__ import annotations

from ..study.results import Row, rate
from .arms import ARMS, RUNGS


def summary(rows: list[Row]) -> str:
    """One line about a run."""
    parts = [f"{row['cameras']} {row['control']} {row['successes']}/{row['episodes']}" for row in rows]
    return f"{rows[0]['run']}: {', '.join(parts)}"


def table(rows: list[Row]) -> None:
    """Print the success of each arm on each rung, seeds together, with what was changed at test."""
    groups: dict[tuple[str, str, str, str, int], list[Row]] = {}
    for row in rows:
        key = row["rung"], row["cameras"], row["arm"], row["control"], row["steps"]
        groups.setdefault(key, []).append(row)
    print(
        "\n| demonstrations | cameras when judged | arm | steps | seeds | success | 95% interval | by seed | loss | "
        "CPU min |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for (rung, cameras, arm, control, steps), group in sorted(groups.items(), key=lambda item: _order(*item[0])):
        share, low, high = rate(group)
        recorded = f"{RUNGS[rung].demonstrations} {RUNGS[rung].task}, {RUNGS[rung].camera_poses}"
        each = ", ".join(f"{rate([row])[0]:.0%}" for row in sorted(group, key=lambda row: row["seed"]))
        loss, minutes = (sum(row[column] for row in group) / len(group) for column in ("loss", "cpu_minutes"))
        print(
            f"| {recorded} | {cameras} | {ARMS[arm].says}{control and f', {control} at test'} | {steps} | "
            f"{len(group)} | "
            f"**{share:.0%}** | {low:.0%} to {high:.0%} | {each} | {loss:.3f} | {minutes:.1f} |"
        )


def _order(rung: str, cameras: str, arm: str, control: str, steps: int) -> tuple[int, int, int, int, str]:
    return list(RUNGS).index(rung), RUNGS[rung].judged.index(cameras), steps, list(ARMS).index(arm), control
