"""The fusion study: its batches are LeRobot's, its VLM loads, its peers learn, and it goes on where it stopped."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from lerobot.datasets.factory import resolve_delta_timestamps
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.policies.factory import make_policy_config
from lerobot.utils.collate import lerobot_collate_fn

from benchmarks import fusion_study
from benchmarks.study import report, results
from benchmarks.study.arms import ARMS, HEADLINE_ARMS, PEERS, REPLAY, SEEDS, SMOKE, TASKS, Run, plan
from benchmarks.study.data import Demonstrations
from benchmarks.study.peers import peer_config
from benchmarks.study.run import build, parameters, schedule, train
from benchmarks.study.vlm import write_vlm
from lerobot_deepfusion.sim.experts import image_state_action_features

KEYS = ("observation.images.a", "observation.images.b")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks, three episodes of nine to eleven frames of noise, two cameras."""
    root = tmp_path_factory.mktemp("study") / "data"
    names = ["x", "y", "z", "gripper"]
    data = LeRobotDataset.create(
        "local/x", fps=80, features=image_state_action_features(96, names, names, KEYS), root=root, use_videos=False
    )
    random = np.random.default_rng(0)
    for index in range(3):
        for _ in range(9 + index):
            state, action = random.normal(size=(2, 4)).astype(np.float32)
            pictures = {key: random.integers(0, 256, (96, 96, 3), dtype=np.uint8) for key in KEYS}
            data.add_frame(
                {**pictures, "observation.state": state, "action": action, "task": ("open", "close")[index % 2]}
            )
        data.save_episode()
    data.finalize()
    return root


@pytest.mark.parametrize("peer", [None, "diffusion"])
def test_batches_equal_lerobots(folder: Path, peer: str | None) -> None:
    """Every frame: pictures, windows, padding, task, to the bit; Diffusion Policy also looks back by a step."""
    config = (
        peer_config(peer)
        if peer
        else make_policy_config("deepfusion", vlm_path="tiny", chunk_size=8, n_action_steps=4)
    )
    ours = Demonstrations(folder)
    theirs = LeRobotDataset(
        "local/x", root=folder, delta_timestamps=resolve_delta_timestamps(config, ours.meta), tolerance_s=1e-3
    )
    expected = lerobot_collate_fn([theirs[index] for index in range(len(theirs))])
    found = ours.batch(torch.arange(len(theirs)), config)
    assert found["task"] == expected["task"]
    for key in found.keys() - {"task"}:
        assert torch.equal(found[key], expected[key]), key
    needed = {"action", "observation.state", "action_is_pad", *KEYS}
    assert needed <= found.keys()


def test_epochs_have_every_frame_once(folder: Path) -> None:
    data = Demonstrations(folder)
    batches = data.epochs(6, seed=0)
    first, second = ([next(batches) for _ in range(5)] for _ in range(2))
    assert sorted(torch.cat(first).tolist()) == list(range(30)) == sorted(torch.cat(second).tolist())
    assert not torch.equal(torch.cat(first), torch.cat(second))
    assert torch.equal(next(data.epochs(6, seed=0)), first[0])


def test_learning_rate_follows_the_time_used() -> None:
    shares = np.linspace(0, 1, 101)
    factors = [schedule(share) for share in shares]
    assert max(factors) == 1
    assert factors.index(1) == 4
    assert factors[-1] == 0
    assert factors[4:] == sorted(factors[4:], reverse=True)
    assert math.isclose(schedule(0.52), 0.5)


