"""The fusion study: its batches are LeRobot's, its VLM loads, its peers learn, and it goes on where it stopped."""

from __future__ import annotations

import argparse
import csv
import json
import math
import runpy
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from lerobot.datasets.factory import resolve_delta_timestamps
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.policies.factory import make_policy_config
from lerobot.utils.collate import lerobot_collate_fn

import benchmarks.study.__main__ as fusion_study
from benchmarks.rollouts import controls
from benchmarks.study import pace, report, results
from benchmarks.study.arms import (
    ARMS,
    COMMON,
    HEADLINE_ARMS,
    MEDIUM,
    MORE_SEEDS,
    NO_WORDS,
    PEERS,
    REPLAY,
    SEEDS,
    SMOKE,
    STALE,
    TASKS,
    Run,
    plan,
)
from benchmarks.study.data import Demonstrations
from benchmarks.study.peers import hide_state, peer_config
from benchmarks.study.run import build, execute, parameters, schedule, train
from benchmarks.study.vlm import write_vlm
from tests.commands import ROOT, TINY_YAML, run, write_noise

FRAMES = 36


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks, three episodes, two cameras."""
    root = tmp_path_factory.mktemp("study") / "data"
    write_noise(root, ("images.a", "images.b"), 4, 4, tasks=("open", "close", "open"))
    return root


@pytest.mark.medium
@pytest.mark.parametrize("peer", [None, "diffusion"])
def test_batches_equal_lerobots(folder: Path, peer: str | None) -> None:
    """Every frame: pictures, windows, padding, task, to the bit; Diffusion Policy also looks back by a step."""
    config = (
        peer_config(peer, 32)
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
    needed = {"action", "observation.state", "action_is_pad", "observation.images.a", "observation.images.b"}
    assert needed <= found.keys()


def test_epochs_have_every_frame_once(folder: Path) -> None:
    data = Demonstrations(folder)
    batches = data.epochs(6, seed=0)
    first, second = ([next(batches) for _ in range(6)] for _ in range(2))
    assert sorted(torch.cat(first).tolist()) == list(range(FRAMES)) == sorted(torch.cat(second).tolist())
    assert not torch.equal(torch.cat(first), torch.cat(second))
    assert torch.equal(next(data.epochs(6, seed=0)), first[0])


@pytest.fixture(scope="module")
def vlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vlm") / "vlm"
    write_vlm(folder, 0)
    return folder


def test_learning_rate_follows_the_time_used() -> None:
    shares = np.linspace(0, 1, 101)
    factors = [schedule(share) for share in shares]
    assert max(factors) == 1
    assert factors.index(1) == 4
    assert factors[-1] == 0
    assert factors[4:] == sorted(factors[4:], reverse=True)
    assert math.isclose(schedule(0.52), 0.5)


@pytest.mark.medium
@pytest.mark.parametrize("name", [name for name in ARMS if name != REPLAY])
def test_every_arm_trains(name: str, folder: Path, vlm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Built as the study builds it, from a LLaVA in a folder, one step of it changes what it should."""
    monkeypatch.setattr("benchmarks.study.run.BATCH", 4)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    data, arm = Demonstrations(folder), ARMS[name]
    policy, before, _ = build(arm, TASKS["one_faucet"], data, vlm)
    old = {key: value.clone() for key, value in policy.named_parameters()}
    if name == "copied":
        expert = policy.model.expert.backbone.layers[0].state_dict()
        copy = policy.model.perception.language_model.layers[0].state_dict()
        assert copy
        assert all(torch.equal(expert[key], value) for key, value in copy.items())
    done = train(policy, before, data, Run("push", name, 1e-9))
    assert done["steps"] == 1
    new = {key: value.clone() for key, value in policy.named_parameters()}
    moved = {key for key in new if not torch.equal(old[key], new[key])}
    assert moved
    assert train(policy, before, data, Run("push", name, 0, given_steps=2))["steps"] == 2
    if arm.peer:
        # A step of Adam is its rate, here a hundredth of it; weight decay alone would be a hundredth of that.
        rate = policy.config.get_optimizer_preset().lr / 100
        eyes = [key for key in moved if "backbone" in key or "vision_tower" in key]
        assert max((new[key] - old[key]).abs().max() for key in eyes) > rate / 2
        policy.eval()
        policy.reset()
        frame = {
            key: value for key, value in data.batch(torch.tensor([0]), policy.config).items() if "action" not in key
        }
        if policy.config.n_obs_steps > 1:
            frame = {k: v[:, -1] if k.startswith("observation") else v for k, v in frame.items()}
        assert policy.select_action(before(frame)).shape == (1, 4)
    else:
        frozen = "frozen" in name
        assert any(key.startswith("model.perception.") for key in moved) != frozen
        assert parameters(policy)["expert_parameters"] > 0


