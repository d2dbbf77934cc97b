"""Data sets with depth: flat at once, in space with their calibration, by lerobot-train and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.transforms import ImageTransformConfig, ImageTransforms, ImageTransformsConfig

from lerobot_deepfusion.cli import main
from lerobot_deepfusion.inputs.depth_keys import depth_key, extrinsics_key, intrinsics_key
from lerobot_deepfusion.modeling_deepfusion import DeepFusionPolicy
from tests.commands import TINY_YAML, run
from tests.small_data import columns, config, first_loss, load, picture, prepare, vector, write

CAMERA = "observation.image"
INTRINSICS = [0.9, 1.2, 0.5, 0.5]
POSE = [0.0, -1, 0, 0.1, -1, 0, 0, 0.2, 0, 0, -1, 0.9]


def depth(**camera: Any) -> dict[str, Any]:
    return {**picture(channels=1), "info": {"is_depth_map": True, **({"camera": camera} if camera else {})}}


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    features = columns(observation__image_depth=depth(intrinsics=INTRINSICS, pose=POSE))
    return write(tmp_path_factory.mktemp("calibrated") / "data", features)


@pytest.fixture(scope="module")
def moving(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the camera is, is told frame by frame."""
    features = columns(observation__image_depth=depth())
    features |= {intrinsics_key(CAMERA): vector(4), extrinsics_key(CAMERA): vector(12)}
    told = {intrinsics_key(CAMERA): INTRINSICS, extrinsics_key(CAMERA): POSE}
    return write(tmp_path_factory.mktemp("moving") / "data", features, value=lambda key, *_: told.get(key))


