"""The policy that sees in 3D: begins as the flat one, through checkpoints, adapters and what a batch may lack."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.policies.factory import make_pre_post_processors
from safetensors.torch import save_file
from torch import Tensor

from lerobot_deepfusion import DeepFusionConfig
from lerobot_deepfusion.inputs.calibration import before_the_cameras
from lerobot_deepfusion.inputs.depth_keys import depth_key, extrinsics_key, intrinsics_key
from lerobot_deepfusion.modeling_deepfusion import DeepFusionPolicy
from lerobot_deepfusion.network.positions import build_positions
from lerobot_deepfusion.processor_deepfusion import make_deepfusion_pre_post_processors
from tests.checkpoints import write_llava
from tests.llavas import enlarge
from tests.policies import INTRINSICS, POSE, STATS, loss, make_batch, make_config

TOP, WRIST = CAMERAS = "observation.images.top", "observation.images.wrist"
SHORT = {"num_inference_steps": 1, "fusion_layers": "first_2"}  # for a compiler, to which each layer is one more
CALIBRATION = {TOP: {"intrinsics": INTRINSICS, "pose": POSE}}


def config_of(frame: str = "world", **changes: Any) -> DeepFusionConfig:
    """Two cameras, the first with depth."""
    return make_config(("images.top", "images.wrist"), position_3d=frame, **changes)


def batch_of(config: DeepFusionConfig) -> dict[str, Any]:
    return make_deepfusion_pre_post_processors(config, STATS)[0](make_batch(config))


def policy_of(config: DeepFusionConfig, learned: bool = False) -> DeepFusionPolicy:
    torch.manual_seed(0)
    policy = DeepFusionPolicy(config)
    if learned:
        enlarge(policy.model.position_3d)
    return policy


def chunk(policy: DeepFusionPolicy, batch: dict[str, Any]) -> Tensor:
    return policy.predict_action_chunk(batch, noise=torch.ones(3, policy.config.chunk_size, 3))


def test_middle_of_the_workspace() -> None:
    """A metre before the cameras with depth: of the calibration, or of the mean of poses that each frame has, which
    count first. In a camera's own frame it is known.
    """
    fixed = config_of()
    assert before_the_cameras(fixed, None) == (0.1, 0.2, -0.1)  # at 0.9 m, looking down
    moving = {extrinsics_key(TOP): {"mean": [1.0, 0, 0, 0.5, 0, 1, 0, 0.25, 0, 0, 1, 0]}}
    assert before_the_cameras(fixed, moving) == (0.5, 0.25, 1.0)
    assert before_the_cameras(config_of("camera"), moving) is None
    assert before_the_cameras(config_of(camera_calibration={TOP: {"intrinsics": INTRINSICS}}), None) is None


@pytest.mark.parametrize("center", [(0.0, 0.0), (0.0, 0.0, 600.0), (float("nan"), 0.0, 0.0)])
def test_a_centre_that_is_none(center: Any) -> None:
    with pytest.raises(ValueError, match=r"policy.workspace_center=.*expected x, y and z in metres"):
        config_of(workspace_center=center)


def test_the_centre_is_the_checkpoint_s(tmp_path: Path) -> None:
    """Cameras that were moved since training change where they are, and not where the weights count from."""
    policy = policy_of(config_of(workspace_center=(0.1, 0.2, -0.1)))
    policy.save_pretrained(tmp_path)
    moved = {TOP: {"intrinsics": INTRINSICS, "pose": [*POSE[:3], 0.4, *POSE[4:]]}}
    config = config_of(camera_calibration=moved, workspace_center=(0.1, 0.2, -0.1))
    again = DeepFusionPolicy.from_pretrained(tmp_path, config=config)
    tower: Any = again.model.position_3d
    assert tower.tower.config.centre == [0.1, 0.2, -0.1]
    other = config_of(workspace_center=(0.5, 0.2, -0.1))
    with pytest.raises(ValueError, match=r"workspace_center=\(0.5, 0.2, -0.1\) \(checkpoint: \(0.1, 0.2, -0.1\)\)"):
        DeepFusionPolicy.from_pretrained(tmp_path, config=other)


def test_begins_as_the_flat_policy(fusion: str) -> None:
    """Loss, chunk and gradients to the bit, with a random shift of pictures and points, where it goes on from one."""
    flat, space = (policy_of(config_of(frame, fusion=fusion, image_shift=0.1)) for frame in ("none", "camera"))
    tiny = space.model.perception.config
    assert not torch.equal(chunk(space, batch_of(space.config)), chunk(flat, batch_of(space.config)))  # from scratch
    space.model.position_3d = build_positions(tiny, "camera", 1, flat=True)
    batch = batch_of(space.config)
    found = {}
    for policy in (flat, space):
        value = loss(policy.train(), batch)
        value.backward()
        found[policy] = value
    assert torch.equal(found[flat], found[space])
    weights = dict(space.named_parameters())
    assert all(torch.equal(weights[name].grad, p.grad) for name, p in flat.named_parameters() if p.grad is not None)
    assert weights["model.position_3d.tower.to_tokens.weight"].grad.any()
    assert torch.equal(chunk(flat, batch), chunk(space, batch))
    assert not torch.equal(chunk(policy_of(space.config, learned=True), batch), chunk(flat, batch))


def test_points_shift_with_their_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Points that are the picture's own colours lie under them after the shift, too."""
    policy = policy_of(config_of("camera", image_shift=0.2)).train()
    seen: dict[str, Tensor] = {}
    monkeypatch.setattr(policy.model, "prefill", lambda pixels, *_, **kw: seen.update(kw, pixels=pixels) or 1 / 0)
    same = torch.rand(3, 2, 4, 96, 96)
    monkeypatch.setattr("lerobot_deepfusion.modeling_deepfusion.stack_points", lambda *_: same)
    batch = batch_of(policy.config)
    for camera, index in ((TOP, 0), (WRIST, 1)):
        batch[camera] = same[:, index, :3]
        policy.config.input_features[camera].shape = (3, 96, 96)
    batch.pop(depth_key(TOP))
    with pytest.raises(ZeroDivisionError):
        policy.forward(batch)
    pictures = seen["pixels"] * policy.image_std + policy.image_mean
    assert torch.allclose(pictures, seen["points"][:, :, :3], atol=1e-6)
    assert not torch.equal(seen["points"], same)


