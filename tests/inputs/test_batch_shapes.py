"""Real shapes of batches: each works, or is refused in words of the policy's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lerobot.configs import FeatureType, PolicyFeature

from lerobot_deepfusion.modeling_deepfusion import DeepFusionPolicy
from lerobot_deepfusion.processor_deepfusion import make_deepfusion_pre_post_processors
from tests import small_data
from tests.policies import STATS, make, make_batch, make_config
from tests.small_data import columns, first_loss, load, prepare, vector, write

IMAGE, STATE, ACTION = "observation.image", "observation.state", "action"
TOKENS, MASK = "observation.language.tokens", "observation.language.attention_mask"


@pytest.mark.medium
@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("ones", [(STATE,), (ACTION,), (STATE, ACTION)])
def test_one_dimension(tmp_path: Path, ones: tuple[str, ...], size: int) -> None:
    """LeRobot reads such columns as numbers: [B] and [B, T]. The loss is that of [B, 1] and [B, T, 1], to the bit."""
    data = load(write(tmp_path / "data", columns(**{key.replace(".", "__"): vector(1) for key in ones})))
    policy, pre, post = prepare(data, small_data.config())
    batch = pre(next(iter(torch.utils.data.DataLoader(data, batch_size=size))))
    losses = []
    for change in ({}, {key: batch[key].reshape(size, *batch[key].shape[1:-1], -1) for key in ones}):
        if STATE in change:
            change[STATE] = batch[STATE].reshape(size, 1)
        if ACTION in change:
            change[ACTION] = batch[ACTION].reshape(size, -1, 1)
        torch.manual_seed(0)
        losses.append(policy.forward({**batch, **change})[0])
    assert torch.isfinite(losses[0])
    assert torch.equal(*losses)
    one = {key: torch.rand(1, 3, 48, 64) for key in policy.config.cameras}
    action = post(policy.select_action(pre({**one, STATE: torch.rand(1 if STATE in ones else 4), "task": "pick"})))
    assert action.shape == (1, 1 if ACTION in ones else 3)


@pytest.mark.medium
@pytest.mark.parametrize("dtype", ["int64", "bool", "float64"])
def test_one_dimension_of_another_type(tmp_path: Path, dtype: str) -> None:
    features = columns(observation__state=vector(1, dtype), action=vector(1, dtype))
    assert first_loss(load(write(tmp_path / "data", features)), small_data.config()) < 100


SHAPES = [
    ({STATE: torch.zeros(4)}, r"observation.state has the shape \(4,\); expected \[batch, 4\]"),
    ({STATE: torch.zeros(3, 1, 4)}, r"observation.state has the shape \(3, 1, 4\)"),
    ({STATE: torch.tensor(1.0)}, "observation.state has 0 dimensions; expected 4"),
    ({STATE: torch.zeros(2, 4)}, "observation.image has 3 pictures and observation.state 2 rows"),
    ({STATE: np.zeros((3, 4))}, "observation.state is a ndarray; expected a tensor"),
    ({STATE: [[0.0] * 4] * 3}, "observation.state is a list"),
    ({IMAGE: torch.rand(3, 64, 80)}, r"observation.image has the shape \(3, 64, 80\).*channels first"),
    ({IMAGE: torch.rand(3, 64, 80, 3)}, "channels first"),
    ({IMAGE: torch.rand(3, 1, 3, 64, 80)}, "channels first"),
    ({IMAGE: torch.rand(2, 3, 64, 80)}, "observation.image has 2 pictures and observation.state 3 rows"),
    ({IMAGE: np.zeros((3, 3, 64, 80))}, "observation.image is a ndarray; expected a tensor"),
    ({IMAGE: torch.zeros(3, 3, 64, 80, dtype=torch.uint8)}, "observation.image is of torch.uint8"),
    ({IMAGE: 255 * torch.rand(3, 3, 64, 80)}, r"observation.image has values from .*expected \[0, 1\]"),
    ({IMAGE: torch.full((3, 3, 64, 80), torch.nan)}, "observation.image has .* NaN"),
    ({TOKENS: None}, "observation.language.tokens is missing: the pre-processor makes it of 'task'"),
    ({MASK: None}, "observation.language.attention_mask is missing"),
    ({TOKENS: torch.zeros(25).long()}, "observation.language.tokens is no tensor"),
    ({TOKENS: torch.zeros(2, 25).long(), MASK: torch.ones(2, 25).bool()}, "'task' has 2 texts for 3 observations"),
]
TARGETS = [
    ({ACTION: None}, "action is missing; training needs chunks"),
    ({ACTION: torch.zeros(2, 6, 3)}, "action has 2 chunks and observation.state 3 rows"),
    ({ACTION: torch.zeros(3, 6)}, r"action has the shape \(3, 6\); expected \[batch, 6, 3\]"),
    ({ACTION: np.zeros((3, 6, 3))}, "action is <class 'numpy.ndarray'>"),
    ({"action_is_pad": torch.zeros(3, 5).bool()}, r"action_is_pad has the shape \(3, 5\); expected \(3, 6\)"),
    ({"action_is_pad": torch.zeros(3).bool()}, "action_is_pad has the shape"),
]


def changed(batch: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in {**batch, **change}.items() if value is not None}


@pytest.mark.parametrize(("change", "said"), SHAPES)
def test_observations_that_do_not_fit(change: dict, said: str) -> None:
    """In training and in acting."""
    policy, batch, _ = make()
    for call in (policy.forward, policy.select_action, policy.predict_action_chunk):
        with pytest.raises(ValueError, match=said):
            call(changed(batch, change))


@pytest.mark.parametrize(("change", "said"), TARGETS)
def test_targets_that_do_not_fit(change: dict, said: str) -> None:
    policy, batch, _ = make()
    with pytest.raises(ValueError, match=said):
        policy.forward(changed(batch, change))
    assert policy.select_action(changed(batch, change)).shape == (3, 3)  # acting asks for no targets


def test_noise_of_another_shape_is_refused() -> None:
    policy, batch, _ = make()
    with pytest.raises(ValueError, match=r"noise has the shape \(1, 6, 3\); expected \(3, 6, 3\)"):
        policy.predict_action_chunk(batch, noise=torch.randn(1, 6, 3))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.int64])
def test_states_of_other_types_are_floats(dtype: torch.dtype) -> None:
    policy, batch, _ = make()
    noise, whole = torch.randn(3, 6, 3), batch[STATE].round()
    expected = policy.predict_action_chunk({**batch, STATE: whole}, noise=noise)
    assert torch.equal(policy.predict_action_chunk({**batch, STATE: whole.to(dtype)}, noise=noise), expected)


@pytest.mark.parametrize("task", ["one for all", ["one for all"]])
def test_one_text_for_many_observations(task: str | list[str]) -> None:
    """As if each had it, to the bit; in training too."""
    policy, _, pipelines = make()
    pre, raw = pipelines["pre"], make_batch(policy.config)
    one, each = pre({**raw, "task": task}), pre({**raw, "task": ["one for all"] * 3})
    noise = torch.randn(3, 6, 3)
    assert torch.equal(policy.predict_action_chunk(one, noise=noise), policy.predict_action_chunk(each, noise=noise))
    losses = []
    for batch in (one, each):
        torch.manual_seed(0)
        losses.append(policy.forward(batch)[0])
    assert torch.equal(*losses)


def test_a_picture_is_what_the_policy_s_cameras_are() -> None:
    """Whatever its key; and no picture that the policy doesn't see can stop it."""
    config = make_config()
    config.input_features = {
        "observation.rgb": PolicyFeature(FeatureType.VISUAL, (3, 64, 80)),
        **config.input_features,
    }
    del config.input_features[IMAGE]
    policy = DeepFusionPolicy(config)
    pre, _ = make_deepfusion_pre_post_processors(config, STATS)
    raw = make_batch(config, training=False)
    for broken in (255 * torch.rand(3, 3, 64, 80), torch.zeros(3, 3, 64, 80, dtype=torch.uint8)):
        with pytest.raises(ValueError, match=r"observation\.rgb "):
            pre({**raw, "observation.rgb": broken})
        other = {IMAGE: broken, "observation.images.thermal": broken, "observation.flow": -broken.float()}
        assert policy.select_action(pre({**raw, **other})).shape == (3, 3)


