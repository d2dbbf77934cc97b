"""What normalisation does to states and actions, told before training and when a checkpoint is loaded."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lerobot.configs import NormalizationMode
from lerobot.policies.factory import make_pre_post_processors

from lerobot_deepfusion.inputs import row_checks
from lerobot_deepfusion.inputs.dataset_rows import Rows, read_rows
from lerobot_deepfusion.inputs.statistics_checks import check_statistics, warn_of_statistics
from lerobot_deepfusion.modeling_deepfusion import DeepFusionPolicy
from tests import small_data
from tests.policies import make_config
from tests.small_data import columns, first_loss, load, prepare, save, vector, write

STATE, ACTION = "observation.state", "action"
MODES = ("MEAN_STD", "MIN_MAX", "QUANTILES", "QUANTILE10")
FRAMES = 3000


def stats_of(values: np.ndarray) -> dict[str, np.ndarray]:
    """The statistics of LeRobot, exact ones."""
    quantiles = {f"q{q:02}": np.quantile(values, q / 100, axis=0) for q in (1, 10, 50, 90, 99)}
    named = {name: getattr(values, name)(0) for name in ("min", "max", "mean", "std")}
    return {**named, **quantiles, "count": np.array([len(values)])}


def modes(state: str, action: str) -> dict[str, NormalizationMode]:
    return {
        "VISUAL": NormalizationMode.IDENTITY,
        "STATE": NormalizationMode[state],
        "ACTION": NormalizationMode[action],
    }


def judge(caplog: pytest.LogCaptureFixture, of: dict[str, np.ndarray], **chosen: str) -> str:
    """What is said of some columns: an error's text, or the warnings'."""
    rng = np.random.default_rng(0)
    values = {STATE: rng.normal(size=(FRAMES, 4)), ACTION: rng.normal(size=(FRAMES, 3))}
    for key, column in of.items():
        values[key][:, 1] = column
    config = make_config(normalization_mapping=modes(**{"state": "MEAN_STD", "action": "MEAN_STD", **chosen}))
    config.state_feature_names, config.action_feature_names = ["a", "lift", "c", "d"], ["x", "grip", "z"]
    caplog.clear()
    try:
        stats = {key: stats_of(value.astype(np.float32)) for key, value in values.items()}
        warn_of_statistics(check_statistics(config, stats))
    except ValueError as error:
        return f"refused: {error}"
    return "".join(f"warned: {record.message}\n" for record in caplog.records)


RARE = np.zeros(FRAMES)
RARE[::200] = 1
HEAVY = np.random.default_rng(1).standard_cauchy(FRAMES).clip(-500, 500)


@pytest.mark.parametrize(
    ("column", "refused"),
    [
        (RARE, {"QUANTILES", "QUANTILE10"}),
        (5 * RARE - 2, {"QUANTILES", "QUANTILE10"}),
        (np.round(RARE * 255), {"QUANTILES", "QUANTILE10"}),
        (np.arange(FRAMES) % 2.0, set()),
        (np.linspace(0, 4095, FRAMES).round(), set()),
        (np.random.default_rng(2).normal(size=FRAMES), set()),
        (np.full(FRAMES, 0.25), set()),
        (np.full(FRAMES, 3.14159), set()),
        (np.random.default_rng(2).normal(1e-4, 1e-5, FRAMES), set()),
        (np.random.default_rng(2).normal(180, 60, FRAMES), set()),
    ],
)
@pytest.mark.parametrize("mode", MODES)
def test_an_action_that_would_drown_the_others_is_refused(
    column: np.ndarray, refused: set[str], mode: str, caplog: pytest.LogCaptureFixture
) -> None:
    """And no other is: each of ten columns, in each mode."""
    said = judge(caplog, {ACTION: column}, action=mode)
    assert said.startswith("refused: action changes rarely in its dimensions [1] (grip)") == (mode in refused), said
    if mode in refused:
        assert all(word in said for word in (mode, "spread of", "about 1", "--policy.normalization_mapping"))
    else:
        assert not said


@pytest.mark.parametrize("mode", ["QUANTILES", "QUANTILE10"])
def test_a_rare_state_is_refused_too(mode: str, caplog: pytest.LogCaptureFixture) -> None:
    said = judge(caplog, {STATE: RARE}, state=mode)
    assert said.startswith("refused: observation.state changes rarely in its dimensions [1] (lift)")
    assert not judge(caplog, {STATE: RARE})


def test_heavy_tails_are_told(caplog: pytest.LogCaptureFixture) -> None:
    """Values that are mostly near one and at times hundreds: not refused."""
    assert judge(caplog, {ACTION: HEAVY}, action="QUANTILE10").startswith("warned: action changes rarely")


@pytest.mark.parametrize("value", [0.0, 0.1, -1.0, 3.14159, 123.0, 1e-5, 4e6])
@pytest.mark.parametrize("mode", MODES)
def test_a_constant_state_is_told_from_what_the_sums_leave(
    mode: str, value: float, caplog: pytest.LogCaptureFixture
) -> None:
    """A deviation of 3.4e-4 of the value, as LeRobot's running sums leave, is none."""
    config = make_config(normalization_mapping=modes(mode, "MEAN_STD"))
    state = stats_of(np.random.default_rng(0).normal(size=(FRAMES, 4)).astype(np.float32))
    for name in set(state) - {"count"}:
        state[name][2] = np.float32(value)
    state["std"][2] = 3.4e-4 * abs(value)
    stats = {STATE: state, ACTION: stats_of(np.random.default_rng(0).normal(size=(FRAMES, 3)))}
    warn_of_statistics(check_statistics(config, stats))
    assert "observation.state never changes in its dimensions [2]," in caplog.text
    caplog.clear()
    exact = {**stats, STATE: {key: state[key] for key in state if key not in ("min", "max") or mode == "MIN_MAX"}}
    warn_of_statistics(check_statistics(config, exact))
    assert "never changes in its dimensions [2]," in caplog.text


