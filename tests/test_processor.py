"""Prompt, tokenizer state and the check of statistics."""

from __future__ import annotations

import pytest
import torch
from lerobot.utils.constants import OBS_LANGUAGE_ATTENTION_MASK, OBS_LANGUAGE_TOKENS

from lerobot_deepfusion.inputs.prompt import expand_image_token, fit_tokens
from lerobot_deepfusion.llava.tiny import byte_tokenizer
from lerobot_deepfusion.processor_deepfusion import (
    DeepFusionPromptProcessorStep,
    make_deepfusion_pre_post_processors,
)
from tests.policies import STATS, make, make_batch, make_config


def test_stock_steps_keep_their_names() -> None:
    """LeRobot's trainer, eval, rollout and server override steps by these names."""
    pre, post = make_deepfusion_pre_post_processors(make_config(), STATS)
    names = [type(step)._registry_name for step in pre.steps]
    assert names == [
        "rename_observations_processor",
        "to_batch_processor",
        "deepfusion_value_check_processor",
        "deepfusion_prompt_processor",
        "device_processor",
        "normalizer_processor",
    ]
    names = [type(step)._registry_name for step in post.steps]
    assert names == ["unnormalizer_processor", "device_processor", "deepfusion_value_check_processor"]


def test_processors_of_a_policy_that_is_not_trained(caplog: pytest.LogCaptureFixture) -> None:
    """LeRobot's factory is asked for them without statistics: nothing is normalised, and that is said."""
    pre, post = make_deepfusion_pre_post_processors(make_config())
    assert "no statistics are given" in caplog.text
    batch = make_batch(make_config())
    assert torch.equal(pre(batch)["observation.state"], batch["observation.state"])
    assert torch.equal(post(batch["action"]), batch["action"])
    with pytest.raises(ValueError, match="statistics have no 'mean'"):  # some, but not those that are needed
        make_deepfusion_pre_post_processors(make_config(), {})


def test_prompt_has_one_image_token_and_the_text() -> None:
    config = make_config()
    pre, _ = make_deepfusion_pre_post_processors(config, STATS)
    batch = pre(make_batch(config))
    tokens, valid = batch[OBS_LANGUAGE_TOKENS], batch[OBS_LANGUAGE_ATTENTION_MASK]
    assert tokens.shape == valid.shape == (3, 24 + 1)
    assert byte_tokenizer().decode(tokens[1][valid[1]], skip_special_tokens=False) == "<image>do 1\n"
    assert (tokens == 256).sum(1).tolist() == [1, 1, 1]


@pytest.mark.parametrize("task", ["", "Öffne die Tür", "!\x00"])
def test_any_text_has_tokens(task: str) -> None:
    """Each byte counts, also the one whose id fills what is left."""
    config = make_config()
    pre, _ = make_deepfusion_pre_post_processors(config, STATS)
    batch = pre({**make_batch(config), "task": [task] * 3})
    assert batch[OBS_LANGUAGE_ATTENTION_MASK].sum(1).tolist() == [1 + len(task.encode()) + 1] * 3


def test_another_text_with_every_picture_takes_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest goes, and has the same tokens when it comes again."""
    monkeypatch.setattr("lerobot_deepfusion.processor_deepfusion.REMEMBERED", 4)
    config = make_config()
    pre, _ = make_deepfusion_pre_post_processors(config, STATS)
    (step,) = (step for step in pre.steps if isinstance(step, DeepFusionPromptProcessorStep))
    tokens = [
        pre({**make_batch(config), "task": [f"do {index}"] * 3})[OBS_LANGUAGE_TOKENS] for index in (*range(9), 0)
    ]
    assert len(step._known) == 4
    assert torch.equal(tokens[0], tokens[-1])


def test_image_token_becomes_those_of_all_cameras() -> None:
    """Against lists; wherever the token stands in its row, and with a camera absent."""
    rows = [[5, 9, 6, 7], [9, 5, 0, 0], [5, 6, 9, 0]]
    lengths = [4, 2, 3]
    present = [[True, True], [False, True], [True, False]]
    valid = torch.tensor([[i < length for i in range(4)] for length in lengths])
    ids, seen = expand_image_token(torch.tensor(rows), valid, 9, torch.tensor(present), 3)
    for row, length, there, out, mask in zip(rows, lengths, present, ids.tolist(), seen.tolist(), strict=True):
        at = row.index(9)
        assert out == row[:at] + [9] * 6 + row[at + 1 :]
        assert mask == [True] * at + [there[0]] * 3 + [there[1]] * 3 + [i < length for i in range(at + 1, 4)]


def test_bad_tasks_stop_with_the_mend() -> None:
    config = make_config()
    pre, _ = make_deepfusion_pre_post_processors(config, STATS)
    batch = make_batch(config)
    with pytest.raises(ValueError, match="contains the image token"):
        pre({**batch, "task": ["<image>"] * 3})
    with pytest.raises(ValueError, match="'task' is"):
        pre({key: value for key, value in batch.items() if key != "task"})


def test_prompts_are_as_long_as_the_policy_says() -> None:
    """Whatever the checkpoint's step fills them to: those that the policy's own step writes. One that is too long
    stops with the mend.
    """
    policy, _, pipelines = make()
    batch = make_batch(policy.config)
    long = {**batch, "task": ["x" * 40, "y", "z" * 20]}
    with pytest.raises(ValueError, match=r"has 41 tokens.*tokenizer_max_length is 24; set it to 41 or more"):
        policy.forward(pipelines["pre"](long))
    for size, sample in ((48, long), (12, {**batch, "task": ["x", "y", "z"]})):
        policy.config.tokenizer_max_length = size
        own, _ = make_deepfusion_pre_post_processors(policy.config, STATS)
        written, expected = (
            [step(sample)[key] for key in (OBS_LANGUAGE_TOKENS, OBS_LANGUAGE_ATTENTION_MASK)]
            for step in (pipelines["pre"], own)
        )
        assert written[0].shape != expected[0].shape
        assert all(map(torch.equal, fit_tokens(*written, size + 1), expected))
    policy.forward(pipelines["pre"]({**batch, "task": ["x" * 11] * 3}))
    with pytest.raises(ValueError, match=r"has 13 tokens.*tokenizer_max_length is 12; set it to 13 or more"):
        policy.forward(pipelines["pre"]({**batch, "task": ["x" * 12] * 3}))


def test_normalisation_there_and_back() -> None:
    config = make_config()
    pre, post = make_deepfusion_pre_post_processors(config, STATS)
    raw = make_batch(config)
    batch = pre(raw)
    state = (raw["observation.state"] - STATS["observation.state"]["mean"]) / STATS["observation.state"]["std"]
    assert torch.allclose(batch["observation.state"], state, atol=1e-6)
    assert torch.allclose(post(batch["action"][:, 0]), raw["action"][:, 0], atol=1e-6)
    assert torch.equal(batch["observation.image"], raw["observation.image"])
