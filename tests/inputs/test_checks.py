"""The data boundary: bad input stops the run with the key, what was found, what was expected and the mend."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from lerobot.configs import FeatureType, NormalizationMode, PolicyFeature

from lerobot_deepfusion.inputs.dataset_checks import check_dataset
from lerobot_deepfusion.modeling_deepfusion import DeepFusionPolicy
from lerobot_deepfusion.processor_deepfusion import make_deepfusion_pre_post_processors
from tests.policies import STATS, make, make_batch, make_config

IMAGE, STATE, ACTION = "observation.image", "observation.state", "action"


def meta(length: int = 40, **stats: dict) -> SimpleNamespace:
    """What the checks read of `LeRobotDatasetMetadata`."""
    return SimpleNamespace(
        repo_id="local/x", root="nowhere", episodes={"length": [3, length]}, stats={**STATS, **stats}
    )


@pytest.mark.parametrize(
    ("change", "mode", "message"),
    [
        ({"action": {}}, "MEAN_STD", "action is to be normalised by MEAN_STD.*'mean'.*lerobot-edit-dataset"),
        ({STATE: {"mean": torch.zeros(4)}}, "MEAN_STD", "observation.state .* no 'std'"),
        ({"action": {"mean": torch.zeros(2), "std": torch.ones(2)}}, "MEAN_STD", "expected 3 finite numbers"),
        ({"action": {"mean": torch.zeros(0), "std": torch.ones(0)}}, "MEAN_STD", "expected 3 finite numbers"),
        ({"action": {"mean": torch.full((3,), torch.nan), "std": torch.ones(3)}}, "MEAN_STD", "nan"),
        ({"action": {"mean": torch.zeros(3), "std": torch.full((3,), torch.inf)}}, "MEAN_STD", "'std' of action"),
        ({}, "QUANTILES", "no 'q01'.*they have .'mean', 'std'"),
        ({}, "QUANTILE10", "no 'q10'"),
        ({}, "MIN_MAX", "no 'min'"),
    ],
)
def test_statistics_stop_a_run_before_its_first_step(change: dict, mode: str, message: str) -> None:
    """In a fresh run and in fine-tuning, where LeRobot puts them into the checkpoint's own pipeline."""
    config = make_config()
    config.normalization_mapping |= {"STATE": NormalizationMode[mode], "ACTION": NormalizationMode[mode]}
    with pytest.raises(ValueError, match=message):
        make_deepfusion_pre_post_processors(config, {**STATS, **change})
    with pytest.raises(ValueError, match=message):
        DeepFusionPolicy(config, dataset_meta=meta(**change))


@pytest.mark.parametrize("mode", ["MEAN_STD", "QUANTILES"])
def test_a_state_that_never_changes_is_told(mode: str, caplog: pytest.LogCaptureFixture) -> None:
    """LeRobot normalises a reading that is off by a thousandth to 1e5, which no check of numbers would stop."""
    config = make_config()
    config.normalization_mapping |= {"STATE": NormalizationMode[mode]}
    low, high = torch.tensor([0.0, 0.5, -1.0, 0.0]), torch.tensor([1.0, 0.5, 1.0, 1e-8])
    stats = {"mean": low, "std": high - low, "q01": low, "q99": high}
    check_dataset(config, meta(**{STATE: stats}))
    assert "observation.state never changes in its dimensions [1, 3]" in caplog.text
    caplog.clear()
    check_dataset(config, meta(**{STATE: {**stats, "std": torch.ones(4), "q99": low + 1}}))
    assert not caplog.text


def test_chunk_longer_than_every_episode() -> None:
    """Its end would never be trained; one that is longer than some episodes is masked there, and fine."""
    check_dataset(make_config(), meta(length=6))
    with pytest.raises(ValueError, match=r"chunk_size=6.*longest episode of local/x has 5.*--policy.chunk_size=5"):
        DeepFusionPolicy(make_config(), dataset_meta=meta(length=5))


@pytest.mark.parametrize("key", [STATE, ACTION, IMAGE])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_training_names_the_frames_that_are_not_finite(key: str, value: float) -> None:
    config = make_config()
    pre, _ = make_deepfusion_pre_post_processors(config, STATS)
    batch = make_batch(config) | {"episode_index": torch.tensor([4, 7, 9]), "index": torch.tensor([40, 71, 93])}
    pre(batch)
    batch[key][1].view(-1)[0] = value
    with pytest.raises(ValueError, match=rf"{key} has 1 values.*episode_index \[7\] and index \[71\]"):
        pre(batch)