def test_no_depth_is_flat() -> None:
    """What was learned counts for nothing where no point is: none measured, or out of the range."""
    space = policy_of(config_of(), learned=True)
    batch = batch_of(space.config)
    flat = policy_of(config_of("none"))
    flat.load_state_dict({k: v for k, v in space.state_dict().items() if "position_3d" not in k})
    expected = chunk(flat, batch)
    for nothing in (0.0, float("nan"), float("inf"), 80_000.0, -1.0):
        batch[depth_key(TOP)] = torch.full((3, 1, 64, 80), nothing)
        assert torch.equal(chunk(space, batch), expected)


@pytest.mark.parametrize("dtype", [torch.uint16, torch.int32, torch.float32])
def test_whole_millimetres_are_the_same_in_any_type(dtype: torch.dtype) -> None:
    space = policy_of(config_of(), learned=True)
    batch = batch_of(space.config)
    batch[depth_key(TOP)] = batch[depth_key(TOP)].round()
    expected = chunk(space, batch)
    batch[depth_key(TOP)] = batch[depth_key(TOP)].to(dtype)
    assert torch.equal(chunk(space, batch), expected)


def test_calibration_of_the_frame_comes_first() -> None:
    """Equal to the config's where it says the same; another place moves the chunk in the robot's frame alone."""
    other = [*POSE[:3], 0.5, *POSE[4:]]
    for frame in ("world", "camera"):
        space = policy_of(config_of(frame), learned=True)
        batch = batch_of(space.config)
        expected = chunk(space, batch)
        batch |= {intrinsics_key(TOP): torch.tensor(INTRINSICS).expand(3, 4)}
        batch |= {extrinsics_key(TOP): torch.tensor(POSE).expand(3, 12)}
        assert torch.equal(chunk(space, batch), expected)
        batch |= {extrinsics_key(TOP): torch.tensor(other).expand(3, 12)}
        assert torch.equal(chunk(space, batch), expected) == (frame == "camera")
        batch |= {intrinsics_key(TOP): torch.tensor([0.5, 0.5, 0.5, 0.5]).expand(3, 4)}
        assert not torch.allclose(chunk(space, batch), expected)


