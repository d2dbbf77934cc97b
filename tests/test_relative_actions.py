"""Actions relative to the state at the observation: lines against loops, names, queues, checkpoints."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lerobot.configs import NormalizationMode
from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.policies.factory import make_policy, make_pre_post_processors
from lerobot.policies.rtc.configuration_rtc import RTCConfig
from torch import Tensor

from lerobot_deepfusion.inputs.relative_actions import relative_lines, relative_sources
from lerobot_deepfusion.modeling_deepfusion import DeepFusionPolicy
from lerobot_deepfusion.network.relative import RelativeActions
from tests.policies import make_config
from tests.small_data import CHUNK, columns, vector, write

ARM, HAND = ["pan.pos", "lift.pos", "gripper.pos"], ["lift.pos", "gripper.pos", "extra", "pan.pos"]
EPISODES = ((12, "pick"), (9, "place"), (3, "short"))


def data(root: Path, value: Callable[[str, int, int], Any] = lambda *_: None, **changes: Any) -> LeRobotDataset:
    features = columns(observation__state=vector(4, names=HAND), action=vector(3, names=ARM), **changes)
    return LeRobotDataset("local/small", root=write(root, features, EPISODES, value))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> LeRobotDataset:
    """State and action in different orders, and far from zero."""

    def value(key: str, episode: int, frame: int) -> list[float] | None:
        rng = np.random.default_rng([episode, frame, len(key)])
        if key == "action":
            return [90 + episode + frame + rng.normal(), -20 + 2 * rng.normal(), rng.uniform(0, 100)]
        return (
            [-20 + rng.normal(), 50 + rng.normal(), 7 * rng.normal(), 90 + episode + frame]
            if "state" in key
            else None
        )

    return data(tmp_path_factory.mktemp("relative") / "data", value)


def policy_of(meta: LeRobotDatasetMetadata, **changes: Any) -> tuple[DeepFusionPolicy, Any, Any]:
    torch.manual_seed(0)
    config = make_config(chunk_size=CHUNK, relative_actions=True, **changes)
    config.input_features = None
    policy = make_policy(config, ds_meta=meta)
    return policy, *make_pre_post_processors(config, dataset_stats=meta.stats)


def test_round_trip() -> None:
    """Worst error 5e-7 of numbers of one."""
    lines = RelativeActions([2, None, 0], 6)
    lines.fill(0.5 + torch.rand(6, 3), torch.randn(6, 3), torch.randn(6, 3))
    actions, state = torch.randn(4, 6, 3), torch.randn(4, 4)
    assert torch.allclose(lines.absolute(lines.relative(actions, state), state), actions, atol=2e-6)
    assert torch.allclose(lines.relative(actions[:, :2], state), lines.relative(actions, state)[:, :2])


@pytest.mark.parametrize("mode", ["MEAN_STD", "MIN_MAX", "QUANTILES", "IDENTITY"])
def test_lines_equal_loops(small: LeRobotDataset, mode: str) -> None:
    """What comes out for each frame and step is (action - state - mean) / deviation of that step, in the data's own
    units, whatever normalises state and action; the gripper is as it was. Worst error 5e-5, of values of ninety.
    """
    mapping = {"VISUAL": "IDENTITY", "STATE": mode, "ACTION": mode}
    mapping = {key: NormalizationMode(value) for key, value in mapping.items()}
    policy, before, _ = policy_of(small.meta, normalization_mapping=mapping)
    assert policy.relative is not None
    assert policy.relative.sources == [3, 0, 0]
    rows = small.hf_dataset.with_format("numpy")
    episode, state, action = (np.stack(rows[key][:]) for key in ("episode_index", "observation.state", "action"))
    state, action = state.astype(np.float64), action.astype(np.float64)
    for step in range(CHUNK):
        pairs = [(row, row + step) for row in range(len(episode)) if episode[row : row + step + 1].std() == 0]
        pairs = [(row, later) for row, later in pairs if later < len(episode) and episode[later] == episode[row]]
        for dimension, source in ((0, 3), (1, 0)):
            moved = np.array([action[later, dimension] - state[row, source] for row, later in pairs])
            for (row, later), expected in zip(pairs, (moved - moved.mean()) / moved.std(), strict=True):
                batch = {"observation.image": torch.zeros(3, 48, 64), "task": "pick"}
                batch |= {"observation.state": torch.from_numpy(state[row]).float()}
                chunk = torch.from_numpy(action[later]).float().expand(1, CHUNK, 3)
                ready = before({**batch, "action": chunk})
                found = policy.relative.relative(ready["action"], ready["observation.state"])
                assert found[0, step, dimension].item() == pytest.approx(expected, abs=2e-4)
                assert torch.equal(found[..., 2], ready["action"][..., 2])
            if step:
                break  # the second dimension once


def test_a_joint_that_follows_at_once_stays_finite(tmp_path: Path) -> None:
    """Where action and state are the same at a step, what is relative has no spread."""

    def value(key: str, episode: int, frame: int) -> list[float] | None:
        return {"action": [frame, 2 * frame, 1], "observation.state": [2 * frame, 0, 0, frame]}.get(key)

    small = data(tmp_path / "data", value)
    config = make_config(chunk_size=CHUNK, relative_actions=True)
    config.state_feature_names, config.action_feature_names = HAND, ARM
    scale, _, offset = relative_lines(config, small.meta, relative_sources(config))
    assert scale.isfinite().all()
    assert offset.isfinite().all()
    assert (scale[0, :2] == 100).all()  # a hundredth of the absolute action's


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"state": ["a", "b", "c", "d"]},
            "the action 'pan.pos' is no dimension of the state.*\\['gripper', 'pan.pos'\\]",
        ),
        ({"state": None}, "the data set has no names for both, and 3 actions for 4 numbers"),
        ({"exclude": ["pos"]}, "keeps every action .* absolute; leave policy.relative_actions out"),
    ],
)
def test_joints_that_go_with_nothing(changes: dict[str, Any], said: str) -> None:
    config = make_config(relative_actions=True, relative_exclude_joints=changes.get("exclude", ["gripper"]))
    config.action_feature_names, config.state_feature_names = ARM, changes.get("state", HAND)
    with pytest.raises(ValueError, match=said):
        relative_sources(config)


def test_joints_without_names_go_by_place() -> None:
    config = make_config(relative_actions=True)
    config.action_feature.shape = (4,)
    assert relative_sources(config) == [0, 1, 2, 3]


def test_no_tables(small: LeRobotDataset, tmp_path: Path) -> None:
    """A streamed data set has none to measure."""
    config = make_config(chunk_size=CHUNK, relative_actions=True)
    config.state_feature_names, config.action_feature_names = HAND, ARM
    meta = LeRobotDatasetMetadata("local/small", root=small.root)
    meta.root = tmp_path
    with pytest.raises(ValueError, match=r"needs the tables of the data set .* without --dataset.streaming"):
        relative_lines(config, meta, relative_sources(config))


def observation(state: list[float]) -> dict[str, Any]:
    return {"observation.image": torch.zeros(3, 48, 64), "task": "pick", "observation.state": torch.tensor(state)}


def blind_to_the_state(policy: DeepFusionPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    denoise = policy._denoise
    monkeypatch.setattr(policy, "_denoise", lambda states, state, *rest: denoise(states, state * 0, *rest))


def test_the_base_may_stand_elsewhere(small: LeRobotDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same move from another place, to 1e-4 of tens: what an absolute policy can't. The gripper has its own."""
    policy, before, after = policy_of(small.meta)
    blind_to_the_state(policy, monkeypatch)
    noise = torch.randn(1, CHUNK, 3)
    chunks = [
        after(policy.predict_action_chunk(before(observation(state)), noise=noise))[0]
        for state in ([-20.0, 50, 0, 95], [-17.0, 50, 0, 125])
    ]
    moved = (chunks[1] - chunks[0]).mean(0)
    assert torch.allclose(chunks[1] - chunks[0], moved.expand(CHUNK, 3), atol=1e-4)
    assert torch.allclose(moved, torch.tensor([30.0, 3.0, 0.0]), atol=1e-4)