@pytest.mark.parametrize("shape", [(1000, 4), (1000, 2, 4)])  # Diffusion Policy sees two frames
def test_states_of_peers_are_hidden_as_ours(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    batch = {"observation.state": torch.ones(shape), "action": torch.ones(1)}
    state = hide_state(batch)["observation.state"]
    seen = state.flatten(1).mean(1)
    assert set(seen.tolist()) == {0.0, 1.0}  # a sample's whole state or none of it
    assert 0.65 < seen.mean() < 0.75  # three standard errors of 0.3 around 0.7 are 0.04
    assert batch["observation.state"].all()


def test_vlm_is_whole_or_not_there(tmp_path: Path) -> None:
    """Written by two at once, by the second after the first, or again: one folder, nothing beside it."""
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: write_vlm(tmp_path / "vlms" / "vlm", 0), range(2)))
    write_vlm(tmp_path / "vlms" / "vlm", 0)
    assert [path.name for path in (tmp_path / "vlms").iterdir()] == ["vlm"]
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {
        f.name for f in (tmp_path / "vlms/vlm").iterdir()
    }


def test_pretrained_vlm_is_not_made_up(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "push").symlink_to(folder)
    with pytest.raises(FileNotFoundError, match="--task=pretrained"):
        execute(Run("push", "frozen", 1), tmp_path, 1, 0)


@pytest.mark.medium
def test_headline_arms_are_of_one_size(folder: Path, tmp_path: Path) -> None:
    """Within 4%: `late` runs the VLM's last layer whole, of which `hidden` keeps nothing and `kv` two projections."""
    write_vlm(tmp_path, 0)
    data = Demonstrations(folder)
    sizes = [parameters(build(ARMS[arm], TASKS["push"], data, tmp_path)[0])["parameters"] for arm in HEADLINE_ARMS]
    assert max(sizes) / min(sizes) < 1.04


def test_page_has_the_tables_of_the_results(capsys: pytest.CaptureFixture) -> None:
    """And how many runs there are, of how many."""
    rows, page = results.load(fusion_study.RESULTS), (fusion_study.ROOT / "docs/study.md").read_text()
    report.tables(rows)
    printed = [line for line in capsys.readouterr().out.splitlines() if line]
    assert len(printed) > 60
    assert [line for line in printed if line not in page] == []
    assert {row["task"] for row in rows} <= {*TASKS, *STALE}
    planned, done = {run.name for run in plan()}, {row["run"] for row in rows if row["task"] not in STALE}
    assert done <= planned
    missing = f"{len(planned - done)} of the {len(planned)} planned runs are missing"
    assert (missing in page) == (done < planned)


def test_recipe_is_that_of_the_demo() -> None:
    recipe = yaml.safe_load(TINY_YAML.read_text())["policy"]
    assert {name: type(value)(recipe[name]) for name, value in COMMON.items()} == COMMON


def test_plan_is_balanced() -> None:
    """Every headline arm has every seed, and no arm always runs beside the same other one."""
    runs = list(plan())
    assert len({run.name for run in runs}) == len(runs)
    for task in ("push", "one_faucet"):
        for arm in HEADLINE_ARMS:
            seeds = {run.seed for run in runs if (run.task, run.arm, run.minutes) == (task, arm, TASKS[task].minutes)}
            assert seeds == {*SEEDS, *(MORE_SEEDS if task == "one_faucet" else ())}
    assert {run.arm for run in runs} == set(ARMS)
    assert sum(run.minutes for run in runs) / 60 < 10
    assert all(len({run.minutes for run in runs if run.arm == arm}) == 2 for arm in PEERS)
    first = [next(r.arm for r in runs if (r.task, r.minutes, r.seed) == ("push", MEDIUM, seed)) for seed in SEEDS]
    assert first == list(HEADLINE_ARMS)


