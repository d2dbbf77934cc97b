"""The study's tables, as Markdown, and plots."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from lerobot_deepfusion.looking.pyplot import load_pyplot

from .arms import ARMS, CONTROL, FAST, HEADLINE_ARMS, HEADLINE_TASKS, PEERS, REPLAY, STALE, TASKS
from .results import Row, budget, paired_interval, rate

Key = tuple[str, str, tuple[float, str]]  # task, arm, budget
# Differences that are told, seed by seed.
BESIDE = {"kv": "late", "hidden": "late", "wordless": "kv", **{arm: arm.split("_")[0] for arm in FAST}}
DRAWN = (*HEADLINE_TASKS, "push_stale", "faucet_stale")  # as far as there are rows
MINUTES = {**{name: task.minutes for name, task in TASKS.items()}, **STALE}  # in which arms are compared


def grouped(rows: list[Row]) -> dict[Key, list[Row]]:
    """Rows without a control, by task, arm and budget; the seeds of one arm are one group."""
    groups: dict[Key, list[Row]] = {}
    for row in rows:
        if not row["control"]:
            groups.setdefault((row["task"], row["arm"], budget(row)), []).append(row)
    return groups


def tables(rows: list[Row]) -> None:
    """Print every arm's success, what the fusions differ by, and the controls."""
    print("\n| task | arm | budget | seeds | success | 95% interval | by seed | samples | parameters, M |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for (task, arm, (_, given)), group in sorted(grouped(rows).items(), key=lambda item: _order(item[0])):
        seeds = sorted({row["seed"] for row in group})
        share, low, high = rate(group)
        each = ", ".join(f"{rate([row for row in group if row['seed'] == seed])[0]:.0%}" for seed in seeds)
        trained = "" if arm == REPLAY else f"{_mean(group, 'steps') * group[0]['batch']:,.0f}"
        size = "" if arm == REPLAY else f"{group[0]['parameters'] / 1e6:.2f}"
        print(
            f"| {task} | `{arm}`: {ARMS[arm].says} | {given} | {len(seeds)} | **{share:.0%}** | "
            f"{low:.0%} to {high:.0%} | {each} | {trained} | {size} |"
        )
    _differences(rows)
    controlled = {row["run"] for row in rows if row["control"]}
    print("\n| run | environment | as trained | black images | other text |")
    print("| --- | --- | --- | --- | --- |")
    for run, environment in dict.fromkeys((r["run"], r["environment"]) for r in rows if r["run"] in controlled):
        cells = []
        for control in ("", "black images", "other text"):
            found = [r for r in rows if (r["run"], r["environment"], r["control"]) == (run, environment, control)]
            share, low, high = rate(found) if found else (0, 0, 0)
            cells.append(f"{share:.0%} ({low:.0%} to {high:.0%})" if found else "-")
        print(f"| {run} | {environment} | {' | '.join(cells)} |")
    minutes = sum({row["run"]: row["cpu_minutes"] or 0 for row in rows}.values())
    print(f"\n{len({row['run'] for row in rows})} runs, {minutes / 60:.1f} CPU hours of training", flush=True)


def _differences(rows: list[Row]) -> None:
    """Arms beside the one they are to be compared with, over the seeds that both have."""
    print("\n| task | budget | seeds | points | 95% interval | by seed | steps |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    groups = grouped(rows)
    for (task, arm, given), group in sorted(groups.items(), key=lambda item: _order(item[0])):
        other = groups.get((task, BESIDE.get(arm, ""), given), [])
        seeds = sorted({row["seed"] for row in group} & {row["seed"] for row in other})
        if not seeds:
            continue
        ours, theirs = (
            {seed: [row for row in side if row["seed"] == seed] for seed in seeds} for side in (group, other)
        )
        each = [100 * (rate(ours[seed])[0] - rate(theirs[seed])[0]) for seed in seeds]
        steps = statistics.mean(ours[seed][0]["steps"] / theirs[seed][0]["steps"] for seed in seeds)
        points, low, high = paired_interval(each)
        print(
            f"| {task} | {given[1]} | {len(seeds)} | `{arm}` less `{BESIDE[arm]}` **{points:+.1f}** | "
            f"{f'{low:+.0f} to {high:+.0f}' if len(seeds) > 1 else '-'} | {', '.join(f'{d:+.0f}' for d in each)} | "
            f"{steps:.2f}x |"
        )


def _order(key: Key) -> tuple[Any, ...]:
    task, arm, given = key
    return task, given, list(ARMS).index(arm)


def _mean(rows: list[Row], column: str) -> float:
    return sum(row[column] for row in rows) / len(rows)


def plots(rows: list[Row], folder: Path) -> None:
    """Success against minutes, samples and size in `folder`: `study_time.png`, `_samples.png`, `_parameters.png`."""
    plt = load_pyplot()
    groups = grouped(rows)
    # Where none of those is there, as in the smoke run, what is.
    tasks = [task for task in DRAWN if any(key[0] == task for key in groups)] or sorted({key[0] for key in groups})
    if not tasks:
        return
    for name, draw in (("time", _draw_time), ("samples", _draw_samples), ("parameters", _draw_parameters)):
        figure, (axes,) = plt.subplots(1, len(tasks), figsize=(2 + 4 * len(tasks), 4.2), sharey=True, squeeze=False)
        for axis, task in zip(axes, tasks, strict=True):
            draw(axis, {key: group for key, group in groups.items() if key[0] == task})
            axis.set(title=task, ylim=(-3, 103))
        axes[0].set_ylabel("success, %")
        told = [axis.get_legend_handles_labels() for axis in axes]
        handles = {label: handle for pair in told for handle, label in zip(*pair, strict=True)}
        axes[-1].legend(handles.values(), handles, fontsize=7, loc="upper left", bbox_to_anchor=(1.02, 1))
        figure.tight_layout()
        figure.savefig(folder / f"study_{name}.png", dpi=110)
        plt.close(figure)


def _draw_time(axis: Any, groups: dict[Key, list[Row]]) -> None:
    timed = {(arm, minutes): group for (_, arm, (minutes, _)), group in groups.items() if group[0]["minutes"]}
    _curves(axis, timed, groups)
    axis.set(xlabel="CPU minutes of training", xscale="log")
    axis.set_xticks(ticks := sorted({minutes for _, minutes in timed}), [f"{tick:g}" for tick in ticks])
    axis.minorticks_off()


def _draw_samples(axis: Any, groups: dict[Key, list[Row]]) -> None:
    trained = [(arm, group) for (_, arm, _), group in groups.items() if arm != REPLAY]
    _curves(axis, {(arm, _mean(group, "steps") * group[0]["batch"]): group for arm, group in trained}, groups)
    axis.set(xlabel="samples seen", xscale="log")


def _curves(axis: Any, points: dict[tuple[str, float], list[Row]], groups: dict[Key, list[Row]]) -> None:
    """The fusions and LeRobot's policies, by arm and place on the x axis, above the line of blind replay."""
    for index, arm in enumerate((*HEADLINE_ARMS, *PEERS, CONTROL)):
        at = sorted(x for name, x in points if name == arm)
        shifted = [x * (1 + 0.015 * (index - 1)) for x in at]  # or intervals would hide each other
        _bars(axis, shifted, [rate(points[arm, x]) for x in at], arm, "-o" if arm in HEADLINE_ARMS else "--s")
    for (_, arm, _), group in groups.items():
        if arm == REPLAY:
            axis.axhline(100 * rate(group)[0], color="grey", linewidth=0.8, linestyle=":", label="blind replay")


def _draw_parameters(axis: Any, groups: dict[Key, list[Row]]) -> None:
    same = {key: group for key, group in groups.items() if group[0]["minutes"] == MINUTES[key[0]]}
    for (_, arm, _), group in sorted(same.items(), key=lambda item: _order(item[0])):
        _bars(axis, [group[0]["parameters"] / 1e6], [rate(group)], arm, "osD^vP*X"[list(ARMS).index(arm) % 8])
    budgets = {f"{group[0]['minutes']:g}" for group in same.values()}
    axis.set(xlabel=f"parameters, M ({''.join(budgets)} CPU minutes)", xscale="log")
    axis.set_xticks(ticks := [2.4, 3, 4, 8, 16], [f"{tick:g}" for tick in ticks])
    axis.minorticks_off()


def _bars(axis: Any, x: list[float], points: list[tuple[float, float, float]], label: str, style: str) -> None:
    """Shares with their intervals, in %."""
    if x:
        colour = f"C{list(ARMS).index(label) % 10}"  # the same in every plot
        share, low, high = ([100 * value for value in column] for column in zip(*points, strict=True))
        below = [max(0, a - b) for a, b in zip(share, low, strict=True)]
        above = [max(0, b - a) for a, b in zip(share, high, strict=True)]
        axis.errorbar(
            x, share, yerr=[below, above], fmt=style, label=label, capsize=2, markersize=5, linewidth=1, color=colour
        )