def test_queued_actions_stay_where_they_were_meant(small: LeRobotDataset) -> None:
    """A state that has moved on since the chunk was predicted does not move what is left of it."""
    policy, before, after = policy_of(small.meta)
    torch.manual_seed(5)
    chunk = after(policy.predict_action_chunk(before(observation([-20.0, 50, 0, 95]))))
    torch.manual_seed(5)
    policy.reset()
    for step in range(policy.config.n_action_steps):
        action = after(policy.select_action(before(observation([-20.0 + step, 50, 0, 95 + 10 * step]))))
        assert torch.equal(action, chunk[:, step])


@pytest.mark.parametrize("most", [0, 3])
def test_real_time_chunking_goes_on_from_absolute_actions(small: LeRobotDataset, most: int) -> None:
    """What is left of the old chunk is where it was, although the arm has moved: guided nearer to it than without,
    trained to the bit of the round trip.
    """
    policy, before, _ = policy_of(small.meta, rtc_training_max_delay=most, num_inference_steps=5)
    first, later = (before(observation([-20.0, 50, 0, place])) for place in (95.0, 110.0))
    noise = torch.randn(1, CHUNK, 3)
    left = policy.predict_action_chunk(first, noise=noise)[:, 2:]
    free = policy.predict_action_chunk(later, noise=noise)
    policy.config.rtc_config = RTCConfig(enabled=True, execution_horizon=4)
    options = {"inference_delay": 2, "prev_chunk_left_over": left, "execution_horizon": 4}
    chunk = policy.predict_action_chunk(later, noise=noise, **options)
    as_rollouts = policy.predict_action_chunk(later, noise=noise, **{**options, "prev_chunk_left_over": left[0]})
    assert torch.equal(as_rollouts, chunk)
    off = (chunk[:, :2] - left[:, :2]).abs().max()
    assert off < (1e-5 if most else (free[:, :2] - left[:, :2]).abs().max())


