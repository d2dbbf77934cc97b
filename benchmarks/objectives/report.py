"""The table of docs/objectives.md as Markdown, and its plot."""

from __future__ import annotations

from pathlib import Path

from lerobot_deepfusion.looking.pyplot import load_pyplot

from ..study.results import Row, rate
from .arms import EVALUATIONS, TASKS


def summary(rows: list[Row]) -> str:
    """One line about a run."""
    parts = [f"{row['evaluations']}: {row['successes']}/{row['episodes']}" for row in rows]
    return f"{rows[0]['run']}, by evaluations: {', '.join(parts)}"


def groups(rows: list[Row]) -> list[tuple[str, str, int, list[Row]]]:
    """Rows of each task, objective and number of evaluations, seeds together, in their order."""
    return [
        (task, objective, count, group)
        for task in TASKS
        for objective, counts in EVALUATIONS.items()
        for count in counts
        if (group := [r for r in rows if (r["task"], r["arm"], r["evaluations"]) == (task, objective, count)])
    ]


def table(rows: list[Row]) -> None:
    """Print success and, where two answers are right, the share of the first among them, seed by seed."""
    print("\n| task | objective | evaluations | seeds | success | 95% interval | by seed | first answer, by seed |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for task, objective, count, group in groups(rows):
        share, low, high = rate(group)
        group = sorted(group, key=lambda row: row["seed"])
        each = ", ".join(f"{row['successes'] / row['episodes']:.0%}" for row in group)
        first = ", ".join(_share(row) for row in group) if TASKS[task].first else ""
        print(
            f"| {TASKS[task].says} | `{objective}` | {count} | {len(group)} | **{share:.0%}** | "
            f"{low:.0%} to {high:.0%} | {each} | {first and f'{TASKS[task].first} {first}'} |"
        )


def _share(row: Row) -> str:
    return f"{row['first_answer'] / row['successes']:.0%}" if row["successes"] else "-"


def plot(rows: list[Row], folder: Path) -> None:
    """Success over the number of evaluations, a panel for each task."""
    pyplot = load_pyplot()
    judged = {name: task for name, task in TASKS.items() if any(row["task"] == name for row in rows)}
    if not judged:
        return
    size = (1 + 3 * len(judged), 3.2)
    figure, (panels,) = pyplot.subplots(
        1, len(judged), figsize=size, sharey=True, squeeze=False, layout="constrained"
    )
    for panel, (name, task) in zip(panels, judged.items(), strict=True):
        for number, (objective, marker) in enumerate(zip(EVALUATIONS, "osD", strict=True)):
            points = [(count, rate(group)) for t, o, count, group in groups(rows) if (t, o) == (name, objective)]
            if points:
                counts, rates = zip(*points, strict=True)
                share, low, high = zip(*rates, strict=True)
                ends = zip(share, low, high, strict=True)
                spread = list(zip(*((s - bottom, top - s) for s, bottom, top in ends), strict=True))
                style = {"marker": marker, "color": f"C{number}", "capsize": 2, "label": objective}
                panel.errorbar(counts, share, spread, **style)
        panel.set(title=task.says, xlabel="evaluations of the expert", ylim=(-0.03, 1.03), xscale="log")
        panel.set_xticks([1, 2, 5, 10], ["1", "2", "5", "10"], minor=False)
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("success, 95% interval")
    panels[0].legend()
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "objectives.png", dpi=110)
    pyplot.close(figure)