def test_what_a_batch_lacks_is_named() -> None:
    space = policy_of(config_of())
    batch = batch_of(space.config)
    without = {key: value for key, value in batch.items() if key != depth_key(TOP)}
    with pytest.raises(ValueError, match=rf"{depth_key(TOP)} is not in the batch.*use_depth.*position_3d=none"):
        chunk(space, without)
    space.config.camera_calibration = {TOP: {"intrinsics": INTRINSICS}}
    with pytest.raises(ValueError, match=rf"{TOP} has depth and no pose.*{extrinsics_key(TOP)}.*position_3d=camera"):
        chunk(space, batch)
    space.config.camera_calibration = None
    with pytest.raises(ValueError, match=rf"no intrinsics.*{intrinsics_key(TOP)}"):
        chunk(space, batch)
    with pytest.raises(ValueError, match=r"has the shape \(3,\); expected \[3, 4\]"):
        chunk(space, {**batch, intrinsics_key(TOP): torch.ones(3)})
    with pytest.raises(ValueError, match=r"top_depth has 0\.\d+ in the middle of its values.*millimetres"):
        make_deepfusion_pre_post_processors(space.config, STATS)[0](
            {**make_batch(space.config), depth_key(TOP): torch.rand(3, 1, 64, 80)}
        )


def test_configs_that_cannot_be(caplog: pytest.LogCaptureFixture) -> None:
    for changes, message in (
        ({"position_3d": "depth"}, "choose one of none, camera, world"),
        ({"position_3d": "world", "knowledge_insulation": True}, "nothing would train it"),
        ({"depth_range": (2.0, 1.0)}, "the nearest and the farthest distance in metres"),
        ({"depth_range": (20.0, 5000.0)}, "the nearest and the farthest distance in metres"),
    ):
        with pytest.raises(ValueError, match=message):
            make_config(**changes)
    config = make_config(position_3d="world")
    del config.input_features["observation.image_depth"]
    with pytest.raises(ValueError, match=r"none of the cameras .* has depth.*observation\.image_depth"):
        config.validate_features()
    config = config_of(camera_calibration={"observation.images.side": {}})
    with pytest.raises(ValueError, match="which is no camera of this policy"):
        config.validate_features()
    config = config_of()
    config.input_features["observation.images.side_depth"] = PolicyFeature(type=FeatureType.VISUAL, shape=(1, 8, 8))
    with pytest.raises(ValueError, match=r"images\.side_depth has the shape \(1, 8, 8\); expected \(3, height"):
        config.validate_features()


def features_of(calibration: dict[str, Any] | None) -> dict[str, Any]:
    """Of a data set with depth, as LeRobot describes it."""
    info = {"is_depth_map": True, "depth_unit": "mm", **({"camera": calibration} if calibration else {})}
    picture = {"dtype": "image", "names": ["height", "width", "channels"]}
    return {
        TOP: {**picture, "shape": (64, 80, 3)},
        WRIST: {**picture, "shape": (64, 80, 3)},
        depth_key(TOP): {**picture, "shape": (64, 80, 1), "info": info},
    }


