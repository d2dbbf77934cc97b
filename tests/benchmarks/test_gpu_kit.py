"""The benchmark of a card runs from its kit: on a machine that has torch and its own needs, and nothing else."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import benchmarks.gpu.__main__ as gpu
from benchmarks import report
from benchmarks.gpu import kit

ROOT = Path(__file__).resolve().parents[2]
THERE = ("torch", "torchvision", "numpy", "pillow")  # what the kit expects, with all that these need
MEASURED = {"chunks", "kernels", "numerics", "training", "beside", "seven_b"}  # compiling is not the kit's


def with_needs(names: Iterable[str]) -> set[str]:
    found, left = set(), list(names)
    while left:
        name = canonicalize_name(left.pop())
        if name in found:
            continue
        found.add(name)
        needs = [Requirement(line) for line in importlib.metadata.requires(name) or []]
        left += [need.name for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
    return found


def link(names: Iterable[str], folder: Path) -> None:
    """Put installed distributions, and nothing else, into a folder to import from."""
    for name in names:
        distribution = importlib.metadata.distribution(name)
        for top in {file.parts[0] for file in distribution.files or [] if file.parts[0] != ".."}:
            if not (folder / top).exists():
                (folder / top).symlink_to(Path(str(distribution.locate_file(top))))


def test_names_are_in_the_lock() -> None:
    assert all(not line.endswith("None") for line in kit.pinned())


@pytest.mark.slow
def test_runs_with_nothing_but_torch_and_the_kit(tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    link(with_needs(THERE) | set(kit.PACKAGES), site)
    out = tmp_path / "gpu.json"
    command = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(site)!r}]; from benchmarks.gpu.__main__ import main; "
    command += f"sys.argv[1:] = '--device cpu --small --rounds 1 --out {out} --what {','.join(MEASURED)}'.split()"
    subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"{command}; main()"],
        check=True,
        timeout=300,
        env={"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"},
    )
    written = json.loads(out.read_text())
    assert not written["failed"]
    assert written["seconds"].keys() == MEASURED
    assert {(row["what"], row["case"]) for row in written["rows"]} >= {
        ("gpu", "chunk, eager"),
        ("attention", "training, forward"),
        ("bfloat16 off float32", "chunk"),
        ("gpu", "beside, tiny"),
        ("gpu", "chunk, LLaVA-1.5 7B"),
    }
    peaks = [row for row in written["rows"] if row["arm"] == "peak"]
    assert [row["ratio"][0] for row in peaks] == [pytest.approx(1, abs=0.15)] * 2
    [off] = [row["value"][0] for row in written["rows"] if row["what"] == "bfloat16 off float32"]
    assert 0 < off < 2  # percent


def test_what_there_was_no_time_for_is_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "gpu.json"
    words = f"gpu --device cpu --small --minutes -1 --what chunks,kernels --out {out}"
    monkeypatch.setattr("sys.argv", words.split())
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    written = json.loads(out.read_text())
    assert ended.value.code
    assert set(written["failed"]) == {"chunks", "kernels"}
    assert written["rows"] == []


def test_every_row_says_where_it_was_taken(tmp_path: Path) -> None:
    """A later run replaces its own rows, and the others stay those of their commit."""
    file, row = tmp_path / "rows.json", report.Row("acting", "S", "kv", [1.0], "ms")
    for commit, arms in (("first", ("kv", "pi0")), ("second", ("kv",))):
        report.save(file, {"commit": commit, "rounds": 3}, [replace(row, arm=arm) for arm in arms])
    assert {one.arm: one.taken["commit"] for one in report.load(file)} == {"kv": "second", "pi0": "first"}