def test_identity_is_told_where_values_are_far_from_one(caplog: pytest.LogCaptureFixture) -> None:
    """Ticks of an encoder, and metres where the flow's noise is one."""
    ticks, metres = np.linspace(0, 4095, FRAMES), np.random.default_rng(0).normal(0, 1e-3, FRAMES)
    assert "observation.state is not normalised (IDENTITY)" in judge(caplog, {STATE: ticks}, state="IDENTITY")
    assert "values of about 0.00" in judge(caplog, {ACTION: metres}, action="IDENTITY")
    assert not judge(caplog, {}, state="IDENTITY", action="IDENTITY")


@pytest.mark.parametrize(
    ("mode", "change", "said"),
    [
        ("MEAN_STD", {"std": [1, -1, 1]}, r"dimensions \[1\] \(grip\): std is below zero"),
        ("QUANTILES", {"q99": [2, -9, 2]}, r"\[1\] \(grip\): q99 is below q01"),
        ("MEAN_STD", {"std": [1, 0, 1]}, r"changes rarely in its dimensions \[1\] \(grip\).*MIN_MAX"),
    ],
)
def test_statistics_that_contradict_themselves(mode: str, change: dict, said: str) -> None:
    """Deviations below zero, quantiles the wrong way round, no deviation between -3 and 3."""
    config = make_config(normalization_mapping=modes("MEAN_STD", mode))
    config.action_feature_names = ["x", "grip", "z"]
    rng = np.random.default_rng(0)
    stats = {STATE: stats_of(rng.normal(size=(FRAMES, 4))), ACTION: stats_of(rng.normal(size=(FRAMES, 3)))}
    stats[ACTION] |= {name: np.array(value, float) for name, value in change.items()}
    with pytest.raises(ValueError, match=said):
        check_statistics(config, stats)


def test_a_mode_for_a_type_that_there_is_not() -> None:
    with pytest.raises(ValueError, match=r"normalization_mapping names \['STATES'\]"):
        make_config(normalization_mapping={"STATES": NormalizationMode.MIN_MAX})


