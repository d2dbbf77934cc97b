"""Rows of the speed benchmark as a table, a JSON file and a plot, and the bars they are held to."""

from __future__ import annotations

import json
import platform
import subprocess
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers

from lerobot_deepfusion.looking.pyplot import load_pyplot

# Measure, case, arm, largest ratio to the reference; for flow samples the smallest.
BARS = [
    ("acting", "S256-B1", "deepfusion kv", 0.68),
    ("acting", "S256-B8", "deepfusion kv", 0.50),
    ("acting", "M512-P1200-B1", "deepfusion kv", 0.48),
    ("acting / literal plan", "S256-B8", "deepfusion kv", 0.32),
    ("training", "S256-B1", "deepfusion kv", 0.72),
    ("training", "S256-B8", "deepfusion kv", 0.48),
    ("expert_only", "S256-B8", "deepfusion kv", 0.25),
    ("flow_samples", "S256-B8", "deepfusion kv K=8", 5.0),
    ("roofline", "M512-B1", "deepfusion kv", 1.25),
    ("roofline", "M512-B1", "deepfusion kv compiled", 1.12),
    ("memory", "S256-P1200-B4", "deepfusion kv", 0.32),
    ("memory, checkpointing / plain", "S256-P1200-B4", "deepfusion kv", 0.30),
    ("training, checkpointing", "S256-P1200-B4", "deepfusion kv", 1.35),
]


COMMIT = Path(__file__).with_name("commit.txt")  # see `benchmarks.gpu.kit`


@dataclass(frozen=True)
class Row:
    """One figure: `value` and `ratio` are a median or its quartiles."""

    what: str
    case: str
    arm: str
    value: list[float]
    unit: str
    reference: str | None = None
    ratio: list[float] | None = None
    parameters: int | None = None
    taken: dict[str, Any] | None = None  # machine, commit and rounds; None in tables of before it was noted

    @property
    def key(self) -> tuple[str, str, str, str]:
        return self.what, self.case, self.arm, self.unit


def bar(row: Row) -> str:
    """The bar of a row and whether it is met, or nothing."""
    for what, case, arm, limit in BARS:
        if (row.what, row.case, row.arm) == (what, case, arm) and row.ratio:
            more = what == "flow_samples"
            met = middle(row.ratio) >= limit if more else middle(row.ratio) <= limit
            return f"{'>=' if more else '<='} {limit:.2f} {'met' if met else 'MISSED'}"
    return ""


def middle(values: list[float]) -> float:
    return values[len(values) // 2]


def machine(device: str, dtype: str, rounds: int) -> dict[str, Any]:
    """Where and with what the figures were taken."""
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else _processor()
    return {
        "machine": name,
        "device": device,
        "dtype": dtype,
        "rounds": rounds,
        "clock": "CUDA events" if device.startswith("cuda") else "process time, one thread",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "commit": _commit(),
    }


def _commit() -> str:
    """The commit, and `-dirty` if files besides results differ from it; of a copy that was taken elsewhere, the one
    it was taken at.
    """
    if COMMIT.exists():
        return COMMIT.read_text()
    commands = "git describe --always", "git status --porcelain -uno -- . :!benchmarks/results"
    described, changed = (
        subprocess.run(command.split(), capture_output=True, text=True).stdout.strip() for command in commands
    )
    return f"{described}-dirty" if changed else described


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.processor())


def print_machine(values: dict[str, Any]) -> None:
    print(", ".join(f"{key} {value}" for key, value in values.items()), flush=True)


def print_rows(table: list[Row]) -> None:
    for row in table:
        value = f"{middle(row.value):9.1f} {row.unit:9}"
        ratio = ""
        if row.ratio:
            spread = f" ({row.ratio[0]:.2f}-{row.ratio[-1]:.2f})" if len(row.ratio) > 1 else ""
            ratio = f"{middle(row.ratio):5.2f}{spread} of {row.reference}"
        size = f"{row.parameters / 1e6:.1f} M" if row.parameters else ""
        print(f"{row.what:30} {row.case:16} {row.arm:24} {value} {ratio:36} {size:8} {bar(row)}", flush=True)


def save(path: Path, values: dict[str, Any], table: list[Row]) -> None:
    """Write rows into a JSON file, in the place of those of the same measure, case and arm.

    Those that stay may be of another machine or commit than `values`, which are of the last: each row has its own.
    """
    taken = {key: values[key] for key in ("machine", "commit", "rounds") if key in values}
    kept = {row.key: row for row in load(path)} if path.exists() else {}
    kept |= {row.key: replace(row, taken=taken) for row in table}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**values, "rows": [asdict(row) for row in kept.values()]}, indent=1) + "\n")


def load(path: Path) -> list[Row]:
    return [Row(**row) for row in json.loads(path.read_text())["rows"]]


def plot(path: Path) -> None:
    """Draw the ratios to pi0, and the sweeps, into a PNG beside the JSON file."""
    plt = load_pyplot()
    table = load(path)
    panels = [what for what in ("acting", "training", "expert_only") if any(row.what == what for row in table)]
    axes_of_sweep = sorted({row.case.split("=")[0] for row in table if row.what == "sweep, acting"})
    columns = max(len(panels), len(axes_of_sweep), 1)
    figure, grid = plt.subplots(2, columns, figsize=(3.4 * columns, 7), squeeze=False)
    for axis in grid.flat:
        axis.set_visible(False)
    for axis, what in zip(grid[0], panels, strict=False):
        _bars(axis, what, [row for row in table if row.what == what and row.reference == "pi0" and row.ratio])
    for axis, name in zip(grid[1], axes_of_sweep, strict=False):
        _lines(axis, name, [row for row in table if row.case.startswith(f"{name}=")])
    figure.tight_layout()
    figure.savefig(path.with_suffix(".png"), dpi=110)
    plt.close(figure)


def _bars(axis: Any, what: str, table: list[Row]) -> None:
    axis.set_visible(True)
    cases, arms = ([*dict.fromkeys(getattr(row, name) for row in table)] for name in ("case", "arm"))
    for index, arm in enumerate(arms):
        mine = [row for row in table if row.arm == arm and row.ratio]
        places = [cases.index(row.case) + 0.8 * (index / len(arms) - 0.4) for row in mine]
        heights = [middle(row.ratio or []) for row in mine]
        axis.bar(places, heights, 0.8 / len(arms), label=arm)
    axis.set_xticks(range(len(cases)), cases, rotation=30, ha="right", fontsize=7)
    axis.axhline(1, color="black", linewidth=0.7)
    axis.set_title(f"{what}: time / pi0's", fontsize=9)
    axis.legend(fontsize=6, loc="upper left", bbox_to_anchor=(1, 1))  # beside the bars, not over them


def _lines(axis: Any, name: str, table: list[Row]) -> None:
    axis.set_visible(True)
    for what, style in (("sweep, acting", "-"), ("sweep, training", "--")):
        for arm in dict.fromkeys(row.arm for row in table):
            mine = [row for row in table if row.what == what and row.arm == arm]
            at = [int(row.case.split("=")[1]) for row in mine]
            label = f"{arm}, {what.split()[1]}"
            axis.plot(at, [middle(row.value) for row in mine], style, marker=".", label=label)
    axis.set_xlabel(name)
    axis.set_ylabel("ms")
    axis.legend(fontsize=6)
