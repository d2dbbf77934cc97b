"""The ten tasks' bench: each control is what it is called, and what is shipped stands alone with its figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import many_tasks, rollouts
from lerobot_deepfusion.sim.metaworld_env import sentence
from lerobot_deepfusion.storage import shipped
from tests import policies


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A run's folder with a small policy in it."""
    policy, _, pipelines = policies.make()
    for part in (policy, *pipelines.values()):
        part.save_pretrained(many_tasks.policy_of(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("control", "told", "bright"),
    [
        ("as told", "Push the puck to a goal", True),
        ("other words", "Shove the disc to the target", True),
        ("another task's words", "Pick and place a puck to a goal", True),
        ("black images", "Push the puck to a goal", False),
    ],
)
def test_controls(out: Path, monkeypatch: pytest.MonkeyPatch, control: str, told: str, bright: bool) -> None:
    seen: dict[str, Any] = {}

    def successes(model: Any, before: Any, after: Any, task: str, episodes: int, seed: int, change: Any) -> int:
        observation = {"observation.image": torch.ones(1, 3, 8, 8), "task": [sentence(task)]}
        seen.update(change(observation) if change else observation, seed=seed)
        return 7

    monkeypatch.setattr(rollouts, "successes", successes)
    row = many_tasks.judge("push-v3", control, 20, out)
    assert seen["task"] == [told]
    assert bool(seen["observation.image"].any()) is bright
    assert seen["seed"] == 1000
    assert (row["successes"], row["episodes"]) == (7, 20)
    assert set(row) == set(many_tasks.COLUMNS)


def test_other_words_are_others() -> None:
    """And no two tasks are told the same."""
    assert len({*many_tasks.TASKS.values(), *map(sentence, many_tasks.TASKS)}) == 2 * len(many_tasks.TASKS)


def test_shipping(out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(shipped, "PACKAGE", out / "package")
    rows = [
        {"run": f"{task}, as told", "task": task, "control": "as told", "successes": 10 + index, "episodes": 20}
        for index, task in enumerate(many_tasks.TASKS)
    ]
    many_tasks.report(rows)
    assert "| push-v3 | 55% (34% to 74%) | - | - | - | - |" in capsys.readouterr().out
    many_tasks.ship(out, rows)
    folder = shipped.shipped_policies()["mt10"]
    assert json.loads((folder / shipped.TRAINED_TASKS).read_text())["tasks"]["push-v3"] == {
        "success": 0.55,
        "episodes": 20,
    }
    card = (folder / "README.md").read_text()
    assert 'folder = str(shipped_policies()["mt10"])\npolicy = DeepFusionPolicy.from_pretrained(folder)' in card
    assert "All: 72% (66% to 78%); another task's words -;" in card
    assert "<you/policy>" not in card
    assert {file.name for file in many_tasks.policy_of(out).iterdir()} < {file.name for file in folder.iterdir()}