def test_the_data_set_says_where_its_cameras_are(caplog: pytest.LogCaptureFixture) -> None:
    config = config_of(camera_calibration=None)
    config.set_dataset_feature_metadata(features_of(CALIBRATION[TOP]))
    assert config.camera_calibration == CALIBRATION
    config = config_of("camera", camera_calibration=None)
    config.set_dataset_feature_metadata(features_of({"intrinsics": INTRINSICS}))
    config = config_of(camera_calibration={TOP: {"intrinsics": [0.8, 1.1, 0.5, 0.5]}})
    with pytest.raises(ValueError, match=r"intrinsics \[0\.8.*and the data set \[0\.9.*camera_calibration=null"):
        config.set_dataset_feature_metadata(features_of(CALIBRATION[TOP]))
    config = config_of(camera_calibration=None)
    with pytest.raises(ValueError, match=r"has depth and no pose"):
        config.set_dataset_feature_metadata(features_of({"intrinsics": INTRINSICS}))
    config.set_dataset_feature_metadata({**features_of({"intrinsics": INTRINSICS}), extrinsics_key(TOP): {}})
    config = config_of("none")
    config.input_features[depth_key(TOP)] = PolicyFeature(type=FeatureType.VISUAL, shape=(1, 64, 80))
    with caplog.at_level("INFO"):
        config.set_dataset_feature_metadata(features_of(None))
    assert "sees colour pictures: it takes nothing of ['observation.images.top_depth']" in caplog.text
    config.validate_features()
    assert config.cameras == [TOP, WRIST]


def test_saved_and_loaded(tmp_path: Path) -> None:
    """Everything that was learned, with the cameras; and another frame is another network."""
    space = policy_of(config_of(), learned=True)
    batch = batch_of(space.config)
    for part in (space, *make_deepfusion_pre_post_processors(space.config, STATS)):
        part.save_pretrained(tmp_path)
    loaded = DeepFusionPolicy.from_pretrained(tmp_path)
    assert loaded.config.camera_calibration == CALIBRATION
    assert torch.equal(chunk(loaded, batch), chunk(space, batch))
    pre, _ = make_pre_post_processors(loaded.config, pretrained_path=str(tmp_path))
    with pytest.raises(ValueError, match="expected millimetres"):
        pre({**make_batch(loaded.config), depth_key(TOP): torch.rand(3, 1, 64, 80)})
    for frame in ("camera", "none"):
        with pytest.raises(ValueError, match="position_3d"):
            DeepFusionPolicy.from_pretrained(tmp_path, config=config_of(frame))


def test_a_flat_checkpoint_is_trained_on_in_space(tmp_path: Path) -> None:
    """It starts as the flat policy to the bit; to act it stays flat, and nothing else may be missing."""
    flat = policy_of(config_of("none"))
    for part in (flat, *make_deepfusion_pre_post_processors(flat.config, STATS)):
        part.save_pretrained(tmp_path)
    config = config_of("camera")
    with pytest.raises(ValueError, match=r"position_3d='camera' \(checkpoint: 'none'\)"):
        DeepFusionPolicy.from_pretrained(tmp_path, config=config)
    batch = batch_of(config)
    space = train_on(tmp_path, config)
    assert torch.equal(chunk(space, batch), chunk(flat, batch))
    assert torch.equal(loss(space.train(), batch), loss(flat.train(), batch))
    learned = policy_of(config, learned=True)
    learned.save_pretrained(tmp_path / "space")
    for part in make_deepfusion_pre_post_processors(learned.config, STATS):
        part.save_pretrained(tmp_path / "space")
    weights = {key: value for key, value in learned.state_dict().items() if "position_3d" not in key}
    save_file(weights, tmp_path / "space/model.safetensors")
    with pytest.raises(RuntimeError, match=r"missing: model\.position_3d\.tower\.each\.0\.bias"):
        DeepFusionPolicy.from_pretrained(tmp_path / "space")