@pytest.mark.medium
def test_pace(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Steps of both arms, in the same rounds, on the study's data; the first is what the other is beside."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "push").symlink_to(folder)
    pace.main([f"--out={tmp_path}", "--arms=wide,narrow", "--rounds=3"])
    printed = capsys.readouterr().out
    assert "commit" in printed
    rows = [[cell.strip("` *") for cell in line.split("|")[1:-1]] for line in printed.splitlines() if "`" in line][1:]
    assert [row[0] for row in rows] == ["wide", "narrow"]
    assert rows[0][2:] == ["1.00", "1.00 to 1.00"]
    assert 0.2 < float(rows[1][2]) < 1  # four times the weights in the expert's layers
    assert float(rows[0][1]) > 1


def test_controls_change_what_they_say() -> None:
    observation = {"observation.images.a": torch.ones(2, 3, 4, 4), "observation.state": torch.ones(2, 4)}
    observation["task"] = ["x"] * 2
    changes = controls(TASKS["one_faucet"].environments, 0)
    blind, misled = changes["black images"](observation), changes["other text"](observation)
    assert not blind["observation.images.a"].any()
    assert blind["observation.state"].all()
    assert misled["task"] == ["Rotate the faucet clockwise"] * 2
    assert misled["observation.images.a"].all()
    assert observation["task"] == ["x"] * 2
    assert controls(TASKS["push"].environments, 0).keys() == {"black images"}


@pytest.mark.medium
def test_wordless_is_told_the_same(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In training and when it is judged: one text for all; the pictures, states and actions stay what they are."""
    worded, wordless = Demonstrations(folder), Demonstrations(folder, NO_WORDS)
    config = make_policy_config("deepfusion", vlm_path="tiny", chunk_size=8, n_action_steps=4)
    with_words, without = (data.batch(torch.arange(FRAMES), config) for data in (worded, wordless))
    assert {*without.pop("task")} == {NO_WORDS}
    assert {*with_words.pop("task")} == {"open", "close"}
    assert all(torch.equal(without[key], value) for key, value in with_words.items())
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "one_faucet").symlink_to(folder)
    heard: dict[tuple[str, str], list[str]] = {}

    def judge(policy, before, after, task, *_, change=None, **__) -> int:
        observation = {"task": [task]}
        heard[policy.arm, task] = (change(observation) if change else observation)["task"]
        return 1

    def learn(policy, before, data, run) -> dict:
        policy.arm = run.arm
        assert {*data.tasks} == ({NO_WORDS} if run.arm == "wordless" else {"open", "close"})
        return {}

    monkeypatch.setattr("benchmarks.study.run.successes", judge)
    monkeypatch.setattr("benchmarks.study.run.train", learn)
    for arm in ("wordless", "kv"):
        execute(Run("one_faucet", arm, 1), tmp_path, 1, 0)
    for task in TASKS["one_faucet"].environments:
        assert heard["wordless", task] == [NO_WORDS]
        assert heard["kv", task] == [task]


def row(run: str, **values) -> dict:
    return {
        **{"run": run, "task": "push", "arm": "kv", "minutes": 3.0, "seed": 0, "environment": "push-v3"},
        **{"control": "", "successes": 8, "episodes": 10, "steps": 5, "batch": 32, "parameters": 10**6},
        **{"cpu_minutes": 3.0, **values},
    }


def test_results_are_added_a_run_at_a_time(tmp_path: Path) -> None:
    table, file = tmp_path / "table.csv", tmp_path / "run.json"
    commit = "1e19361"  # looks like a number
    for rows in ([row("a"), row("a", control="x")], [row("b", commit=commit)], [row("a", successes=9)]):
        file.write_text(json.dumps(rows))
        results.add(table, file)
    found = results.load(table)
    assert [(r["run"], r["successes"]) for r in found] == [("b", 8), ("a", 9)]
    assert found[0]["minutes"] == 3
    assert found[0]["commit"] == commit
    assert isinstance(found[0]["parameters"], int)


@pytest.mark.medium
def test_report(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Seeds are pooled, controls are kept apart, and all plots are drawn."""
    rows = [row("a"), row("b", seed=1, successes=4), row("a", control="black images", successes=0)]
    rows += [
        row("k", arm="late", successes=7),
        row("l", arm="late", seed=1, steps=4, successes=2),
        row("c", arm="late", minutes=6.0),
        row("s", arm="late", minutes=0, given_steps=600),
    ]
    rows += [row("d", arm=REPLAY, minutes=0, cpu_minutes="", successes=1)]
    report.tables(rows)
    printed = capsys.readouterr().out
    assert "| 600 steps | 1 | **80%**" in printed
    assert "| 3 min | 2 | **60%** | 39% to 78% | 80%, 40% | 160 | 1.00 |" in printed
    assert "| a | push-v3 | 80% (49% to 94%) | 0% (0% to 28%) | - |" in printed
    # Differences of 10 and 20 points: t is 12.706 with one degree of freedom, and the standard error 5.
    assert "| push | 3 min | 2 | `kv` less `late` **+15.0** | -49 to +79 | +10, +20 | 1.12x |" in printed
    report.plots(rows, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {f"study_{x}.png" for x in ("time", "samples", "parameters")}


def test_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that the table has are not done again; one that fails is told and does not stop the others."""
    asked = []

    def start(run: Run, out: Path, episodes: int) -> Path:
        asked.append(run.name)
        if run.arm == "frozen_late":
            raise RuntimeError(f"{run.name} failed; see its log")
        file = tmp_path / f"{run.name}.json"
        file.write_text(json.dumps([row(run.name)]))
        return file

    monkeypatch.setattr(fusion_study, "start", start)
    monkeypatch.setattr(fusion_study, "record", lambda *_: None)
    monkeypatch.setattr(fusion_study.processes, "get_ready", lambda: None)
    table = tmp_path / "table.csv"
    args = argparse.Namespace(out=tmp_path, table=table, lanes=2, hours=math.inf, smoke=True, report=False)
    assert fusion_study.do_missing(args, (), SMOKE) == 1
    assert any(name.startswith("pretrained-late") for name in asked)  # what `frozen_late` goes on from
    assert {r["run"] for r in results.load(table)} == {run.name for run in SMOKE if run.arm != "frozen_late"}
    asked.clear()
    assert fusion_study.do_missing(args, (), SMOKE) == 1
    assert [name for name in asked if "pretrained" not in name] == [
        run.name for run in SMOKE if run.arm == "frozen_late"
    ]


@pytest.mark.slow
def test_smoke(tmp_path: Path) -> None:
    """Demonstrations, pretraining, three runs, tables and plots, through the command itself."""
    run("-c", "from benchmarks.study.__main__ import main; main()", "--smoke", f"--out={tmp_path}")
    rows = results.load(tmp_path / "fusion_study.csv")
    assert {r["run"] for r in rows} == {run.name for run in SMOKE}
    assert {r["control"] for r in rows} == {"", "black images"}
    assert (tmp_path / "study_time.png").exists()


def test_compare_fusions_refuses_to_mix(tmp_path: Path) -> None:
    """More seeds or arms go on in the same folder; other steps or options of LeRobot's do not."""
    same_or_stop = runpy.run_path(str(fusion_study.ROOT / "examples/compare_fusions.py"))["same_or_stop"]
    asked = {"out": tmp_path / "out", "steps": 5, "seeds": "0", "arm": None, "options": ["--batch_size=2"]}
    same_or_stop(argparse.Namespace(**asked))
    same_or_stop(argparse.Namespace(**{**asked, "seeds": "0,1", "arm": ["--policy.fusion=kv"]}))
    with pytest.raises(SystemExit, match="steps='5' and not '6'; choose another --out"):
        same_or_stop(argparse.Namespace(**{**asked, "steps": 6}))
    with pytest.raises(SystemExit, match="batch_size"):
        same_or_stop(argparse.Namespace(**{**asked, "options": []}))


def commands_run_here() -> None:
    """Those that a script would start run in its own process."""

    def here(command: list[str], check: bool) -> None:
        own, sys.argv = sys.argv, command
        try:
            runpy.run_path(command[0], run_name="__main__")
        except SystemExit as end:
            if end.code:
                raise
        sys.argv = own

    subprocess.run = here


@pytest.mark.slow
def test_compare_fusions(tmp_path: Path) -> None:
    """The script for a user's own data: trains by lerobot-train, measures what was held out, keeps what is done."""
    options = write_noise(tmp_path / "data", ("images.a",), 3, 2, tasks=("", "", "", ""))
    repo, root = (option.split("=")[1] for option in options)
    arms = ["--policy.fusion=late", "--policy.fusion=kv --policy.fusion_layers=first_1"]
    options = [f"--repo-id={repo}", f"--root={root}", f"--out={tmp_path / 'out'}", f"--config={TINY_YAML}"]
    options += ["--steps=1", "--hold-out=0.5", "--num_workers=0", "--batch_size=2", *(f"--arm={arm}" for arm in arms)]
    first, again = (run(ROOT / "examples/compare_fusions.py", *options, inside=commands_run_here) for _ in range(2))
    assert first.count("$ lerobot-train") == 2
    assert "$ lerobot-train" not in again
    assert "--dataset.episodes=[0, 2]" in first
    with (tmp_path / "out/compare.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["arm"] for row in rows] == arms
    assert all(0.3 < float(row["action_error"]) < 5 for row in rows)
    assert (tmp_path / "out/compare.png").exists()
