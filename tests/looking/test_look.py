"""`deepfusion look`: hiding what matters moves the chunk, and the command writes what it says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rerun.recording import load_recording

import tests.policies as policies
from lerobot_deepfusion.cli import main
from lerobot_deepfusion.inputs.depth_keys import depth_key
from lerobot_deepfusion.looking.hiding import Hider, faithfulness, occlusion
from lerobot_deepfusion.looking.picture_cells import coarse_grid
from tests.llavas import enlarge
from tests.small_data import columns, load, picture, prepare, vector, write
from tests.small_data import config as small_config

CAMERA = "observation.image"
LLAVA = Path(__file__).parents[1] / "contract/0.1/llava/pretrained_model"


def hider_of(**changes) -> Hider:
    """Of a policy with large random weights, and its first observation."""
    policy, batch, _ = policies.make(**changes)
    enlarge(policy, 2.0)
    one = {key: value[:1] for key, value in batch.items() if isinstance(value, torch.Tensor | list)}
    return Hider(
        policy.eval(), one, torch.randn(1, 6, 3, generator=torch.Generator().manual_seed(0)), coarse_grid(96)
    )


@pytest.mark.medium
def test_what_is_hidden_moves_the_chunk() -> None:
    hider = hider_of()
    [visible] = hider.visible().values()
    rows, columns_ = visible.nonzero().T
    some = torch.zeros_like(visible)
    some[rows[3], columns_[3]] = True
    nothing, alone, everything = hider.moved([{}, {CAMERA: some}, {CAMERA: visible}]).mean(1).tolist()
    assert nothing == pytest.approx(0, abs=1e-5)  # a batch of three against one
    assert 1e-4 < alone < everything
    assert hider.moved([{CAMERA: some}])[0].mean().item() == pytest.approx(alone, rel=1e-2)
    worth = occlusion(hider)[CAMERA]
    assert worth.shape == (6, 12, 12)
    assert worth[:, rows[3], columns_[3]].mean().item() == pytest.approx(alone, rel=1e-2)
    assert (worth > 0).any(0).sum() <= visible.sum()
    assert not worth[:, ~visible].any()
    moved = faithfulness(hider, {CAMERA: worth.mean(0)}, 10)
    assert moved["most"] > 2 * moved["least"]
    backwards = faithfulness(hider, {CAMERA: -worth.mean(0)}, 10)
    assert (backwards["most"], backwards["least"]) == pytest.approx((moved["least"], moved["most"]), rel=1e-4)


@pytest.mark.medium
def test_depth_is_hidden_with_the_picture() -> None:
    """Where points are all that a policy sees, hiding the colours alone would leave it the shapes."""
    hider = hider_of(position_3d="cloud")
    [visible] = hider.visible().values()
    assert hider.moved([{CAMERA: visible}]).mean() > 1e-3
    without_depth = {**hider.batch, depth_key(CAMERA): torch.zeros_like(hider.batch[depth_key(CAMERA)])}
    blind = Hider(hider.policy, without_depth, hider.noise, hider.grid)
    torch.testing.assert_close(hider._predict([{CAMERA: visible}]), blind._predict([{}]))


def checkpoint(folder: Path) -> tuple[Path, Path]:
    """A policy that was never trained, and data of its robot."""
    names = ["x", "y", "z", "hand"]
    features = columns(
        **{"observation__image": picture(96, 96), "observation__state": vector(4), "action": vector(4, names=names)}
    )
    data = load(write(folder / "data", features))
    policy, before, after = prepare(data, small_config())
    for part in (policy, before, after):
        part.save_pretrained(folder / "policy")
    return folder / "policy", folder / "data"


@pytest.mark.slow
def test_the_command_on_data_and_in_the_simulator(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    policy, data = checkpoint(tmp_path)
    main(["look", str(policy), "--dataset", str(data), "--episode=1", "--frames=3", f"--output-dir={tmp_path}/a"])
    said = capfd.readouterr().out
    assert f"episode 1 of {data}, frames 0 to 11: heat by occlusion" in said
    assert "tokens of this vision tower have no places" in said
    env = ["--env.type=metaworld_fast", "--env.task=push-v3", "--env.episode_length=7"]
    main(["look", str(policy), *env, "--seed=3", "--frames=2", f"--output-dir={tmp_path}/b"])
    assert "an episode of push-v3, which failed" in capfd.readouterr().out
    for folder, steps in (("a", [0, 6, 11]), ("b", [0, 3])):
        found = json.loads((tmp_path / folder / "look.json").read_text())
        assert [frame["frame"] for frame in found["frames"]] == steps
        assert sum(found["shares"].values()) == pytest.approx(1, abs=1e-5)
        assert found["by"] == "occlusion"
        for name in ("strip.png", "layers.png"):
            assert np.asarray(Image.open(tmp_path / folder / name).convert("RGB")).std() > 10
        assert (tmp_path / folder / "look.mp4").stat().st_size > 1000
        entities = {str(path) for path in load_recording(tmp_path / folder / "look.rrd").schema().entity_paths()}
        assert {"/image/picture", "/image/heat", "/state", "/action", "/chunk"} <= entities
    recorded = found["frames"][0]
    assert len(recorded["chunk"]) == 6
    main(["card", str(policy), f"--look={tmp_path}/b"])
    card = (policy / "README.md").read_text()
    assert "![What it looks at](look.png)" in card
    assert (
        f"Heat, over an episode of push-v3, is how far the chunk moves when a cell is hidden: {found['said']}."
        in card
    )
    assert (policy / "look.png").read_bytes() == (tmp_path / "b/strip.png").read_bytes()
    assert [word["word"] for word in recorded["words"]] == ["Push", "the", "puck", "to", "a", "goal"]


@pytest.mark.medium
def test_attention_of_two_cameras(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command on a LLaVA whose tokens have places."""
    shots = {f"observation__images__{name}": picture() for name in ("front", "wrist")}
    data = write(tmp_path / "data", columns(observation__image=None, **shots))
    main(["look", str(LLAVA), "--dataset", str(data), "--frames=2", f"--output-dir={tmp_path}/out"])
    assert "heat by attention" in capsys.readouterr().out
    found = json.loads((tmp_path / "out/look.json").read_text())
    assert {"observation.images.front", "observation.images.wrist", "text", "state", "own"} == set(found["shares"])
    for name in ("strip", "layers", "heads"):
        assert np.asarray(Image.open(tmp_path / f"out/{name}.png").convert("RGB")).std() > 10
    entities = {str(path) for path in load_recording(tmp_path / "out/look.rrd").schema().entity_paths()}
    assert {"/front/heat", "/wrist/heat"} <= entities


@pytest.mark.parametrize(
    ("options", "mend"),
    [
        ([], "give either --dataset or --env.type"),
        (["--dataset=x", "--env.type=pusht"], "give either --dataset or --env.type"),
        (["--env.type=nowhere"], "nowhere"),
        (["--nonsense"], "expected --env.<field>=<value>"),
    ],
)
def test_a_wrong_option_gets_a_line(
    options: list[str], mend: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["look", str(tmp_path), *options])
    assert mend in capsys.readouterr().err + str(stopped.value)
