"""`deepfusion open-loop`: errors are those of the chunks, held out means not trained on, and blindness shows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lerobot_deepfusion.cli import main
from lerobot_deepfusion.looking.held_out import HELD_OUT, OTHER, SEEN, UNKNOWN, told
from lerobot_deepfusion.looking.open_loop import numbers
from lerobot_deepfusion.looking.predicted import Along, Course, enough, predict_along
from tests.llavas import enlarge
from tests.small_data import columns, config, load, prepare, vector, write

NAMES = ["x", "y", "hand"]


@pytest.fixture(scope="module")
def robot(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A policy with large random weights and data of its robot: two tasks, an episode each."""
    folder = tmp_path_factory.mktemp("robot")
    data = load(write(folder / "data", columns(action=vector(3, names=NAMES)), ((11, "pick"), (7, "place"))))
    policy, before, after = prepare(data, config())
    enlarge(policy, 2.0)
    for part in (policy, before, after):
        part.save_pretrained(folder / "policy")
    return folder / "policy", folder / "data"


def trained_on(policy: Path, **dataset: object) -> None:
    (policy / "train_config.json").write_text(json.dumps({"dataset": dataset}))


def test_seen_episodes_are_not_called_held_out(tmp_path: Path) -> None:
    policy, root = tmp_path / "policy", tmp_path / "data"
    policy.mkdir()
    assert told(policy, root, "me/data", [0]) == {0: UNKNOWN}
    trained_on(policy, repo_id="me/data", root=None, episodes=[0, 2])
    assert told(policy, root, "me/data", [0, 1, 2]) == {0: SEEN, 1: HELD_OUT, 2: SEEN}
    assert told(policy, root, None, [0, 1]) == {0: UNKNOWN, 1: UNKNOWN}
    assert told(policy, root, "me/other", [0, 1]) == {0: OTHER, 1: OTHER}
    trained_on(policy, repo_id="me/data", root=None, episodes=None, eval_split=0.1)
    assert told(policy, root, "me/data", [0]) == {0: UNKNOWN}
    trained_on(policy, repo_id="local/x", root=str(tmp_path / "policy/../data"), episodes=None)
    assert told(policy, root, "me/data", [0, 1]) == {0: SEEN, 1: SEEN}
    assert told(policy, tmp_path / "other", "me/data", [0]) == {0: OTHER}
    assert told(policy, tmp_path / "other", None, [0]) == {0: UNKNOWN}


def test_errors_by_hand() -> None:
    """Three observations, of which the last is cut short."""
    recorded = torch.zeros(3, 2, 2)
    valid = torch.tensor([[True, True], [True, True], [True, False]])
    chunks = {"1 evaluations": torch.ones(3, 2, 2), "2 evaluations": torch.zeros(3, 2, 2)}
    chunks["1 evaluations"][2, 1] = 100  # behind the end
    chunks["2 evaluations"][0, 0, 0] = 1
    along = Along([0, 0, 1], [0, 2, 0], recorded, valid, chunks, recorded)
    assert along.error("1 evaluations") == pytest.approx(1)
    assert along.error("2 evaluations") == pytest.approx((0.5 / 5) ** 0.5)
    assert along.squared("2 evaluations").nanmean(0).tolist() == pytest.approx([0.5 / 3, 0])
    assert enough(along, (1, 2)) == 2
    chunks["1 evaluations"] = chunks["2 evaluations"] * 1.01
    assert enough(along, (1, 2)) == 1


def test_numbers() -> None:
    assert numbers("0, 3,7-9") == [0, 3, 7, 8, 9]
    for text in ("", "a", "1-", "-1", "1,,2", "5-3"):
        with pytest.raises(ValueError, match=r"expected numbers|ends before it begins"):
            numbers(text)


