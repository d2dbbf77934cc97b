"""One place for each setting, and joints and cameras by their names: loading, fine-tuning and changing a policy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lerobot.configs import FeatureType, NormalizationMode, PolicyFeature, PreTrainedConfig
from lerobot.policies.rtc.configuration_rtc import RTCConfig

from lerobot_deepfusion import DeepFusionConfig
from lerobot_deepfusion.inputs.identity import check_robot_names, slots
from lerobot_deepfusion.modeling_deepfusion import DeepFusionPolicy
from lerobot_deepfusion.storage.trained_settings import RUN_TIME
from tests import small_data
from tests.policies import make
from tests.small_data import columns, first_loss, load, picture, prepare, save, vector, write

STATE, ACTION = "observation.state", "action"


def given(folder: Path, **changes: Any) -> DeepFusionConfig:
    """A checkpoint's config with options of the command line."""
    config = PreTrainedConfig.from_pretrained(folder)
    for name, value in changes.items():
        setattr(config, name, value)
    return config


# --- acting: what was trained comes from the checkpoint ---------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a data set with two cameras and names."""
    root = tmp_path_factory.mktemp("trained")
    features = columns(
        observation__image=None, observation__images__top=picture(), observation__images__wrist=picture()
    )
    return save(root / "policy", *prepare(load(write(root / "data", features)), small_data.config()))


FOUR = {ACTION: PolicyFeature(FeatureType.ACTION, (4,))}


@pytest.mark.medium
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"chunk_size": 40}, r"chunk_size=40 \(checkpoint: 6\)"),
        ({"chunk_size": 3}, r"chunk_size=3 \(checkpoint: 6\)"),
        ({"output_features": FOUR}, r"action=\[4\] \(checkpoint: \[3\]\)"),
        ({"state_feature_names": list("abcd")}, "state names="),
        ({"action_feature_names": ["joint1", "joint0", "joint2"]}, "action names="),
        (
            {"normalization_mapping": {"STATE": NormalizationMode.MIN_MAX, "ACTION": NormalizationMode.MEAN_STD}},
            "normalization_mapping=.*MIN_MAX",
        ),
        ({"empty_cameras": 1}, "cameras=.*empty_camera_0"),
    ],
)
def test_acting_takes_what_was_trained(trained: Path, change: dict, said: str) -> None:
    for where in ({}, {"revision": "v1"}):
        with pytest.raises(
            ValueError, match=f"is not the one that the weights of .* were trained with: .*{said}"
        ) as caught:
            DeepFusionPolicy.from_pretrained(trained, config=given(trained, **change), **where)
        assert "revision" in str(caught.value)
    assert "at revision 'v1'" in str(caught.value)
    assert "'main'" in str(caught.value)


@pytest.mark.medium
@pytest.mark.parametrize("change", [{"n_action_steps": 6}, {"num_inference_steps": 1}, {"dtype": "bfloat16"}])
def test_acting_takes_other_run_time_settings(trained: Path, change: dict) -> None:
    policy = DeepFusionPolicy.from_pretrained(trained, config=given(trained, **change))
    assert {name: getattr(policy.config, name) for name in change} == change


def test_cameras_keep_the_slots_that_they_were_trained_in(trained: Path) -> None:
    """However a config orders them."""
    config = given(trained)
    config.input_features = dict(reversed(config.input_features.items()))
    assert config.cameras == ["observation.images.wrist", "observation.images.top"]
    policy = DeepFusionPolicy.from_pretrained(trained, config=config)
    assert policy.config.cameras == ["observation.images.top", "observation.images.wrist"]


@pytest.mark.parametrize(
    ("cameras", "expected"),
    [
        ("top wrist", "top wrist"),
        ("wrist top", "top wrist"),
        ("wrist side", "side wrist"),
        ("side wrist", "side wrist"),
        ("top", "top"),
        ("wrist", "wrist"),
        ("a b", "a b"),
        ("a wrist b top", "top wrist a b"),
    ],
)
def test_slots(cameras: str, expected: str) -> None:
    assert slots(cameras.split(), ["top", "wrist"]) == expected.split()