def train_on(folder: Path, config: DeepFusionConfig) -> DeepFusionPolicy:
    """As lerobot-train makes it, without a data set's own checks."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("adopt_dataset", "check_tasks_of"):
            patch.setattr(f"lerobot_deepfusion.storage.policy_files.{name}", lambda *_: None)
        for name in ("adopt_names", "check_dataset"):
            patch.setattr(f"lerobot_deepfusion.modeling_deepfusion.{name}", lambda *_: None)
        patch.setattr("lerobot_deepfusion.inputs.action_windows.read_actions_alone", lambda *_: None)
        return DeepFusionPolicy.from_pretrained(folder, config=config, dataset_meta=SimpleNamespace())


@pytest.mark.parametrize("make", ["clip_llama", "onevision"])
def test_a_pretrained_llava_sees_in_space(make: str, tmp_path: Path) -> None:
    """Frozen too: the positions alone of what is before the expert are trained, through checkpointed layers alike."""
    vlm = {"vlm_path": str(write_llava(tmp_path / "llava", make)), "tokenizer_max_length": 64}
    found = []
    for checkpointing in (False, True):
        config = config_of("world", train_expert_only=True, gradient_checkpointing=checkpointing, **vlm)
        space = policy_of(config, learned=True).train()
        batch = batch_of(config)
        loss(space, batch).backward()
        # Its gradient comes through the frozen text model, and not through the tower.
        perception = space.model.perception
        assert perception.language_model.is_gradient_checkpointing == checkpointing
        assert not perception.vision_tower.is_gradient_checkpointing
        found.append({name: p.grad for name, p in space.named_parameters() if p.grad is not None})
    assert all(name.startswith(("model.position_3d.", "model.expert.")) for name in found[0])
    assert found[0]["model.position_3d.mlp.0.weight"].any()
    assert all(torch.allclose(found[0][name], grad, atol=1e-6) for name, grad in found[1].items())
    assert "position_3d" in space._get_default_peft_targets()["modules_to_save"]
    half = policy_of(config_of("world", dtype="bfloat16", **vlm), learned=True)
    assert chunk(half, batch).isfinite().all()
    flat = policy_of(config_of("none", **vlm))
    fresh = policy_of(config_of("world", **vlm))
    assert torch.equal(chunk(flat, batch), chunk(fresh, batch))


def test_a_camera_that_the_data_set_lacks_takes_its_depth_along() -> None:
    """Its slot stays empty, and is asked for no depth."""
    config = config_of()
    config.leave_empty([TOP])
    assert config.cameras == ["observation.images.empty_camera_0", WRIST]
    assert config.depth_cameras == []
    assert depth_key(TOP) not in config.input_features
    assert config.camera_calibration is None
    both = config_of(camera_calibration={TOP: CALIBRATION[TOP], WRIST: CALIBRATION[TOP]})
    both.input_features[depth_key(WRIST)] = both.input_features[depth_key(TOP)]
    both.leave_empty([TOP])
    both.validate_features()
    assert both.depth_cameras == list(both.camera_calibration) == [WRIST]


def test_a_camera_that_a_sample_lacks_is_not_looked_at() -> None:
    """Its tokens are masked, depth and all; the other samples of the batch are as they were."""
    space = policy_of(config_of(), learned=True)
    batch = batch_of(space.config)
    expected = chunk(space, batch)
    batch[f"{TOP}_padding_mask"] = torch.tensor([True, False, True])
    found = chunk(space, batch)
    assert torch.allclose(found[[0, 2]], expected[[0, 2]], atol=1e-5)
    moved = {**batch, depth_key(TOP): batch[depth_key(TOP)] * torch.tensor([1, 0.5, 1]).view(3, 1, 1, 1)}
    assert torch.equal(chunk(space, moved), found)


def test_a_base_whose_cameras_with_depth_are_all_absent_does_not_train() -> None:
    """Nothing would train its positions; it says so, and what to do."""
    space = policy_of(config_of(), learned=True)
    batch = {key: value for key, value in batch_of(space.config).items() if not key.startswith(TOP)}
    with pytest.raises(
        ValueError, match=r"none of the cameras \['observation\.images\.empty_camera_0', .* has depth"
    ):
        loss(space.train(), batch)


# --- points alone -----------------------------------------------------------------------------------------


def cloud_of(**changes: Any) -> DeepFusionConfig:
    """One camera, with depth."""
    return make_config(("images.top",), position_3d="cloud", **changes)


def test_a_cloud_has_no_tower_for_pictures(tmp_path: Path) -> None:
    """No such weights, and its tokens are those of its points alone; a checkpoint acts to the bit."""
    policy = policy_of(cloud_of())
    names = [name for name, _ in policy.named_parameters()]
    assert not [name for name in names if "vision_tower" in name or "projector" in name]
    batch = batch_of(policy.config)
    loss(policy.train(), batch).backward()
    assert all(p.grad is not None and p.grad.any() for p in policy.model.position_3d.parameters())
    world = policy_of(make_config(("images.top",), position_3d="world"))
    world.model.load_state_dict(policy.model.state_dict(), strict=False)
    for weight in world.model.perception.multi_modal_projector.parameters():
        torch.nn.init.zeros_(weight)
    assert torch.allclose(chunk(world, batch), chunk(policy, batch), atol=1e-6)
    policy.save_pretrained(tmp_path)
    assert torch.equal(chunk(DeepFusionPolicy.from_pretrained(tmp_path), batch), chunk(policy, batch))


def test_a_cloud_without_depth_is_blind() -> None:
    """A covered sensor leaves nothing of the picture, and colours count where there is depth."""
    policy = policy_of(cloud_of())
    batch = batch_of(policy.config)
    other = {**batch, TOP: batch[TOP].flip(0)}
    assert not torch.equal(chunk(policy, batch), chunk(policy, other))
    covered = [{**some, depth_key(TOP): torch.zeros_like(batch[depth_key(TOP)])} for some in (batch, other)]
    assert torch.equal(*(chunk(policy, some) for some in covered))


def test_what_a_cloud_can_not_be(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"sees points alone, and the cameras .*wrist.* have no depth"):
        config_of("cloud").validate_features()
    with pytest.raises(ValueError, match=r"leaves the pictures' tokens out.* it is for policy.vlm_path=tiny"):
        DeepFusionPolicy(cloud_of(vlm_path=str(write_llava(tmp_path / "llava", "clip_llama"))))
    flat = policy_of(make_config(("images.top",)))
    flat.save_pretrained(tmp_path / "flat")
    with pytest.raises(ValueError, match=r"position_3d='cloud' \(checkpoint: 'none'\)"):
        DeepFusionPolicy.from_pretrained(tmp_path / "flat", config=cloud_of(), dataset_meta=SimpleNamespace())


@pytest.mark.medium
@pytest.mark.parametrize("seen", ["cloud", "onevision"])
def test_compiled_as_lerobot_compiles(seen: str, tmp_path: Path) -> None:
    """`predict_action_chunk` as a whole, points and all, traced once: another depth goes through the same graph.

    `aot_eager` has all of the compiler but its kernels. Worst error: none.
    """
    vlm = {"vlm_path": str(write_llava(tmp_path, seen)), "tokenizer_max_length": 64} if seen == "onevision" else {}
    config = cloud_of(**SHORT) if seen == "cloud" else config_of("world", **SHORT, **vlm)
    policy = policy_of(config, learned=True).eval()
    batch = batch_of(config)
    near = {**batch, depth_key(TOP): batch[depth_key(TOP)] / 2}
    expected = [chunk(policy, some) for some in (batch, near)]
    assert (expected[0] - expected[1]).abs().max() > 1e-3
    torch._dynamo.reset()
    policy.predict_action_chunk = torch.compile(policy.predict_action_chunk, backend="aot_eager")
    compiled = [chunk(policy, batch)]
    with torch._dynamo.config.patch(error_on_recompile=True):
        compiled.append(chunk(policy, near))
    assert all((a - b).abs().max() < 1e-5 for a, b in zip(compiled, expected, strict=True))
