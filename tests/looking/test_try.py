"""`deepfusion try`: a policy acts in the simulator, told what the command line says, in front of a camera."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from lerobot.policies.factory import make_pre_post_processors
from PIL import Image

from lerobot_deepfusion.cli import main
from lerobot_deepfusion.looking import try_out
from lerobot_deepfusion.looking.film_strip import read_film
from lerobot_deepfusion.modeling_deepfusion import DeepFusionPolicy
from lerobot_deepfusion.sim.metaworld_fast import MetaworldFastEnv
from lerobot_deepfusion.storage.shipped import shipped_policies
from tests.small_data import columns, config, load, picture, prepare, vector, write


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that was never trained, of Meta-World's robot."""
    folder = tmp_path_factory.mktemp("try")
    features = columns(observation__image=picture(96, 96), observation__state=vector(4), action=vector(4))
    made, before, after = prepare(load(write(folder / "data", features)), config(tokenizer_max_length=64))
    for part in (made, before, after):
        part.save_pretrained(folder / "policy")
    return folder / "policy"


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Episodes of nine steps."""
    original = try_out.env_config
    monkeypatch.setattr(try_out, "env_config", lambda fields: original({**fields, "episode_length": 9}))


@pytest.mark.slow
def test_it_is_told_and_filmed(
    policy: Path,
    tmp_path: Path,
    short: None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    heard: list[str] = []
    original = DeepFusionPolicy.predict_action_chunk

    def listening(self: DeepFusionPolicy, batch: dict, **kwargs: object) -> torch.Tensor:
        heard.extend(batch["task"])
        return original(self, batch, **kwargs)

    monkeypatch.setattr(DeepFusionPolicy, "predict_action_chunk", listening)
    command = ["try", f"--policy={policy}", "--task=push-v3,reach-v3", "--episodes=2", f"--output-dir={tmp_path}/out"]
    main([*command, "--instruction=shove the puck"])
    said = capsys.readouterr().out
    assert 'push-v3, told "shove the puck": 0 of 2 succeeded\nreach-v3, told "shove the puck": 0 of 2' in said
    assert set(heard) == {"shove the puck"}
    found = json.loads((tmp_path / "out/try.json").read_text())["tasks"]
    assert found["reach-v3"] == {"told": "shove the puck", "successes": [False, False]}
    for task in ("push-v3", "reach-v3"):
        for index in range(2):
            assert len(read_film(tmp_path / "out" / task / f"eval_episode_{index}.mp4")) == 9
    strip = np.asarray(Image.open(tmp_path / "out/strip.png").convert("RGB"))
    rows = np.split(strip[: len(strip) // 2 * 2], 2)
    assert all(row.std() > 10 for row in rows)
    heard.clear()
    main(["try", f"--policy={policy}", "--task=push-v3", f"--output-dir={tmp_path}/out"])
    assert set(heard) == {"Push the puck to a goal"}


@pytest.mark.medium
def test_a_policy_that_knows_no_tasks_is_to_be_given_one(policy: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"does not say what it was trained on .* choose a --task"):
        main(["try", f"--policy={policy}"])
    with pytest.raises(SystemExit, match="no Meta-World task 'juggle-v3'"):
        main(["try", f"--policy={policy}", "--task=juggle-v3", f"--output-dir={tmp_path}"])


@pytest.mark.medium
def test_the_environment_says_another_instruction() -> None:
    """To whatever task, and through LeRobot's own evaluation, since it is a field of the environment."""
    env = MetaworldFastEnv(task="push-v3", instruction="shove the puck").make("push-v3")
    assert env.task_description == "shove the puck"
    assert MetaworldFastEnv(task="push-v3").make("push-v3").task_description == "Push the puck to a goal"


@pytest.mark.parametrize("name", list(shipped_policies()))
def test_what_is_shipped_is_small_and_whole(name: str) -> None:
    """Ten MiB, loads strictly, says what it was trained on, and names no place of the machine that it is from."""
    folder = shipped_policies()[name]
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 10 * 2**20
    assert len(try_out.known_tasks(folder)) == 10
    made = DeepFusionPolicy.from_pretrained(folder)
    make_pre_post_processors(made.config, pretrained_path=str(folder))
    texts = [file.read_text() for file in folder.iterdir() if file.suffix in (".json", ".md")]
    assert not any(place in text for text in texts for place in ("/tmp/", "/work/", "/root/", "/home/"))


@pytest.mark.slow
def test_what_is_shipped_succeeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The tasks in which it never failed; digits of another machine may change one episode, and not three of four."""
    main(["try", "--task=drawer-close-v3,window-close-v3", "--episodes=2", "--seed=5000", f"--output-dir={tmp_path}"])
    found = json.loads((tmp_path / "try.json").read_text())["tasks"]
    assert sum(sum(task["successes"]) for task in found.values()) >= 3
    assert "environments it had not seen:" in capsys.readouterr().out


def test_the_command_says_where_it_lies(capsys: pytest.CaptureFixture[str]) -> None:
    main(["policy", "mt10"])
    assert (Path(capsys.readouterr().out.strip()) / "model.safetensors").is_file()
    main(["policy"])
    assert capsys.readouterr().out.startswith("mt10 ")
    with pytest.raises(SystemExit, match="no policy 'mt11'; there are mt10"):
        main(["policy", "mt11"])