@pytest.mark.parametrize("name", [name for name in ARMS if name != REPLAY])
def test_every_arm_trains(name: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Built as the study builds it, from a LLaVA in a folder, one step of it changes what it should."""
    monkeypatch.setattr("benchmarks.study.run.BATCH", 4)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    data, arm = Demonstrations(folder), ARMS[name]
    write_vlm(tmp_path / "vlm", 0)
    policy, before, _ = build(arm, TASKS["faucet"], data, tmp_path / "vlm")
    old = {key: value.clone() for key, value in policy.named_parameters()}
    done = train(policy, before, data, 1e-9, 0)
    assert done["steps"] == 1
    moved = {key for key, value in policy.named_parameters() if not torch.equal(old[key], value)}
    assert moved
    if not arm.peer:
        frozen = "frozen" in name
        assert any(key.startswith("model.perception.") for key in moved) != frozen
        assert parameters(policy)["expert_parameters"] > 0


def test_headline_arms_are_of_one_size(folder: Path, tmp_path: Path) -> None:
    """Within 4%: `late` runs the VLM's last layer whole, of which `hidden` keeps nothing and `kv` two projections."""
    write_vlm(tmp_path, 0)
    data = Demonstrations(folder)
    sizes = [parameters(build(ARMS[arm], TASKS["push"], data, tmp_path)[0])["parameters"] for arm in HEADLINE_ARMS]
    assert max(sizes) / min(sizes) < 1.04


def test_plan_is_what_the_page_says() -> None:
    runs = list(plan())
    assert len({run.name for run in runs}) == len(runs)
    for task in ("push", "faucet"):
        for arm in HEADLINE_ARMS:
            assert {run.seed for run in runs if (run.task, run.arm, run.minutes) == (task, arm, 3)} == set(SEEDS)
    assert {run.arm for run in runs} == set(ARMS)
    assert sum(run.minutes for run in runs) / 60 < 10
    assert all(len({run.minutes for run in runs if run.arm == arm}) == 2 for arm in PEERS)


def row(run: str, **values) -> dict:
    return {
        **{"run": run, "task": "push", "arm": "kv", "minutes": 3.0, "seed": 0, "environment": "push-v3"},
        **{"control": "", "successes": 8, "episodes": 10, "steps": 5, "batch": 32, "parameters": 10**6},
        **{"cpu_minutes": 3.0, **values},
    }


def test_results_are_added_a_run_at_a_time(tmp_path: Path) -> None:
    table, file = tmp_path / "table.csv", tmp_path / "run.json"
    for rows in ([row("a"), row("a", control="black images", successes=0)], [row("b")], [row("a", successes=9)]):
        file.write_text(json.dumps(rows))
        results.add(table, file)
    found = results.load(table)
    assert [(r["run"], r["successes"]) for r in found] == [("b", 8), ("a", 9)]
    assert found[0]["minutes"] == 3
    assert isinstance(found[0]["parameters"], int)


def test_report(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Seeds are pooled, controls are kept apart, and both plots are drawn."""
    rows = [row("a"), row("b", seed=1, successes=4), row("a", control="black images", successes=0)]
    rows += [row("c", arm="late", minutes=6.0), row("d", arm=REPLAY, minutes=0, cpu_minutes="", successes=1)]
    report.tables(rows)
    printed = capsys.readouterr().out
    assert "| 3 | 2 | **60%** | 39% to 78% | 80%, 40% | 160 | 1.00 |" in printed
    assert "| a | push-v3 | 80% (49% to 94%) | 0% (0% to 28%) | - |" in printed
    report.plots(rows, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"study_time.png", "study_parameters.png"}


def test_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that the table has are not done again; one that fails is told and does not stop the others."""
    asked = []

    def start(run: Run, out: Path, episodes: int) -> Path:
        asked.append(run.name)
        if run.task == "faucet":
            raise RuntimeError(f"{run.name} failed; see its log")
        file = tmp_path / f"{run.name}.json"
        file.write_text(json.dumps([row(run.name)]))
        return file

    monkeypatch.setattr(fusion_study, "start", start)
    monkeypatch.setattr(fusion_study, "record", lambda *_: None)
    table = tmp_path / "table.csv"
    assert fusion_study.study(tmp_path, table, 2, math.inf, smoke=True) == 1
    assert {r["run"] for r in results.load(table)} == {run.name for run in SMOKE if run.task != "faucet"}
    asked.clear()
    assert fusion_study.study(tmp_path, table, 2, math.inf, smoke=True) == 1
    assert [name for name in asked if "pretrained" not in name] == [r.name for r in SMOKE if r.task == "faucet"]


@pytest.mark.slow
def test_smoke(tmp_path: Path) -> None:
    """Demonstrations, pretraining, four runs, tables and plots, through the command itself."""
    import subprocess
    import sys

    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.fusion_study", "--smoke", f"--out={tmp_path}"],
        cwd=fusion_study.ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = results.load(tmp_path / "fusion_study.csv")
    assert {r["run"] for r in rows} == {run.name for run in SMOKE}
    assert {r["control"] for r in rows} == {"", "black images"}
    assert (tmp_path / "study_time.png").exists()
