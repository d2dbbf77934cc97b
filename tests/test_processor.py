"""Prompt, tokenizer state and the check of statistics."""

from __future__ import annotations

import pytest
import torch
from lerobot.utils.constants import OBS_LANGUAGE_ATTENTION_MASK, OBS_LANGUAGE_TOKENS
from test_policy import STATS, make_batch, make_config

from lerobot_deepfusion.processor_deepfusion import make_deepfusion_pre_post_processors
from lerobot_deepfusion.tiny import byte_tokenizer


def test_stock_steps_keep_their_names() -> None:
    """LeRobot's trainer, eval, rollout and server override steps by these names."""
    pre, post = make_deepfusion_pre_post_processors(make_config(), STATS)
    names = [type(step)._registry_name for step in pre.steps]
    assert names == [
        "rename_observations_processor",
        "to_batch_processor",
        "deepfusion_prompt_processor",
        "device_processor",
        "normalizer_processor",
    ]
    assert [type(step)._registry_name for step in post.steps] == ["unnormalizer_processor", "device_processor"]


def test_prompt_holds_every_image_token_and_the_text() -> None:
    config = make_config(cameras=("images.a", "images.b"))
    pre, _ = make_deepfusion_pre_post_processors(config, STATS)
    batch = pre(make_batch(config))
    tokens, valid = batch[OBS_LANGUAGE_TOKENS], batch[OBS_LANGUAGE_ATTENTION_MASK]
    assert (tokens == 256).sum(1).tolist() == [2 * 8] * 3
    text = byte_tokenizer().decode(tokens[1][valid[1] & (tokens[1] != 256)])
    assert text == "do 1\n"
    assert tokens.shape == valid.shape == (3, 2 * 8 + 24)


@pytest.mark.parametrize("task", ["", "Öffne die Tür"])
def test_any_text_has_tokens(task: str) -> None:
    config = make_config()
    pre, _ = make_deepfusion_pre_post_processors(config, STATS)
    batch = pre({**make_batch(config), "task": [task] * 3})
    assert batch[OBS_LANGUAGE_ATTENTION_MASK].sum(1).tolist() == [8 + len(task.encode()) + 1] * 3


def test_bad_tasks_stop_with_the_mend() -> None:
    config = make_config()
    pre, _ = make_deepfusion_pre_post_processors(config, STATS)
    batch = make_batch(config)
    with pytest.raises(ValueError, match="tokenizer_max_length is 24; set it to 41"):
        pre({**batch, "task": ["x" * 40] * 3})
    with pytest.raises(ValueError, match="contains the image token"):
        pre({**batch, "task": ["<image>"] * 3})
    with pytest.raises(ValueError, match="'task' is"):
        pre({key: value for key, value in batch.items() if key != "task"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"action": {}}, "action is to be normalised by MEAN_STD.*'mean'"),
        ({"observation.state": {"mean": torch.zeros(4)}}, "'std'"),
        ({"action": {"mean": torch.zeros(2), "std": torch.ones(2)}}, "expected 3 finite numbers"),
        ({"action": {"mean": torch.full((3,), torch.nan), "std": torch.ones(3)}}, "nan"),
    ],
)
def test_missing_statistics_stop_the_run(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_deepfusion_pre_post_processors(make_config(), {**STATS, **change})
    with pytest.raises(ValueError, match="no 'mean'"):
        make_deepfusion_pre_post_processors(make_config(), None)


def test_normalisation_there_and_back() -> None:
    config = make_config()
    pre, post = make_deepfusion_pre_post_processors(config, STATS)
    raw = make_batch(config)
    batch = pre(raw)
    state = (raw["observation.state"] - STATS["observation.state"]["mean"]) / STATS["observation.state"]["std"]
    assert torch.allclose(batch["observation.state"], state, atol=1e-6)
    assert torch.allclose(post(batch["action"][:, 0]), raw["action"][:, 0], atol=1e-6)
    assert torch.equal(batch["observation.image"], raw["observation.image"])