def test_names_of_the_data_set_are_kept(trained: Path) -> None:
    config = given(trained)
    assert config.state_feature_names == ["joint0", "joint1", "joint2", "joint3"]
    assert config.action_feature_names == ["joint0", "joint1", "joint2"]


# --- fine-tuning ------------------------------------------------------------------------------------------------

BASE = {"observation__state": vector(4, names="abcd"), "action": vector(3, names="xyz")}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("base")
    return save(root / "policy", *prepare(load(write(root / "data", columns(**BASE))), small_data.config()))


def tune(base: Path, folder: Path, **changes: Any) -> DeepFusionConfig:
    """Fine-tune on a data set whose columns differ from the base's in some way."""
    options = {name: changes.pop(name) for name in list(changes) if name in DeepFusionConfig.__dataclass_fields__}
    config = given(base, pretrained_path=base, **options)
    assert first_loss(load(write(folder / "data", columns(**{**BASE, **changes}))), config) < 100
    return config


@pytest.mark.medium
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"observation__state": vector(4, names="abdc")}, "observation.state the same names in another order"),
        ({"observation__state": vector(4, names="efgh")}, "observation.state other names"),
        ({"observation__state": vector(4, names="abce")}, "observation.state other names"),
        ({"action": vector(3, names="zyx")}, "action the same names in another order"),
        ({"action": vector(3, names="uvw")}, "action other names"),
        ({"action": vector(5, names="yxzuv")}, "action other names"),
        ({"observation__state": vector(3, names="bcd")}, "observation.state other names"),
    ],
)
def test_joints_of_other_names_or_order_are_turned_away(base: Path, tmp_path: Path, changes: dict, said: str) -> None:
    """Before the first step, with both lists; a size that agrees is no reason, nor is one that doesn't."""
    with pytest.raises(ValueError, match=f"the data set local/small has for {said}") as caught:
        tune(base, tmp_path, **changes)
    assert "--policy.state_feature_names=null" in str(caught.value)


@pytest.mark.medium
def test_another_robot_is_taken_where_it_is_said(base: Path, tmp_path: Path) -> None:
    """Its names then take the place of the base's."""
    another = {"observation__state": vector(4, names="efgh"), "action": vector(3, names="uvw")}
    config = tune(base, tmp_path, state_feature_names=None, **another)
    assert (config.state_feature_names, config.action_feature_names) == (list("efgh"), list("uvw"))


@pytest.mark.medium
def test_a_robot_of_more_joints_is_another(base: Path, tmp_path: Path) -> None:
    more = {"observation__state": vector(6, names="abcdef"), "action": vector(5, names="xyzuv")}
    config = tune(base, tmp_path, **more)
    assert config.robot_state_feature.shape == (6,)
    assert config.action_feature_names == list("xyzuv")


@pytest.mark.medium
@pytest.mark.parametrize("size", [3, 4])
def test_names_that_no_longer_fit_are_dropped(base: Path, tmp_path: Path, size: int) -> None:
    """A data set without names: those of the base may be another robot's."""
    nameless = {"dtype": "float32", "shape": (size,), "names": None}
    config = tune(base, tmp_path, observation__state=nameless, action=nameless)
    assert (config.state_feature_names, config.action_feature_names) == (None, None)


@pytest.mark.medium
def test_a_base_of_0_1_has_no_names_of_the_state(base: Path, tmp_path: Path) -> None:
    """Its actions have, and the mend is another then."""
    old = save(tmp_path / "old", *prepare(load(base.parent / "data"), small_data.config()))
    file = old / "config.json"
    content = json.loads(file.read_text())
    del content["state_feature_names"]
    file.write_text(json.dumps(content))
    assert tune(old, tmp_path / "a", observation__state=vector(4, names="efgh")).state_feature_names == list("efgh")
    with pytest.raises(ValueError, match=r"remove the names from its config.json"):
        tune(old, tmp_path / "b", action=vector(3, names="uvw"))