@pytest.mark.parametrize("key", [STATE, IMAGE])
def test_acting_stops_at_a_broken_sensor(key: str) -> None:
    """One observation without a batch axis, as LeRobot's rollout gives it."""
    config = make_config()
    pre, _ = make_deepfusion_pre_post_processors(config, STATS)
    observation = {IMAGE: torch.rand(3, 64, 80), STATE: torch.rand(4), "task": "push"}
    pre(observation)
    observation[key].view(-1)[2] = torch.nan
    with pytest.raises(ValueError, match=rf"{key} has 1 values that are NaN or infinite, in row \[0\]"):
        pre(observation)


def test_no_broken_action_reaches_the_motors() -> None:
    """Neither from damaged weights nor from damaged statistics, and nothing of that chunk stays queued."""
    policy, batch, pipelines = make()
    with torch.no_grad():
        policy.model.expert.action_out_proj.bias[1] = torch.nan
    for act in (policy.select_action, policy.predict_action_chunk):
        with pytest.raises(ValueError, match="chunk has values that are NaN or infinite, and none of it is executed"):
            act(batch)
    assert not policy._action_queue
    with pytest.raises(ValueError, match="action has 1 values"):
        pipelines["post"](torch.tensor([[0.0, torch.inf, 0.0]]))


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (torch.rand(3, 3, 64, 80) * 255, r"values from .* to 25.*expected \[0, 1\]. Divide bytes by 255"),
        (torch.rand(3, 3, 64, 80) - 0.5, r"values from -0.* expected \[0, 1\]"),
        (torch.zeros(3, 3, 64, 80, dtype=torch.uint8), "of torch.uint8; expected floats in"),
    ],
)
def test_pictures_have_values_in_zero_to_one(picture: torch.Tensor, message: str) -> None:
    config = make_config()
    pre, _ = make_deepfusion_pre_post_processors(config, STATS)
    with pytest.raises(ValueError, match=f"{IMAGE} .*{message}|{IMAGE} is {message}"):
        pre({**make_batch(config), IMAGE: picture})


def test_depth_is_nothing_to_the_policy_unless_it_is_among_its_cameras() -> None:
    """LeRobot's depth cameras are pictures of one channel, in millimetres."""
    config = make_config()
    pre, _ = make_deepfusion_pre_post_processors(config, STATS)
    depth = torch.randint(0, 5000, (3, 1, 64, 80), dtype=torch.int32)
    pre({**make_batch(config), f"{IMAGE}s.front_depth": depth})
    config.input_features[f"{IMAGE}s.front_depth"] = PolicyFeature(FeatureType.VISUAL, (1, 64, 80))
    with pytest.raises(ValueError, match=r"front_depth has the shape \(1, 64, 80\).*Leave others out"):
        DeepFusionPolicy(config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({IMAGE: torch.rand(3, 64, 80, 3)}, r"observation.image has the shape \(3, 64, 80, 3\).*channels first"),
        ({IMAGE: torch.rand(3, 1, 64, 80)}, "channels first"),
        ({IMAGE: torch.rand(3, 3, 80, 80)}, "80 x 80 pixels.*trained on 64 x 80.*input_features=null"),
        ({IMAGE: None}, "camera 'observation.image' is not in the batch.*--rename_map"),
        ({STATE: torch.rand(3, 40)}, "observation.state has 40 dimensions; expected 4"),
        ({STATE: None}, "observation.state is not in the batch.*--rename_map"),
        ({ACTION: torch.rand(3, 6, 7)}, "action has 7 dimensions; expected 3"),
        ({ACTION: torch.rand(3, 9, 3)}, r"action has the shape \(3, 9, 3\); expected \[batch, 6, 3\]"),
        ({ACTION: torch.rand(3, 3)}, r"action has the shape \(3, 3\)"),
    ],
)
def test_shapes_are_those_that_the_policy_was_built_for(change: dict, message: str) -> None:
    policy, batch, _ = make()
    policy.forward(batch)
    batch = {key: value for key, value in {**batch, **change}.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        policy.forward(batch)


@pytest.mark.parametrize("size", [(64, 80), (128, 160), (480, 600), (63, 79), (45, 56)])
def test_another_resolution_of_the_same_picture_is_fine(size: tuple[int, int]) -> None:
    policy, batch, _ = make()
    assert torch.isfinite(policy.predict_action_chunk({**batch, IMAGE: torch.rand(3, 3, *size)})).all()


def test_config_refuses_what_would_break_pictures() -> None:
    mapping = {"VISUAL": NormalizationMode.MEAN_STD}
    with pytest.raises(ValueError, match="VISUAL=MEAN_STD; set it to IDENTITY"):
        make_config(normalization_mapping=mapping)


def test_tokenizer_of_another_checkpoint() -> None:
    """An image token that the tokenizer takes for several, or for none."""
    config = make_config()
    pre, _ = make_deepfusion_pre_post_processors(config, STATS)
    step = next(step for step in pre.steps if hasattr(step, "prompt"))
    step.image_token = "<other>"
    with pytest.raises(ValueError, match="0 tokens '<other>'"):
        pre(make_batch(config))
