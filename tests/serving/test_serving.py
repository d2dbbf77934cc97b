"""The policy in LeRobot's own engines: asynchronous server, real-time chunking, `lerobot-rollout`."""

from __future__ import annotations

import importlib.metadata
import itertools
import json
import os
import pickle
import shutil
import site
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
import torch
from lerobot.async_inference.configs import RobotClientConfig
from lerobot.configs import PreTrainedConfig
from lerobot.policies.common.flow_matching import euler_integrate
from lerobot.policies.factory import make_pre_post_processors
from lerobot.policies.rtc.configuration_rtc import RTCConfig
from lerobot.policies.utils import prepare_observation_for_inference
from lerobot.rollout.inference import rtc
from lerobot.rollout.robot_wrapper import ThreadSafeRobot
from lerobot.transport import services_pb2
from lerobot.utils.feature_utils import build_dataset_frame, hw_to_dataset_features
from torch import Tensor

from lerobot_deepfusion.modeling_deepfusion import DeepFusionPolicy
from lerobot_deepfusion.processor_deepfusion import make_deepfusion_pre_post_processors
from lerobot_deepfusion.serving.robot_check import check_robot
from tests.commands import ROOT, run
from tests.policies import STATS, make_config
from tests.serving import fakerobot
from tests.serving.fakerobot import FRAME, JOINTS, FakeRobot, FakeRobotConfig
from tests.serving.served import running

TASK = "push the puck"
STATE, CAMERA = "observation.state", "observation.images.front"


def save(folder: Path, steps: int = 2, **changes: Any) -> Path:
    """A policy of one camera, with a slot that stays empty."""
    torch.manual_seed(0)
    config = make_config(cameras=("images.front",), empty_cameras=1, **changes)
    config.input_features[CAMERA].shape, config.num_inference_steps = (3, *FRAME[:2]), steps
    for part in (DeepFusionPolicy(config), *make_deepfusion_pre_post_processors(config, STATS)):
        part.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One denoise step and two layers, a whole one and one of keys and values: more cost a compiler as much again."""
    return save(tmp_path_factory.mktemp("short"), steps=1, fusion_layers="first_2")


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LeRobot's engines write `logs/` where they run, take over logging and listen to signals."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lerobot.async_inference.helpers.init_logging", lambda **_: None)
    monkeypatch.setattr("lerobot.scripts.lerobot_rollout.init_logging", lambda: None)
    monkeypatch.setattr("lerobot.utils.process.ProcessSignalHandler._register_handlers", lambda _: None)


def robot_config(**changes: Any) -> FakeRobotConfig:
    return FakeRobotConfig(record=Path("sent.json"), calibration_dir=Path("calibration"), **changes)


def load(checkpoint: Path) -> tuple[DeepFusionPolicy, Any, Any]:
    policy = DeepFusionPolicy.from_pretrained(checkpoint)
    return policy, *make_pre_post_processors(policy.config, pretrained_path=str(checkpoint))


# --- asynchronous inference -------------------------------------------------------------------------------


@pytest.fixture
def address(alone: None) -> Iterator[str]:
    """A server on a free port, in this process."""
    with running() as service:
        yield service.address


def connect(address: str, checkpoint: Path, **robot: Any) -> Any:
    """LeRobot's own client, which sends what it would send for a real robot."""
    from lerobot.async_inference.robot_client import RobotClient

    return RobotClient(
        RobotClientConfig(
            policy_type="deepfusion",
            pretrained_name_or_path=str(checkpoint),
            robot=robot_config(**robot),
            actions_per_chunk=5,
            server_address=address,
        )
    )


def next_chunk(client: Any) -> Tensor:
    """One observation there, one chunk back: [T, A]."""
    client.must_go.set()
    client.control_loop_observation(TASK)
    return torch.stack(
        [timed.get_action() for timed in pickle.loads(client.stub.GetActions(services_pb2.Empty()).data)]
    )


@pytest.mark.medium
def test_served_chunk_equals_the_policy(address: str, checkpoint: Path, record_property: Any) -> None:
    """The same seed gives the same actions through the wire as in this process, to the bit."""
    client = connect(address, checkpoint)
    assert client.start()
    torch.manual_seed(3)
    served = next_chunk(client)
    policy, pre, post = load(checkpoint)
    features = hw_to_dataset_features(client.robot.observation_features, "observation")
    frame = build_dataset_frame(features, client.robot.get_observation(), "observation")
    batch = pre(prepare_observation_for_inference(frame, torch.device("cpu"), TASK))
    torch.manual_seed(3)
    expected = post(policy.predict_action_chunk(batch))[0, :5]
    assert served.shape == (5, 3)
    assert torch.equal(served, expected)

    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        next_chunk(client)
        seconds.append(time.perf_counter() - start)
    record_property("chunk_latency_ms", 1000 * statistics.median(seconds))
    print(f"observation to chunk through the server: {1000 * statistics.median(seconds):.0f} ms")
    client.stop()


