"""The study's CSV: one row for each run, environment and control, added a whole run at a time."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import statistics
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

WHERE = ("machine", "torch", "transformers", "commit")
COLUMNS = (
    *("run", "task", "arm", "minutes", "given_steps", "seed", "environment", "control", "successes", "episodes"),
    *("first_environment", "cpu_minutes", "steps", "batch", "loss"),
    *("parameters", "trained_parameters", "expert_parameters", *WHERE),
)
TEXTS = ("run", "task", "rung", "arm", "environment", "cameras", "control", *WHERE)  # the commit 1e19361 is no number
_writing = threading.Lock()

Row = dict[str, Any]


def here() -> Row:
    """The columns that say where a run of one thread was done."""
    from ..report import machine  # whose torch the process that starts the runs does without

    values = machine("cpu", "float32", 1)
    return {key: values[key] for key in WHERE}


def load(table: Path) -> list[Row]:
    """All rows; numbers are numbers."""
    if not table.exists():
        return []
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{key: value if key in TEXTS else _number(value) for key, value in row.items()} for row in rows]


def _number(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def add(table: Path, result: Path, columns: Sequence[str] = COLUMNS) -> list[Row]:
    """Add the rows of a run, in the place of those that it may have; returns them."""
    new = json.loads(result.read_text())
    with _writing:
        save(table, [row for row in load(table) if row["run"] != new[0]["run"]] + new, columns)
    return new


def save(table: Path, rows: list[Row], columns: Sequence[str] = COLUMNS) -> None:
    """Write all rows, or none."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write(table, text.getvalue())


def write(path: Path, text: str) -> None:
    """Write a whole file or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text)
    os.replace(partial, path)


def budget(row: Row) -> tuple[float, str]:
    """How long a run was trained, to sort by and to read; equal steps come behind all minutes."""
    steps = row.get("given_steps")
    return (1e6 + steps, f"{steps} steps") if steps else (row["minutes"], f"{row['minutes']:g} min")


def rate(rows: list[Row]) -> tuple[float, float, float]:
    """Success over all episodes of these rows: share and 95% interval (Wilson)."""
    count = sum(row["episodes"] for row in rows)
    share = sum(row["successes"] for row in rows) / count
    return (share, *wilson(share, count))


def cell(rows: list[Row]) -> str:
    """Of a table: success with its interval, and that of each seed where there are several."""
    if not rows:
        return "-"
    share, low, high = rate(rows)
    seeds = sorted({row["seed"] for row in rows})
    each = ", ".join(f"{rate([row for row in rows if row['seed'] == seed])[0]:.0%}" for seed in seeds)
    return f"**{share:.0%}** ({low:.0%} to {high:.0%}{f'; {each}' if len(seeds) > 1 else ''})"


def wilson(share: float, count: int) -> tuple[float, float]:
    """95% confidence interval of a share (Wilson 1927)."""
    z = 1.96
    centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2)) / (1 + z**2 / count)
    return max(0.0, centre - half), min(1.0, centre + half)


def paired_interval(differences: list[float]) -> tuple[float, float, float]:
    """Mean of one difference for each training seed, and its 95% interval by Student's t."""
    from scipy import stats

    mean = statistics.mean(differences)
    if len(differences) < 2:
        return mean, -math.inf, math.inf
    half = stats.t.ppf(0.975, len(differences) - 1) * statistics.stdev(differences) / math.sqrt(len(differences))
    return mean, mean - half, mean + half


def summary(rows: list[Row]) -> str:
    """One line about a run."""
    parts = [f"{r['environment']} {r.get('control', '')} {r['successes']}/{r['episodes']}" for r in rows]
    return f"{rows[0]['run']}: {', '.join(parts)}"