def test_cameras_of_a_base_are_not_those_of_its_fine_tuning() -> None:
    """The step of the base knows others: the policy looks at its own."""
    policy, _, _ = make()
    pre, _ = make_deepfusion_pre_post_processors(make_config(cameras=("images.other",)), STATS)
    raw = {**make_batch(policy.config, training=False), IMAGE: 255 * torch.rand(3, 3, 64, 80)}
    with pytest.raises(ValueError, match=r"observation\.image has values from"):
        policy.select_action(pre(raw))


@pytest.mark.medium
@pytest.mark.parametrize(
    "extra",
    [
        {"observation.touching": vector(2, "bool")},
        {"observation.note": {"dtype": "string", "shape": (1,), "names": None}},
        {"observation.effort": vector(4), "observation.count": vector(1, "int64")},
        {"observation.environment_state": vector(5)},
        {"action.gripper": vector(2)},
        {"observation.grid": {"dtype": "float32", "shape": (3, 4), "names": None}},
        {"observation.images.depth": small_data.picture(channels=1)},
    ],
    ids=lambda extra: next(iter(extra)),
)
def test_columns_that_the_policy_does_not_use(tmp_path: Path, extra: dict, caplog: pytest.LogCaptureFixture) -> None:
    """They do no harm, are not among its features, and those that a user may expect it to use are named once."""
    caplog.set_level("INFO")
    data = load(write(tmp_path / "data", {**columns(), **extra}))
    options = small_data.config()
    assert first_loss(data, options) < 100
    assert set(options.input_features) == {IMAGE, STATE}
    assert set(options.output_features) == {ACTION}
    for key in extra:
        told = [text for text in caplog.messages if key in text and "takes nothing" in text]
        assert len(told) == (key != "observation.note"), key