def turned_away(client: Any, message: str) -> None:
    assert not client.start()
    with pytest.raises(grpc.RpcError, match=message):
        client.stub.SendPolicyInstructions(services_pb2.PolicySetup(data=pickle.dumps(client.policy_config)))
    client.stop()


@pytest.mark.parametrize(
    ("robot", "state", "message"),
    [
        ({"camera": "top"}, fakerobot.STATE, r"sends the cameras \['observation.images.top'\].*--robot.cameras"),
        ({}, JOINTS, r"sends a state of 3 values \['shoulder.pos', .*expects 4"),
    ],
)
def test_another_robot_is_turned_away(
    address: str, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, robot: dict, state: tuple, message: str
) -> None:
    """The call that loads the policy fails with the text, and LeRobot's client stops."""
    monkeypatch.setattr(fakerobot, "STATE", state)
    turned_away(connect(address, checkpoint, **robot), message)


@pytest.mark.parametrize(("size", "fits"), [((720, 1280), True), ((360, 640), True), ((480, 640), False)])
def test_pictures_of_a_robot_are_not_stretched(checkpoint: Path, size: tuple[int, int], fits: bool) -> None:
    """LeRobot's server would, before the policy sees them."""
    features = {STATE: {"names": [*fakerobot.STATE]}, CAMERA: {"shape": (*size, 3)}}
    with nullcontext() if fits else pytest.raises(ValueError, match=r"480 x 640 pixels.*trained on 720 x 1280"):
        check_robot(features, PreTrainedConfig.from_pretrained(checkpoint))


def test_joints_of_a_robot_are_those_that_were_trained(checkpoint: Path) -> None:
    """By name and in order, though their number is right."""
    config = PreTrainedConfig.from_pretrained(checkpoint)
    features = {STATE: {"names": [*fakerobot.STATE]}, CAMERA: {"shape": (720, 1280, 3)}}
    check_robot(features, config)  # a checkpoint without names
    config.state_feature_names = [*fakerobot.STATE]
    check_robot(features, config)
    config.state_feature_names = [*reversed(fakerobot.STATE)]
    with pytest.raises(ValueError, match=r"the robot has for observation\.state the same names in another order"):
        check_robot(features, config)
    config.state_feature_names = ["elsewhere.pos", *fakerobot.STATE[1:]]
    with pytest.raises(ValueError, match=r"the robot has for observation\.state other names.*Put its motors"):
        check_robot(features, config)