@pytest.mark.medium
def test_fine_tuning_keeps_camera_slots(trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With `--policy.input_features=null`, the data set's cameras come in any order."""
    wrist, side = ("observation.images.wrist", "observation.images.side")
    data = {wrist: picture(), side: picture(), STATE: vector(4), ACTION: vector(3)}
    config = given(trained, pretrained_path=trained, input_features=None)
    first_loss(load(write(tmp_path / "data", data)), config)
    assert config.cameras == [side, wrist]
    assert "cameras ['observation.images.side'] take slots" in caplog.text
    assert "in other slots" not in caplog.text
    del data[side]
    config = given(trained, pretrained_path=trained, input_features=None)
    first_loss(load(write(tmp_path / "one", data)), config)
    assert "cameras ['observation.images.wrist'] are seen in other slots than they were trained in" in caplog.text


def test_a_robot_s_names() -> None:
    """What a server or a rollout asks before anything moves."""
    check_robot_names(["a", "b"], ["x"], ["a", "b"], ["x"])
    check_robot_names(None, ["x"], ["a", "b"], None)
    with pytest.raises(ValueError, match=r"the robot has for observation\.state the same names in another order"):
        check_robot_names(["b", "a"], ["x"], ["a", "b"], ["x"])
    with pytest.raises(ValueError, match="the robot has for action other names"):
        check_robot_names(["a", "b"], ["y"], ["a", "b"], ["x"])


@pytest.mark.medium
@pytest.mark.parametrize(
    ("state", "actions", "said"),
    [
        ("abcd", "xyz", None),
        (None, None, None),
        ("abdc", "xyz", "observation.state the same names in another order"),
        ("abcd", "zyx", "action the same names in another order"),
        ("efgh", "xyz", "observation.state other names"),
        ("abcd", "uvw", "action other names"),
    ],
)
def test_a_rollout_compares_names(
    base: Path, state: str | None, actions: str | None, said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before its engine is made; once, however many policies were loaded."""
    from lerobot.rollout import context

    made = []
    monkeypatch.setattr(context, "create_inference_engine", lambda *args, **kwargs: made.append((args, kwargs)))
    for _ in range(2):
        policy = DeepFusionPolicy.from_pretrained(base)
    described = {STATE: state, ACTION: actions}
    features = {key: vector(len(names), names=names) for key, names in described.items() if names}
    options = {"policy": policy, "dataset_features": features, "fps": 30}
    if said is None:
        context.create_inference_engine("sync", **options)
        assert made == [(("sync",), options)]
    else:
        with pytest.raises(ValueError, match=f"the robot has for {said}"):
            context.create_inference_engine("sync", **options)
        assert not made


# --- a policy that is built -------------------------------------------------------------------------------------


def executed(policy: DeepFusionPolicy, batch: dict, steps: list[int], noise: torch.Tensor) -> list[int]:
    """Which action of its chunk each call executes, where `steps` is `n_action_steps` from that call on."""
    chunk, found = policy.predict_action_chunk(batch, noise=noise), []
    for count in steps:
        policy.config.n_action_steps = count
        action = policy.select_action(batch, noise=noise)
        found.append(next(i for i in range(6) if torch.equal(action, chunk[:, i])))
    return found


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([6] * 7, [0, 1, 2, 3, 4, 5, 0]),
        ([3, 3, 6, 6, 6, 6, 6, 6, 6], [0, 1, 0, 1, 2, 3, 4, 5, 0]),
        ([6, 6, 6, 1, 1, 1], [0, 1, 2, 0, 0, 0]),
        ([3, 3, 3, 2, 2, 2], [0, 1, 2, 0, 1, 0]),
        ([1, 6, 1, 6], [0, 0, 0, 0]),
    ],
)
def test_n_action_steps_counts_at_once(steps: list[int], expected: list[int]) -> None:
    """A change has the policy look again: no action is skipped, and none of the old plan goes on."""
    policy, batch, _ = make()
    assert executed(policy, batch, steps, torch.randn(3, 6, 3)) == expected


@pytest.mark.parametrize("steps", [0, 7, -1, 2.5])
def test_n_action_steps_that_can_t_be(steps: float) -> None:
    policy, batch, _ = make()
    policy.config.n_action_steps = steps
    with pytest.raises(ValueError, match=r"policy\.n_action_steps="):
        policy.select_action(batch)


@pytest.mark.medium
def test_frozen_weights_go_back_to_float32() -> None:
    """Built in bfloat16, whose digits they keep; built in float32, they are as they were after bfloat16."""
    noise = torch.randn(3, 6, 3)
    half, batch, _ = make(dtype="bfloat16", train_expert_only=True)
    assert half.model.perception.language_model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16
    half.config.dtype = "float32"
    whole, _, _ = make(train_expert_only=True)
    found, expected = (policy.predict_action_chunk(batch, noise=noise) for policy in (half, whole))
    assert {parameter.dtype for parameter in half.parameters()} == {torch.float32}
    assert 0 < (found - expected).abs().max() < 0.1
    whole.config.dtype = "bfloat16"
    assert not torch.equal(whole.predict_action_chunk(batch, noise=noise), expected)
    whole.config.dtype = "float32"
    assert torch.equal(whole.predict_action_chunk(batch, noise=noise), expected)


def test_other_run_time_settings_count_at_once() -> None:
    policy, batch, _ = make()
    calls, noise = [], torch.randn(3, 6, 3)
    denoise = policy._denoise
    policy._denoise = lambda *args: calls.append(1) or denoise(*args)
    for steps in (2, 5):
        policy.config.num_inference_steps = steps
        calls.clear()
        policy.predict_action_chunk(batch, noise=noise)
        assert len(calls) == steps
    exact = policy.predict_action_chunk(batch, noise=noise)
    policy.config.dtype = "bfloat16"
    assert not torch.equal(policy.predict_action_chunk(batch, noise=noise), exact)
    policy.config.dtype = "float32"
    for rtc in (RTCConfig(enabled=True, execution_horizon=4), RTCConfig(enabled=True, execution_horizon=2)):
        policy.config.rtc_config = rtc  # without `init_rtc_processor`, which LeRobot's rollout calls
        old = {"inference_delay": 1, "prev_chunk_left_over": torch.zeros(3, 6, 3), "execution_horizon": 4}
        assert not torch.equal(policy.predict_action_chunk(batch, noise=noise, **old), exact)
        assert policy.rtc_processor.rtc_config is rtc
    policy.config.rtc_config = None
    assert torch.equal(
        policy.predict_action_chunk(batch, noise=noise)[:, 0], policy.select_action(batch, noise=noise)
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("chunk_size", 4),
        ("chunk_size", 40),
        ("fusion", "late"),
        ("max_action_dim", 7),
        ("compile_model", True),
        ("action_feature_names", ["a", "b", "c"]),
        ("normalization_mapping", {"STATE": NormalizationMode.MIN_MAX}),
        ("output_features", FOUR),
    ],
)
def test_what_is_built_does_not_follow_its_config(name: str, value: Any) -> None:
    policy, batch, _ = make()
    setattr(policy.config, name, value)
    for call in (policy.forward, policy.predict_action_chunk, policy.select_action):
        with pytest.raises(
            ValueError, match=f"policy.config was changed in .* after the policy was built.*{RUN_TIME[0]}"
        ):
            call(batch)


def test_cameras_of_a_built_policy_stay() -> None:
    policy, batch, _ = make(cameras=("images.a", "images.b"))
    policy.config.input_features = dict(reversed(policy.config.input_features.items()))
    with pytest.raises(ValueError, match="changed in cameras"):
        policy.predict_action_chunk(batch)