def test_calibration_outlives_the_data_set(calibrated: Path, moving: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It comes into the policy's config, and is what the frames of the other data set say: one loss of one noise."""
    losses = []
    for root in (calibrated, moving):
        options = config(position_3d="world")
        torch.manual_seed(0)
        with caplog.at_level("INFO"):
            losses.append(first_loss(load(root), options))
        assert options.camera_calibration == (
            {CAMERA: {"intrinsics": INTRINSICS, "pose": POSE}} if root == calibrated else None
        )
        assert options.depth_cameras == options.cameras == [CAMERA]
        assert set(options.input_features) == {CAMERA, depth_key(CAMERA), "observation.state"}
    assert losses[0] == losses[1]
    assert "takes nothing of" not in caplog.text


def test_flat_at_once(calibrated: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Depth is left aside, and that is said; the loss is that of a policy in space which is too near to any point."""
    losses = []
    for options in ({}, {"position_3d": "camera", "depth_range": (900.0, 1000.0)}, {"position_3d": "camera"}):
        torch.manual_seed(0)
        with caplog.at_level("INFO"):
            losses.append(first_loss(load(calibrated), config(**options)))
    assert losses[0] == losses[1] != losses[2]
    assert caplog.text.count("takes nothing of ['observation.image_depth']") == 1


def test_what_is_not_known_stops(tmp_path: Path) -> None:
    for camera, frame, message in (
        ({}, "camera", "has depth and no intrinsics"),
        ({"intrinsics": INTRINSICS}, "world", "has depth and no pose"),
        ({"intrinsics": [600.0, 600, 320, 240], "pose": POSE}, "world", "are in pixels"),
    ):
        root = write(tmp_path / f"{len(camera)}{frame}", columns(observation__image_depth=depth(**camera)))
        with pytest.raises(ValueError, match=message):
            prepare(load(root), config(position_3d=frame))
    flat = write(tmp_path / "flat")
    with pytest.raises(ValueError, match=r"none of the cameras .* has depth"):
        prepare(load(flat), config(position_3d="camera"))


def test_transforms_that_tear_picture_and_depth_apart_stop(calibrated: Path) -> None:
    """LeRobot's own defaults have one; without it they are fine, and a flat policy takes them all."""
    data = load(calibrated)
    chosen = ImageTransformsConfig(enable=True)
    data.set_image_transforms(ImageTransforms(chosen))
    with pytest.raises(ValueError, match=r"image_transforms has \['affine'\].*--policy\.image_shift"):
        prepare(data, config(position_3d="world"))
    prepare(data, config())
    del chosen.tfs["affine"]
    data.set_image_transforms(ImageTransforms(chosen))
    prepare(data, config(position_3d="world"))
    chosen.tfs["mine"] = ImageTransformConfig(weight=1.0, type="RandomCrop", kwargs={"size": (40, 40)})
    data.set_image_transforms(ImageTransforms(chosen))
    with pytest.raises(ValueError, match=r"image_transforms has \['mine'\]"):
        prepare(data, config(position_3d="world"))


@pytest.mark.medium
def test_metres_stop(calibrated: Path) -> None:
    """--dataset.depth_output_unit=m."""
    steps = load(calibrated).delta_timestamps
    data = LeRobotDataset("local/small", root=calibrated, depth_output_unit="m", delta_timestamps=steps)
    with pytest.raises(ValueError, match=r"image_depth has .* expected millimetres.*--dataset\.depth_output_unit=m"):
        first_loss(data, config(position_3d="world"))


@pytest.mark.slow
def test_by_lerobot_train(calibrated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Train in space, resume, streamed; from a flat base; LoRA on it, with the positions trained and saved whole."""
    data = ["--dataset.repo_id=local/small", f"--dataset.root={calibrated}", "--num_workers=0", "--batch_size=4"]
    data += ["--policy.push_to_hub=false", "--save_freq=1", "--log_freq=1"]
    fresh = [f"--config_path={TINY_YAML}", *data, "--steps=1"]
    run("lerobot-train", *fresh, "--policy.position_3d=world", f"--output_dir={tmp_path}/space")
    space = tmp_path / "space/checkpoints/last/pretrained_model"
    run("lerobot-train", f"--config_path={space}/train_config.json", "--resume=true", "--steps=3")
    first, policy = (
        DeepFusionPolicy.from_pretrained(space.parents[1] / step / space.name) for step in ("000001", "last")
    )
    before, after = (found.model.position_3d.tower.to_tokens.weight for found in (first, policy))
    assert not torch.equal(before, after)
    assert policy.config.camera_calibration[CAMERA]["pose"] == POSE
    main(["info", str(space)])
    assert "observation.image: 96 x 96 pixels, 8 tokens, depth in the frame of the robot" in capsys.readouterr().out

    streamed = ["--policy.position_3d=world", "--dataset.streaming=true", "--num_workers=1", "--steps=2"]
    run("lerobot-train", *fresh[:-1], *streamed, f"--output_dir={tmp_path}/streamed")
    first, streaming = (
        DeepFusionPolicy.from_pretrained(tmp_path / "streamed/checkpoints" / step / space.name)
        for step in ("000001", "000002")
    )
    before, after = (found.model.position_3d.tower.to_tokens.weight for found in (first, streaming))
    assert not torch.equal(before, after)
    assert streaming.config.camera_calibration == policy.config.camera_calibration
    run("lerobot-train", *fresh, f"--output_dir={tmp_path}/flat")
    flat = tmp_path / "flat/checkpoints/last/pretrained_model"
    fields = json.loads((flat / "config.json").read_text())
    assert depth_key(CAMERA) not in fields["input_features"]
    tune = [f"--policy.path={flat}", *data, "--policy.position_3d=camera", "--policy.input_features=null"]
    run("lerobot-train", *tune, "--steps=2", f"--output_dir={tmp_path}/tuned")
    tuned = DeepFusionPolicy.from_pretrained(tmp_path / "tuned/checkpoints/last/pretrained_model")
    assert tuned.config.depth_cameras == [CAMERA]
    assert tuned.model.position_3d.tower.to_tokens.weight.any()
    lora = [f"--policy.path={space}", *data, "--peft.method_type=LORA", "--peft.r=4", "--steps=2"]
    run("lerobot-train", *lora, f"--output_dir={tmp_path}/lora")
    adapters = tmp_path / "lora/checkpoints/last/pretrained_model"
    assert set(json.loads((adapters / "adapter_config.json").read_text())["modules_to_save"]) == {
        "expert",
        "position_3d",
    }