@pytest.mark.slow
def test_server_command_serves(checkpoint: Path) -> None:
    """`deepfusion serve` for other machines, a process of its own, until SIGTERM."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--host=0.0.0.0", f"--port={port}", f"--policy={checkpoint}", "--inference_latency=0", "--fps=10"]
    command = [Path(sys.executable).with_name("deepfusion"), "serve", *options]
    with Path("server.log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as server:
        try:
            client = connect(f"127.0.0.1:{port}", checkpoint)
            grpc.channel_ready_future(client.channel).result(timeout=150)
            assert client.start(), Path("server.log").read_text()
            assert next_chunk(client).isfinite().all()
            client.stop()
            # gRPC would share the port, and each client get either.
            again = run("deepfusion", "serve", *options, code=1)
            assert again.splitlines()[-1].startswith("deepfusion serve: Failed to bind to address")
            server.terminate()
            assert server.wait(60) == 0
        finally:
            server.kill()
    log_text = Path("server.log").read_text()
    for line in ("--host=0.0.0.0 without TLS", f"Serving {checkpoint} on 0.0.0.0:{port}, without TLS", "Stopping"):
        assert line in log_text


# --- real-time chunking -----------------------------------------------------------------------------------


@dataclass
class Prediction:
    """One call of the policy by the engine."""

    batch: dict[str, Tensor]
    rtc: dict[str, Any]
    random_state: Tensor
    chunk: Tensor


@dataclass
class Run:
    predictions: list[Prediction]
    actions: list[Tensor]
    gradients: list[tuple[bool, bool]]  # of each denoise step: turned on? kept in the result?


def run_engine(checkpoint: Path, chunks: int) -> Run:
    """LeRobot's engine and queue, with a clock of their own on which a chunk takes two ticks.

    A new chunk is asked for when three actions are left, and one is taken of each.
    """
    policy, pre, post = load(checkpoint)
    policy.config.num_inference_steps = 5
    policy.config.rtc_config = RTCConfig(execution_horizon=4)
    policy.init_rtc_processor()
    assert rtc.supports_rtc_inference(policy)
    run = Run([], [], [])
    predict = policy.predict_action_chunk

    def predict_and_note(batch: dict[str, Tensor], **rtc: Any) -> Tensor:
        state = torch.get_rng_state()
        run.predictions.append(Prediction(batch, rtc, state, predict(batch, **rtc)))
        return run.predictions[-1].chunk

    def note_gradients(_module: Any, _inputs: Any, velocity: Tensor) -> None:
        run.gradients.append((torch.is_grad_enabled(), velocity.requires_grad))

    policy.predict_action_chunk = predict_and_note
    policy.model.expert.register_forward_hook(note_gradients)
    robot = FakeRobot(robot_config())
    features = hw_to_dataset_features(robot.observation_features, "observation")
    engine = rtc.RTCInferenceEngine(
        policy, pre, post, ThreadSafeRobot(robot), policy.config.rtc_config, features, TASK, 4, "cpu", False, 0, 3
    )
    torch.manual_seed(5)
    engine.start()
    engine.notify_observation(robot.get_observation())
    engine.resume()
    for index in range(chunks):
        while engine.action_queue.qsize() <= 3:
            assert not engine.failed
            time.sleep(0.01)
        if index < chunks - 1:
            run.actions.append(engine.get_action(None))
    engine.stop()
    return run


@pytest.fixture
def two_ticks_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(perf_counter=itertools.count(0, 0.5).__next__, sleep=time.sleep)
    monkeypatch.setattr(rtc, "time", clock)


@pytest.mark.medium
@pytest.mark.usefixtures("two_ticks_a_chunk")
def test_real_time_chunking_follows_the_old_chunk(checkpoint: Path) -> None:
    """What is executed while the policy thinks stays: ..."""
    run = run_engine(checkpoint, chunks=4)
    policy, _, post = load(checkpoint)
    policy.config.num_inference_steps = 5
    assert run.predictions[0].rtc == {"inference_delay": 0, "prev_chunk_left_over": None}
    for last, new in itertools.pairwise(run.predictions):
        left_over = new.rtc["prev_chunk_left_over"]
        assert new.rtc["inference_delay"] == 2
        assert left_over.shape == (4, 3)  # the execution horizon
        assert torch.equal(left_over[:3], last.chunk[0, 3:])  # two were late, one is taken
        torch.set_rng_state(new.random_state)
        free = policy.predict_action_chunk(new.batch)
        strays = [(chunk[0, :2] - left_over[:2]).abs().max() for chunk in (new.chunk, free)]
        print(strays)
        assert strays[0] < 0.5 * strays[1]
    for prediction, action in zip(run.predictions, run.actions, strict=False):
        assert torch.equal(action, post(prediction.chunk)[0, 2])


@pytest.mark.medium
@pytest.mark.usefixtures("two_ticks_a_chunk")
def test_real_time_chunking_needs_no_gradient(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LeRobot turns gradients on around a denoise step. Off, no graph is kept, and no bit of a chunk changes."""
    off = run_engine(checkpoint, chunks=3)
    assert off.gradients == 15 * [(False, False)]
    monkeypatch.setattr(
        "lerobot_deepfusion.modeling_deepfusion.euler_integrate",
        lambda velocity, *args, **kwargs: euler_integrate(velocity.__wrapped__, *args, **kwargs),
    )
    on = run_engine(checkpoint, chunks=3)
    assert on.gradients == 5 * [(False, False)] + 10 * [(True, True)]  # the first chunk has nothing to follow
    for one, other in zip(off.predictions, on.predictions, strict=True):
        assert torch.equal(one.chunk, other.chunk)