def test_learns(small: LeRobotDataset) -> None:
    """The loss is of the relative chunk, and falls."""
    policy, before, _ = policy_of(small.meta)
    batch = {"observation.image": torch.zeros(4, 3, 48, 64), "task": ["pick"] * 4}
    rows = [small[index] for index in (0, 4, 12, 15)]
    batch |= {"observation.state": torch.stack([row["observation.state"] for row in rows])}
    batch |= {"action": torch.stack([row["action"] for row in rows])[:, None].expand(4, CHUNK, 3)}
    ready, losses = before(batch), []
    optimizer = torch.optim.AdamW(policy.parameters(), lr=2e-3)
    for _ in range(60):
        optimizer.zero_grad()
        loss: Tensor = policy.forward(ready)[0]
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) / 2


def test_checkpoint_stands_alone_and_another_data_set_has_its_own(small: LeRobotDataset, tmp_path: Path) -> None:
    policy, before, _ = policy_of(small.meta)
    policy.save_pretrained(tmp_path / "policy")
    again = DeepFusionPolicy.from_pretrained(tmp_path / "policy")
    batch, noise = before(observation([-20.0, 50, 0, 95])), torch.randn(1, CHUNK, 3)
    chunk = policy.predict_action_chunk(batch, noise=noise)
    assert torch.equal(again.predict_action_chunk(batch, noise=noise), chunk)

    def value(key: str, episode: int, frame: int) -> list[float] | None:
        return (
            [frame, episode, 2 * frame] if key == "action" else [1, 5, frame, 3 * frame] if "state" in key else None
        )

    other = data(tmp_path / "other", value)
    tuned = DeepFusionPolicy.from_pretrained(tmp_path / "policy", dataset_meta=other.meta, config=again.config)
    assert tuned.relative is not None
    assert policy.relative is not None
    assert not torch.allclose(tuned.relative.scale, policy.relative.scale)
    for found, expected in zip(
        tuned.relative.buffers(), relative_lines(again.config, other.meta, [3, 0, None]), strict=True
    ):
        assert torch.equal(found, expected)
    flat = make_config(chunk_size=CHUNK)
    with pytest.raises(ValueError, match="relative_actions=False \\(checkpoint: True\\)"):
        DeepFusionPolicy.from_pretrained(tmp_path / "policy", config=flat)


def test_trained_on_with_another_chunk(small: LeRobotDataset, tmp_path: Path) -> None:
    """What was measured is measured anew, and has another size."""
    policy, _, _ = policy_of(small.meta)
    policy.save_pretrained(tmp_path / "policy")
    config = copy.deepcopy(policy.config)
    config.chunk_size = CHUNK - 2
    tuned = DeepFusionPolicy.from_pretrained(tmp_path / "policy", dataset_meta=small.meta, config=config)
    assert tuned.relative is not None
    assert tuned.relative.scale.shape == (CHUNK - 2, 3)
    assert policy.relative is not None
    assert torch.allclose(tuned.relative.scale, policy.relative.scale[: CHUNK - 2])


def test_adapters_go_on_with_the_base_s_numbers(small: LeRobotDataset, tmp_path: Path) -> None:
    """They are not among what adapters save, so another data set has to have the same."""
    policy, _, _ = policy_of(small.meta)
    policy.config.use_peft = True
    policy.measure_relative_actions(small.meta)
    other = data(tmp_path / "other", lambda key, *_: [1, 5, 2, 3] if "state" in key else None)
    with pytest.raises(ValueError, match=r"write the base on this data set \(deepfusion base\)"):
        policy.measure_relative_actions(other.meta)


def test_what_is_relative_needs_a_data_set() -> None:
    config = make_config(relative_actions=True)
    config.action_feature.shape = (4,)
    with pytest.raises(ValueError, match="give DeepFusionPolicy its metadata as dataset_meta"):
        DeepFusionPolicy(config)


def test_excluded_joints_are_the_checkpoint_s(small: LeRobotDataset, tmp_path: Path) -> None:
    policy, _, _ = policy_of(small.meta)
    policy.save_pretrained(tmp_path)
    config = copy.deepcopy(policy.config)
    config.relative_exclude_joints = ["gripper", "lift"]
    with pytest.raises(ValueError, match="relative_exclude_joints="):
        DeepFusionPolicy.from_pretrained(tmp_path, config=config)