@pytest.mark.medium
@pytest.mark.parametrize("dtype", ["int64", "int32", "bool", "float64"])
@pytest.mark.parametrize("mode", MODES)
def test_other_types_are_normalised_as_floats(tmp_path: Path, dtype: str, mode: str) -> None:
    """LeRobot's step takes on the type of its input: as whole numbers, its deviations are cut to zero.

    Training's numbers and those of the loaded checkpoint are the same to the bit.
    """
    data = load(write(tmp_path / "data", columns(observation__state=vector(4, dtype), action=vector(3, dtype))))
    policy, pre, post = prepare(data, small_data.config(normalization_mapping=modes(mode, mode)))
    batch = next(iter(torch.utils.data.DataLoader(data, batch_size=8)))
    trained = pre(dict(batch))
    for key in (STATE, ACTION):
        names = {"MEAN_STD": ("mean", "std"), "MIN_MAX": ("min", "max"), "QUANTILES": ("q01", "q99")}
        low, high = (
            torch.as_tensor(data.meta.stats[key][name], dtype=torch.float32)
            for name in names.get(mode, ("q10", "q90"))
        )
        x = batch[key].float()
        expected = (x - low) / (high + 1e-8) if mode == "MEAN_STD" else 2 * (x - low) / (high - low) - 1
        assert trained[key].dtype == torch.float32
        assert torch.equal(trained[key], expected), key
    again = save(tmp_path / "saved", policy, pre, post)
    loaded = DeepFusionPolicy.from_pretrained(again)
    before, after = make_pre_post_processors(loaded.config, pretrained_path=str(again))
    assert torch.equal(before(dict(batch))[STATE], trained[STATE])
    assert torch.equal(after(trained[ACTION][:, 0]), post(trained[ACTION][:, 0]))


@pytest.mark.medium
def test_rows_of_other_units_than_the_statistics(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Degrees where the statistics are of radians are refused; radians where they are of degrees are told."""
    root = write(tmp_path / "data")
    for factor in (57.3, 1 / 57.3):
        data = load(root)
        for name, value in data.meta.stats[STATE].items():
            if name != "count":
                data.meta.stats[STATE][name] = value / factor
        if factor > 1:
            with pytest.raises(
                ValueError, match=r"observation.state is .* in dimension \[0\] \(joint0\) in frame 0 of.*other units"
            ):
                first_loss(data, small_data.config())
        else:
            with caplog.at_level(logging.WARNING):
                first_loss(data, small_data.config())
            assert "no dimension of observation.state moves within a twentieth" in caplog.text


@pytest.mark.medium
def test_rows_behind_a_table_of_other_episodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of some episodes the first table may have nothing; those behind it are looked at all the same."""

    def tables(*args: Any) -> Iterator[Rows]:
        for rows in read_rows(*args):
            yield rows[rows.episode < 0]
            yield rows

    monkeypatch.setattr(row_checks, "read_rows", tables)
    data = load(write(tmp_path / "data"))
    data.meta.stats[STATE] = {k: v if k == "count" else v / 57.3 for k, v in data.meta.stats[STATE].items()}
    with pytest.raises(ValueError, match=r"observation.state is .* in frame 0 of.*other units"):
        first_loss(data, small_data.config())


@pytest.mark.medium
@pytest.mark.parametrize("key", [STATE, ACTION])
@pytest.mark.parametrize("known", [True, False])
def test_a_nan_is_named_by_episode_and_frame(tmp_path: Path, key: str, known: bool) -> None:
    """Whether the statistics are NaN of it, or were made good without it."""
    size = 4 if key == STATE else 3
    broken = [np.nan] + [0] * (size - 1)
    data = load(write(tmp_path / "data", value=lambda k, e, f: broken if (k, e, f) == (key, 1, 7) else None))
    if not known:
        for name, value in data.meta.stats[key].items():
            data.meta.stats[key][name] = np.nan_to_num(value, nan={"min": 0, "mean": 2, "std": 1}.get(name, 4.0))
    with pytest.raises(ValueError, match=f"{key} has values that are NaN or infinite in frame 7 of episode 1;"):
        first_loss(data, small_data.config())


def test_a_broken_action_of_a_chunk_is_named_by_its_own_frame() -> None:
    from lerobot_deepfusion.inputs.batch_checks import check_values

    action = torch.zeros(2, 6, 3)
    action[1, 4] = torch.inf
    about = {"index": torch.tensor([10, 20]), "episode_index": torch.tensor([0, 1])}
    with pytest.raises(ValueError, match=r"episode_index \[1\] and index \[24\] of the data set"):
        check_values({}, action, about)
    state = torch.tensor([[0.0, torch.nan, 0.0]])  # three states of one dimension, as LeRobot gives them
    with pytest.raises(ValueError, match=r"index \[21\]"):
        check_values({STATE: state}, None, {"index": torch.tensor([20, 21, 22])})