@pytest.mark.medium
@pytest.mark.usefixtures("two_ticks_a_chunk")
@pytest.mark.parametrize(("objective", "evaluations"), [("flow", 5), ("two_step", 2), ("drift", 1)])
def test_trained_real_time_chunking_goes_on(
    checkpoint: Path, tmp_path: Path, objective: str, evaluations: int
) -> None:
    """LeRobot's engine gives what is executed meanwhile, and the chunk has it to the bit, with no evaluation more."""
    trained = tmp_path / "trained"
    shutil.copytree(checkpoint, trained)
    config = json.loads((trained / "config.json").read_text())
    config |= {"objective": objective, "num_flow_samples": 2, "rtc_training_max_delay": 3}
    (trained / "config.json").write_text(json.dumps(config))
    run = run_engine(trained, chunks=4)
    assert run.gradients == 4 * evaluations * [(False, False)]
    for last, new in itertools.pairwise(run.predictions):
        left_over = new.rtc["prev_chunk_left_over"]
        assert torch.equal(left_over[:3], last.chunk[0, 3:])
        assert torch.equal(new.chunk[0, :2], left_over[:2])
        assert not torch.equal(new.chunk[0, 2:4], left_over[2:4])


# --- lerobot-rollout --------------------------------------------------------------------------------------


def rollout_options(checkpoint: Path, plugins: Path, *more: str) -> list[str]:
    """Options of the command, and the fake robot as an installed distribution, as LeRobot finds robots."""
    (plugins / "lerobot_robot_fake-0.dist-info").mkdir(parents=True)
    (plugins / "lerobot_robot_fake-0.dist-info/METADATA").write_text("Name: lerobot_robot_fake\nVersion: 0\n")
    (plugins / "lerobot_robot_fake.py").write_text("import tests.serving.fakerobot\n")
    robot = ["--robot.type=fake", "--robot.record=sent.json", "--robot.calibration_dir=calibration"]
    common = [f"--policy.path={checkpoint}", f"--task={TASK}", "--fps=10", "--return_to_initial_position=false"]
    return [*robot, *common, *more]


RTC = ("--inference.type=rtc", "--inference.rtc.execution_horizon=4", "--inference.queue_threshold=3")


def check_actions() -> torch.Tensor:
    """Every action has the robot's names and finite values: [actions, joints]."""
    sent = json.loads(Path("sent.json").read_text())
    assert sent
    assert all(tuple(action) == JOINTS for action in sent)
    values = torch.tensor([list(action.values()) for action in sent])
    assert values.isfinite().all()
    return values


@pytest.mark.medium
@pytest.mark.parametrize("inference", [("--inference.type=sync",), RTC])
def test_rollout(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inference: tuple) -> None:
    """The installed command's entry point, with its command line."""
    options = rollout_options(checkpoint, tmp_path / "plugins", *inference, "--duration=2")
    monkeypatch.syspath_prepend(tmp_path / "plugins")
    monkeypatch.setattr(sys, "argv", ["lerobot-rollout", *options])
    (command,) = importlib.metadata.entry_points(group="console_scripts", name="lerobot-rollout")
    command.load()()
    assert (check_actions().std(dim=0) > 0).all()  # the robot did move


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile on a CPU needs a C++ compiler")
@pytest.mark.timeout(600)
def test_compiled_real_time_rollout(short: Path, tmp_path: Path) -> None:
    """`--use_torch_compile=true` wraps `predict_action_chunk`. The command is a process of its own.

    The thread of real-time chunking must be done with the compiler before the command ends: LeRobot leaves it after
    three seconds, and Python crashes on the way out. Without vector instructions, which are half of the compiler's
    work here; kernels that have them are held to the eager ones elsewhere (`test_compiled_denoise_step`).
    """
    options = rollout_options(short, tmp_path / "plugins", *RTC, "--duration=500", "--use_torch_compile=true")
    path = os.pathsep.join([str(tmp_path / "plugins"), str(ROOT)])
    result = subprocess.run(
        [Path(sys.executable).with_name("lerobot-rollout"), *options],
        env={**os.environ, "PYTHONPATH": path, "OMP_WAIT_POLICY": "passive", "TORCHINDUCTOR_VEC_ISA_OK": "0"},
        capture_output=True,
        text=True,
        timeout=580,
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    check_actions()


@pytest.mark.slow
def test_compiled_rollout(short: Path, tmp_path: Path) -> None:
    """Likewise of sync inference, whose first action waits for the compiler, and may be the only one.

    It is traced and not compiled: the other test has the compiler.
    """
    plugins = tmp_path / "plugins"
    options = ("--inference.type=sync", "--duration=2", "--use_torch_compile=true")
    options = rollout_options(short, plugins, *options, "--torch_compile_backend=aot_eager")
    run("lerobot-rollout", *options, inside=partial(site.addsitedir, str(plugins)))
    check_actions()