def test_adapters_are_to_be_merged_first(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    for verb in ("look", "open-loop"):
        with pytest.raises(SystemExit, match=f"deepfusion merge {tmp_path} <folder>"):
            main([verb, str(tmp_path), f"--dataset={tmp_path}"])


@pytest.mark.medium
def test_chunks_are_the_policys_own(robot: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches, conditions and places: each chunk is what the policy predicts for that row and noise alone."""
    from lerobot_deepfusion.looking.observations import load as load_policy

    monkeypatch.setattr("lerobot_deepfusion.looking.predicted.AT_ONCE", 2)
    policy, before, _ = load_policy(str(robot[0]))
    course = Course(policy, before, robot[1], "local/small", [1, 0], stride=5)
    along = predict_along(course, (1, 2), samples=3)
    assert list(zip(along.episodes, along.frames, strict=True)) == [(1, 0), (1, 5), (0, 0), (0, 5), (0, 10)]
    assert along.valid.sum(1).tolist() == [6, 2, 6, 6, 1]
    data, noise = load(robot[1]), torch.randn(3, 5, 6, 3, generator=torch.Generator().manual_seed(0))
    for index, row in enumerate((11, 16, 0, 5, 10)):
        item = data[row]
        batch = {key: value[None] if isinstance(value, torch.Tensor) else [value] for key, value in item.items()}
        torch.testing.assert_close(before(dict(batch))["action"], along.recorded[index : index + 1])
        dark = {**batch, "observation.image": torch.zeros_like(batch["observation.image"])}
        other = {**batch, "task": ["place" if item["task"] == "pick" else "pick"]}
        for name, seen, count in (
            ("1 evaluations", batch, 1),
            ("2 evaluations", batch, 2),
            ("black pictures", dark, 2),
            ("other instructions", other, 2),
        ):
            policy.config.num_inference_steps = count
            alone = policy.predict_action_chunk(before(dict(seen)), noise=noise[0, index : index + 1])
            torch.testing.assert_close(along.chunks[name][index : index + 1], alone, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(along.chunks["black pictures"], along.chunks["2 evaluations"], atol=1e-2)
    assert not torch.allclose(along.chunks["other instructions"], along.chunks["2 evaluations"], atol=1e-3)
    assert along.spread.min() > 0
    assert along.seconds.keys() == {1, 2}


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["flow", "two_step", "drift"])
def test_the_command(
    objective: str, robot: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy, root = robot
    if objective != "flow":
        made, before, after = prepare(load(root), config(objective=objective, num_flow_samples=2))
        policy = tmp_path / "policy"
        for part in (made, before, after):
            part.save_pretrained(policy)
    trained_on(policy, repo_id="local/small", root=str(root), episodes=[0])
    command = ["open-loop", str(policy), "--dataset", str(root), f"--output-dir={tmp_path}/out"]
    main([*command, "--episodes=1"])
    said = capsys.readouterr().out
    assert "episodes 1: held out" in said
    assert "not known to be errors on held-out data" not in said
    assert ("a chunk takes" in said) == (objective == "flow")
    assert ("spread of" in said) == (objective != "two_step")  # which draws nothing
    found = json.loads((tmp_path / "out/open_loop.json").read_text())
    assert found["held_out"]
    assert list(found["mean_absolute_error"]) == NAMES
    assert len(found["error_by_step"]) == 6
    assert np.asarray(Image.open(tmp_path / "out/open_loop.png").convert("RGB")).std() > 10
    main(["card", str(policy), f"--open-loop={tmp_path}/out"])
    card = (policy / "README.md").read_text()
    assert "![What it would have done](open_loop.png)" in card
    assert "recorded ones of episodes 1, that it was not trained on" in card
    assert f"black pictures {found['error']['black pictures']:.3f}" in card
    shutil.copytree(policy, tmp_path / "other")
    with pytest.raises(SystemExit, match=rf"of the checkpoint {policy}, and the card is of {tmp_path}/other"):
        main(["card", f"{tmp_path}/other", f"--open-loop={tmp_path}/out"])
    with pytest.raises(SystemExit, match=r"has no look.json; give the --output-dir"):
        main(["card", str(policy), f"--look={tmp_path}/out"])
    main([*command, "--episodes=0-1"])
    said = capsys.readouterr().out
    assert "episodes 0: seen in training; episodes 1: held out" in said
    assert "not known to be errors on held-out data" in said
    with pytest.raises(SystemExit, match=r"episodes \[2\].*has the episodes 0 to 1"):
        main([*command, "--episodes=2"])
