"""The speed benchmark compares like with like: equal inputs, matching sizes, and a literal plan that is the plan."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import benchmarks.speed.__main__ as speed
from benchmarks import clock, report, switch_costs
from benchmarks.speed import measures, memory
from benchmarks.speed.arms import deepfusion_model
from benchmarks.speed.literal import LiteralPlan
from benchmarks.speed.shapes import make_inputs, shape_of
from tests.commands import ROOT
from tests.llavas import enlarge

COMPARED = ("deepfusion kv", "pi0", "smolvla", "molmoact2", "literal plan")


@pytest.mark.parametrize("padding", [0, 2])
def test_literal_plan_computes_the_same_velocity(padding: int) -> None:
    """With shared weights, four times their usual size; worst error 2.4e-7 of the largest velocity.

    Positions that start again at the expert, padding that is attended to, or the next layer's states move it by 0.018
    or more.
    """
    shape = shape_of("tiny-B2")
    inputs = make_inputs(shape)
    torch.manual_seed(0)
    model = deepfusion_model(shape, "hidden", "token").eval()
    enlarge(model)
    plan = LiteralPlan(model).eval()
    valid = torch.ones_like(inputs.tokens, dtype=torch.bool)
    if padding:
        valid[1, -padding:] = False
    noisy, time = inputs.noise[:, 0], inputs.time[:, 0]
    with torch.no_grad():
        states = model.project_contexts(model.prefill(inputs.pixels, inputs.tokens, valid))
        ours = model.denoise(states, inputs.state, inputs.noise, model.embed_time(inputs.time))[:, 0]
        hidden = plan.perceive(inputs.pixels, inputs.tokens, valid)
        literal = plan.velocity(hidden, valid, inputs.state, noisy, time)
    assert (ours - literal).abs().max() <= 1e-5 * ours.abs().max()


@pytest.mark.medium
def test_sizes_match() -> None:
    """Parameters at S256 beside pi0's: ours 3.5% fewer (most of the last VLM layer is not kept), smolvla as many.

    molmoact2 has 27% more (cross-attention and modulation) and the literal plan 37% more (the logits' weights).
    """
    pi0 = measures.build("pi0", "S256").parameters()
    shares = {name: measures.build(name, "S256").parameters() / pi0 - 1 for name in COMPARED}
    assert -0.05 < shares["deepfusion kv"] < 0
    assert abs(shares["smolvla"]) < 0.001
    assert 0.2 < shares["molmoact2"] < 0.3
    assert 0.3 < shares["literal plan"] < 0.4


@pytest.mark.medium
@pytest.mark.parametrize("name", [name for name in measures.ARMS if "compiled" not in name and name != "floor"])
def test_every_arm_acts_and_learns(name: str) -> None:
    """A chunk of the right shape, and gradients that reach the VLM unless it is frozen."""
    arm = measures.build(name, "tiny-B2")
    arm.model.eval()
    torch.manual_seed(0)
    chunk = arm.act(2)
    assert chunk.shape == (2, 5, 32)
    assert torch.isfinite(chunk).all()
    arm.model.train()
    arm.train_step()
    trained = [p for p in arm.vlm.parameters() if p.grad is not None and p.grad.any()]
    assert trained
    arm.vlm.requires_grad_(False)
    arm.train_step()
    assert all(p.grad is None for p in arm.vlm.parameters())


@pytest.mark.medium
def test_benchmark_writes_its_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One round at the smallest shape: every arm has a row with its time and its ratio to pi0."""
    out = tmp_path / "speed.json"
    arguments = ["--what", "acting,training,roofline", "--cases", "tiny", "--rounds", "1", "--out", str(out)]
    arms = [name for name in measures.ARMS if "compiled" not in name]
    monkeypatch.setattr("sys.argv", ["speed", *arguments, "--arms", ",".join(arms)])
    speed.main()
    found = json.loads(out.read_text())
    assert {"machine", "device", "dtype", "rounds", "clock", "torch", "commit", "rows"} <= set(found)
    rows = {(row["what"], row["arm"]): row for row in found["rows"]}
    for name in arms:
        row = rows["acting", name]
        assert row["value"][1] > 0
        assert row["ratio"][0] <= row["ratio"][1] <= row["ratio"][2]
    assert rows["acting", "pi0"]["ratio"] == [1, 1, 1]
    assert rows["acting, one step", "deepfusion kv"]["unit"] == "ms"
    assert ("training", "floor") not in rows
    assert out.with_suffix(".png").stat().st_size > 10_000


def test_rows_of_other_cases_stay(tmp_path: Path) -> None:
    report.save(tmp_path / "x.json", {}, [report.Row("acting", case, "pi0", [1.0], "ms") for case in ("a", "b")])
    report.save(tmp_path / "x.json", {}, [report.Row("acting", "b", "pi0", [2.0], "ms")])
    assert [row.value for row in report.load(tmp_path / "x.json")] == [[1.0], [2.0]]


def test_clock_compares_within_a_round() -> None:
    """Ratios are of the same round: a machine that slows down for both changes none."""
    seconds = {"a": [1.0, 10.0, 2.0], "b": [2.0, 20.0, 4.0]}
    assert clock.ratio(seconds, "a", "b") == [0.5, 0.5, 0.5]
    calls: list[str] = []
    clock.race({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=5)
    assert sorted(calls) == ["a"] * 6 + ["b"] * 6


def test_cases_and_arms_that_are_not_there() -> None:
    assert shape_of("M512-GQA-P1200-B4").kv_heads == 2
    assert shape_of("S256-P1200-B4").prefix == 1200
    with pytest.raises(ValueError, match="choose 440"):
        shape_of("S256-P500")
    with pytest.raises(ValueError, match="expected <shape>"):
        shape_of("S256-X1")
    with pytest.raises(ValueError, match="arm 'pi1': choose from"):
        measures.build("pi1", "tiny")


@pytest.mark.medium
def test_costs_of_the_switch_are_those_in_the_docs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = switch_costs.ROWS[1], switch_costs.ROWS[-3]
    monkeypatch.setattr(switch_costs, "ROWS", rows)
    switch_costs.main()
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 2 + len(rows)
    assert "fusion=hidden" in printed[2]
    assert "late_gemma" in printed[3]
    documented = (ROOT / "docs" / "design.md").read_text().splitlines()
    assert [line for line in printed if line not in documented] == []


@pytest.mark.slow
def test_memory_sees_checkpointing() -> None:
    """A process each; measured 0.46 of the plain step, gradients included."""
    plain, less = (memory.peak("deepfusion kv", "S256-B2", kind) for kind in ("plain", "checkpointing"))
    assert 0 < less < 0.6 * plain
