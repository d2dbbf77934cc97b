"""The policy server over real gRPC: strangers, two robots, broken connections, TLS; the honest robot goes on."""

from __future__ import annotations

import contextlib
import gzip
import logging
import os
import pickle
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from lerobot.async_inference.helpers import TimedObservation
from lerobot.transport import services_pb2

from lerobot_deepfusion.modeling_deepfusion import DeepFusionPolicy
from lerobot_deepfusion.processor_deepfusion import make_deepfusion_pre_post_processors
from lerobot_deepfusion.serving import policies, service, sessions
from lerobot_deepfusion.serving.policy_server import Tls
from tests.policies import STATS, make_config
from tests.serving import pickle_attacks
from tests.serving.served import JOINTS, SIZE, RawRobot, lerobot_server, refused, running


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = make_config(cameras=("images.front",))
    folder = tmp_path_factory.mktemp("checkpoint")
    for part in (DeepFusionPolicy(config), *make_deepfusion_pre_post_processors(config, STATS)):
        part.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def server(checkpoint: Path) -> Iterator[service.PolicyService]:
    """One server for all tests but those of its options."""
    with running(obs_queue_timeout=0.3) as running_server:
        yield running_server


@pytest.fixture(autouse=True)
def free(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nobody is served when a test begins, and no call into LeRobot's service could unpickle."""
    monkeypatch.setattr(lerobot_server, "pickle", None)
    yield
    if "server" in request.fixturenames:
        request.getfixturevalue("server").sessions.current = None


@pytest.fixture
def robot(server: service.PolicyService, checkpoint: Path) -> Iterator[RawRobot]:
    """An honest robot that has chosen its policy."""
    with RawRobot(server, checkpoint) as robot:
        robot.ready()
        robot.choose()
        yield robot


def is_served(robot: RawRobot, timestep: int = 0, **seen: Any) -> torch.Tensor:
    robot.see(timestep, **seen)
    actions = robot.act()
    assert [action.timestep for action in actions] == list(range(timestep, timestep + 5))
    chunk = torch.stack([action.action for action in actions])
    assert chunk.shape == (5, 3)
    assert chunk.isfinite().all()
    return chunk


# --- strangers --------------------------------------------------------------------------------------------


@pytest.mark.medium
def test_nothing_that_is_sent_runs(
    server: service.PolicyService, checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """CVE-2026-25874 and its siblings, to both calls that LeRobot unpickles; the next honest robot is served."""
    marker = tmp_path / "ran"
    caplog.set_level(logging.WARNING)
    exploits = pickle_attacks.exploits(f"touch {marker}")
    with RawRobot(server, checkpoint) as stranger:
        for name, exploit in exploits.items():
            with refused("INVALID_ARGUMENT", name):
                stranger.choose(pickle.dumps(exploit))
        stranger.choose()
        for name, exploit in exploits.items():
            with refused("INVALID_ARGUMENT", name):
                stranger.send(pickle.dumps(exploit))
            with refused("INVALID_ARGUMENT", name):
                stranger.see(arm=exploit)
        assert is_served(stranger) is not None  # it may still say something honest
    assert not marker.exists()
    for method in ("SendPolicyInstructions", "SendObservations"):
        assert f"refused {method} of ipv4:127.0.0.1:" in caplog.text
    server.sessions.current = None
    with RawRobot(server, checkpoint) as honest:
        honest.ready()
        honest.choose()
        is_served(honest)
    pickle.loads(pickle.dumps(exploits["posix.system"]))
    assert marker.exists()  # the control: pickle would have run it


def test_only_deepfusion_is_loaded(
    server: service.PolicyService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saved: Path
) -> None:
    """Whatever a client names: the type is looked at before weights and processors."""
    from lerobot.policies.act.configuration_act import ACTConfig

    ACTConfig(device="cpu", push_to_hub=False).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    damaged = Path(shutil.copytree(saved, tmp_path / "damaged"))
    (damaged / "policy_preprocessor.json").write_text(
        '{"name": "x", "steps": [{"class": "os.system", "config": {}}]}'
    )
    monkeypatch.setattr(service, "load_policy", lambda *_: pytest.fail("loaded"))
    with RawRobot(server) as robot:
        for policy, status, text in [
            (tmp_path, "FAILED_PRECONDITION", "a checkpoint of a 'act' policy, not of 'deepfusion'"),
            (damaged, "FAILED_PRECONDITION", "steps are taken by 'registry_name' only, found 'os.system'"),
            (tmp_path / "missing", "FAILED_PRECONDITION", "missing"),
        ]:
            with refused(status, text):
                robot.choose(pretrained_name_or_path=str(policy))
        with refused("INVALID_ARGUMENT", "this server serves 'deepfusion' only", "--policy_type=deepfusion"):
            robot.choose(policy_type="act", pretrained_name_or_path=str(tmp_path))


def test_a_device_is_a_device(server: service.PolicyService, checkpoint: Path) -> None:
    with RawRobot(server, checkpoint) as robot, refused("INVALID_ARGUMENT", "is no device", "--policy_device"):
        robot.choose(device="cuda; rm -rf /")


def test_a_map_of_names_is_refused(server: service.PolicyService, checkpoint: Path) -> None:
    """LeRobot's own server would look for the picture under the name that the robot does not use."""
    renames = {"observation.images.top": "observation.images.front"}
    with RawRobot(server, checkpoint) as robot, refused("INVALID_ARGUMENT", "rename_map=", "as the policy does"):
        robot.choose(rename_map=renames)


def test_a_client_chooses_among_the_policies_and_no_other(checkpoint: Path, saved: Path) -> None:
    with running((str(checkpoint), str(saved))) as server, RawRobot(server, checkpoint) as robot:
        with refused("PERMISSION_DENIED", "'/etc' is not served here", str(checkpoint), str(saved)):
            robot.choose(pretrained_name_or_path="/etc")
        for near in (f"{checkpoint}/", f"{checkpoint}/../{checkpoint.name}", "lerobot/act", f"{checkpoint}@main"):
            with refused("PERMISSION_DENIED"):
                robot.choose(pretrained_name_or_path=near)
        robot.choose()
        is_served(robot)


def test_loading_holds_up_nobody(
    server: service.PolicyService, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does inference: both are in a thread beside the loop that answers."""
    threads, load = [], service.load_policy

    def noted(*arguments: object) -> Any:
        policy, *others = load(*arguments)
        predict = policy.predict_action_chunk
        policy.predict_action_chunk = lambda batch: threads.append(threading.current_thread().name) or predict(batch)
        threads.append(threading.current_thread().name)
        return policy, *others

    monkeypatch.setattr(service, "load_policy", noted)
    with RawRobot(server, checkpoint) as robot:
        robot.ready()
        robot.choose()
        is_served(robot)
    assert threads == ["policy_0", "policy_0"]


def test_policies_are_looked_at_when_the_server_starts(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FileNotFoundError), running((str(checkpoint), str(tmp_path))):
        pass
    # What is no folder here may be a repository; that it is none there either does not hide its name.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match=r"^outputs/nope is no folder here, and on the Hub: ."):
        policies.checkpoint_folder("outputs/nope")


def test_what_the_user_can_mend_is_logged_in_a_line(
    server: service.PolicyService, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A robot that does not fit is no failure to load; what nobody foresaw is logged with where it happened."""
    for error, traceback in ((ValueError("the joints differ"), False), (RuntimeError("no memory"), True)):

        def fails(*_: object, error: Exception = error) -> Any:
            raise error

        monkeypatch.setattr(service, "load_policy", fails)
        caplog.clear()
        with RawRobot(server, checkpoint) as robot, refused("FAILED_PRECONDITION", str(error)):
            robot.ready()
            robot.choose()
        (line,) = [record for record in caplog.records if "does not go to work" in record.message]
        assert str(error) in line.message
        assert bool(line.exc_info) == traceback


def test_a_hub_policy_is_one_commit(monkeypatch: pytest.MonkeyPatch, checkpoint: Path) -> None:
    """The config is read first; what is served is the folder of one download."""
    asked: list[Any] = []

    def download(repo: str, **options: Any) -> str:
        asked.append((repo, options["revision"]))
        return str(checkpoint)

    def config(source: Any, **hub: Any) -> None:
        asked.append((str(source), hub.get("revision")))

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    monkeypatch.setattr("lerobot_deepfusion.storage.checkpoint_config.read_checkpoint_config", config)
    assert policies.checkpoint_folder("you/policy@v1") == checkpoint
    assert asked == [("you/policy", "v1"), ("you/policy", "v1"), (str(checkpoint), None)]


# --- what a robot may do wrong ----------------------------------------------------------------------------


@pytest.mark.medium
def test_a_wrong_observation_is_refused_and_the_next_is_answered(robot: RawRobot) -> None:
    """LeRobot's client asks for an answer once: the server remembers that it owes one."""
    is_served(robot, 3)
    for status, text, changes in [
        ("INVALID_ARGUMENT", "'elbow.pos' is nan; expected a finite number", {"elbow.pos": float("nan")}),
        ("INVALID_ARGUMENT", "expected what was announced", {"front": np.zeros((80, 64, 3), np.uint8)}),
        ("INVALID_ARGUMENT", "NaN or infinite", {"front": np.full(SIZE, np.nan, np.float32)}),
        ("INVALID_ARGUMENT", "'timestep' is -1", {"timestep": -1}),
        ("INVALID_ARGUMENT", "timestamp is nan", {"timestamp": float("nan")}),
    ]:
        with refused(status, text):
            robot.see(**changes)
        assert robot.act() == []
    is_served(robot, 3, must_go=False)  # the same step as above, which LeRobot would skip


def test_an_old_observation_is_answered_for_its_own_time(robot: RawRobot) -> None:
    """A clock that was set back must not stop a robot; its actions carry the robot's own time."""
    is_served(robot, 9)
    robot.see(2, timestamp=-5.0)
    assert [(action.timestep, action.timestamp) for action in robot.act()][:2] == [(2, -5.0), (3, -5.0 + 1 / 30)]
    robot.see(2, must_go=False, timestamp=-6.0)  # seen, acted on, and not asked for again
    assert robot.act() == []


def test_a_picture_of_unannounced_size_is_not_stretched(server: service.PolicyService, checkpoint: Path) -> None:
    with RawRobot(server, checkpoint) as robot:
        features = robot.instructions().lerobot_features
        features["observation.images.front"]["shape"] = (None, None, 3)
        robot.choose(lerobot_features=features)
        with refused("INVALID_ARGUMENT", "80 x 80 pixels", "trained on 64 x 80"):
            robot.see(front=np.zeros((80, 80, 3), np.uint8))
        is_served(robot, front=np.zeros((128, 160, 3), np.uint8))


def test_what_goes_wrong_in_the_policy_is_told(robot: RawRobot, server: service.PolicyService) -> None:
    """LeRobot's server answers nothing, and its client waits for ever."""
    work = server.sessions.current.work
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(work.engine, "_get_action_chunk", lambda _: 1 / 0)
        robot.see(4)
        with refused("INTERNAL", "ZeroDivisionError: division by zero"):
            robot.act()
    is_served(robot, 4, must_go=False)


@pytest.mark.medium
def test_pieces_that_make_no_message(robot: RawRobot, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut short, of an unknown state, too large, or stopped in the middle; and the connection still serves."""
    state, piece = services_pb2.TransferState, services_pb2.Observation
    whole = pickle.dumps(TimedObservation(0.0, 0, {}, True))

    def send(pieces: Iterator[Any]) -> None:
        robot.stub.SendObservations(pieces, timeout=60)

    with refused("INVALID_ARGUMENT", "ends after 3 bytes, before its last piece"):
        send(iter([piece(transfer_state=state.TRANSFER_BEGIN, data=b"abc")]))
    with refused("INVALID_ARGUMENT", "ends after 0 bytes"):
        send(iter([]))
    with refused("INVALID_ARGUMENT", "is in the state 0"):
        send(iter([piece(data=whole)]))
    with refused("RESOURCE_EXHAUSTED", "more than 67108864 bytes"):
        send(piece(transfer_state=state.TRANSFER_MIDDLE, data=bytes(2**21)) for _ in range(100))
    with refused("RESOURCE_EXHAUSTED", "larger than max"):
        send(iter([piece(transfer_state=state.TRANSFER_END, data=bytes(5 * 2**20))]))

    def stops_in_the_middle() -> Iterator[Any]:
        yield piece(transfer_state=state.TRANSFER_BEGIN, data=whole)
        time.sleep(3)

    monkeypatch.setattr(service, "MESSAGE_SECONDS", 0.3)
    with refused("DEADLINE_EXCEEDED", f"of which {len(whole)} bytes came in 0.3 seconds"):
        send(stops_in_the_middle())
    is_served(robot)


def test_compressed_messages_are_not_unpacked(robot: RawRobot) -> None:
    """4 MB of gzip hold gigabytes, which gRPC would unpack before it looks at the size."""
    assert len(gzip.compress(bytes(10**6))) < 2000
    before = resident()
    with refused("UNIMPLEMENTED"):
        robot.stub.SendPolicyInstructions(
            services_pb2.PolicySetup(data=bytes(10**6)), timeout=30, compression=grpc.Compression.Gzip
        )
    assert resident() - before < 50_000
    is_served(robot)


def test_calls_that_never_send_do_not_stop_the_others(server: service.PolicyService, checkpoint: Path) -> None:
    """60 calls that begin and say nothing: in a server with threads each would hold one."""
    release = threading.Event()

    def silence() -> Iterator[bytes]:
        release.wait(60)
        yield b""

    with contextlib.ExitStack() as stack:
        for number in range(60):
            stranger = stack.enter_context(RawRobot(server))
            method = ("Ready", "SendPolicyInstructions", "SendObservations", "GetActions")[number % 4]
            call = stranger.channel.stream_unary(f"/transport.AsyncInference/{method}")
            stack.callback(call.future(silence()).cancel)
        try:
            honest = stack.enter_context(RawRobot(server, checkpoint))
            honest.ready()
            honest.choose()
            is_served(honest)
        finally:
            release.set()


@pytest.mark.slow
def test_memory_stays_flat(robot: RawRobot) -> None:
    """1,000 observations without asking for an action, then 400 refused ones. (10,000 were run once.)

    What is kept of each would show in each of five rounds; arenas of threads fill up in some.
    """
    values = {**dict.fromkeys(JOINTS, 0.5), "front": np.full(SIZE, 7, np.uint8)}
    whole = pickle.dumps(TimedObservation(100.0, 0, values, True))
    wrong = pickle.dumps(TimedObservation(100.0, 0, {**values, "elbow.pos": float("nan")}, True))

    def refuse() -> None:
        with refused("INVALID_ARGUMENT"):
            robot.send(wrong)

    logging.disable()  # pytest keeps what is logged
    try:
        assert is_flat(lambda: robot.send(whole), 1_000, 3_000)  # kB; the pictures are 15,000
        assert is_flat(refuse, 400, 1_500)  # 6,000
    finally:
        logging.disable(logging.NOTSET)
    is_served(robot)


def resident() -> int:
    """kB of this process in memory. (Not the most it ever had, under which a leak would hide in a process that was
    large before.)
    """
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024


def is_flat(call: Any, times: int, limit: int) -> bool:
    """Whether so many calls take less than `limit` kB in one of five rounds."""
    for _ in range(5):
        before = resident()
        for _ in range(times):
            call()
        if resident() - before < limit:
            return True
    return False


# --- two robots -------------------------------------------------------------------------------------------


@pytest.mark.medium
def test_a_second_robot_is_turned_away(
    robot: RawRobot, server: service.PolicyService, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the first one's address; it gets none of its actions, and its turn when the first is silent."""
    torch.manual_seed(1)
    alone = is_served(robot)
    first = server.sessions.current.client.peer
    clock = SimpleNamespace(now=time.monotonic())
    monkeypatch.setattr(server.sessions, "clock", lambda: clock.now)
    with RawRobot(server, checkpoint) as second:
        robot.see(1)  # waits in the queue
        for call in (second.ready, second.choose):
            with refused("RESOURCE_EXHAUSTED", f"busy with {first}", "one robot at a time"):
                call()
        for call in (second.see, second.act):
            with refused("FAILED_PRECONDITION", f"busy with {first}", "no policy was chosen over this connection"):
                call()
        assert [action.timestep for action in robot.act()] == [1, 2, 3, 4, 5]
        torch.manual_seed(1)
        assert torch.equal(is_served(robot), alone)

        robot.see(7)  # left behind in the queue
        clock.now += sessions.SILENT
        second.ready()
        second.choose()
        assert second.act() == []
        is_served(second)
        second_peer = server.sessions.current.client.peer
        for call in (robot.see, robot.act):
            with refused("FAILED_PRECONDITION", f"busy with {second_peer}"):
                call()


def test_a_robot_goes_on_over_a_new_connection(
    robot: RawRobot, server: service.PolicyService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a break of the network: what was queued is dropped, the policy stays, the next picture is answered."""
    is_served(robot, 5)
    robot.see(7)
    robot.channel.close()
    with RawRobot(server) as again:
        with refused("FAILED_PRECONDITION"):  # it might be another's
            again.see(5)
        clock = time.monotonic() + sessions.SILENT_SAME_HOST
        monkeypatch.setattr(server.sessions, "clock", lambda: clock)
        assert again.act() == []
        is_served(again, 5, must_go=False)


def test_a_robot_has_one_call_of_a_kind(robot: RawRobot, server: service.PolicyService) -> None:
    waiting = robot.stub.GetActions.future(services_pb2.Empty())
    while "GetActions" not in server.sessions.current.calls:
        time.sleep(0.01)
    with refused("RESOURCE_EXHAUSTED", "another GetActions of this client"):
        robot.act()
    assert waiting.result().data == b""


# --- TLS --------------------------------------------------------------------------------------------------

openssl = pytest.mark.skipif(not shutil.which("openssl"), reason="certificates are made by openssl")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, a server and a robot that it signed, and a stranger that signed itself."""
    folder = tmp_path_factory.mktemp("certificates")

    def run(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    new = ("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2")
    for name in ("ca", "stranger"):
        run(*new, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.pem")
    for name in ("server", "robot"):
        extra = ("-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost", "-addext", "basicConstraints=CA:FALSE")
        signed = ("-CA", "ca.pem", "-CAkey", "ca.key")
        run(*new, *signed, "-subj", f"/CN={name}", *extra, "-keyout", f"{name}.key", "-out", f"{name}.pem")
    return folder


def tls_channel(server: service.PolicyService, folder: Path, name: str | None) -> grpc.Channel:
    key, cert = (None, None) if name is None else ((folder / f"{name}.{end}").read_bytes() for end in ("key", "pem"))
    credentials = grpc.ssl_channel_credentials((folder / "ca.pem").read_bytes(), key, cert)
    return grpc.secure_channel(server.address, credentials)


@openssl
def test_mutual_tls_and_a_tunnel(certificates: Path, checkpoint: Path) -> None:
    """A certificate of the authority is let in, none or another is not; LeRobot's plain client comes by a tunnel."""
    tls = Tls(certificates / "server.pem", certificates / "server.key", certificates / "ca.pem")
    with running((str(checkpoint),), tls) as server:
        for channel in (tls_channel(server, certificates, None), tls_channel(server, certificates, "stranger"), None):
            with RawRobot(server, checkpoint, channel) as stranger, refused("UNAVAILABLE"):
                stranger.ready()
        with RawRobot(server, checkpoint, tls_channel(server, certificates, "robot")) as robot:
            robot.ready()
            robot.choose()
            is_served(robot)
            assert server.sessions.current.client.identity == (b"127.0.0.1", b"localhost")
        server.sessions.current = None
        with tunnel(server.port, certificates) as port, RawRobot(SimpleNamespace(address=port), checkpoint) as plain:
            plain.ready()
            plain.choose()
            is_served(plain)


@contextlib.contextmanager
def tunnel(port: int, folder: Path) -> Iterator[str]:
    """What stunnel or haproxy does at the robot: TLS with its certificate and ALPN `h2`, which gRPC asks for."""
    context = ssl.create_default_context(cafile=folder / "ca.pem")
    context.load_cert_chain(folder / "robot.pem", folder / "robot.key")
    context.set_alpn_protocols(["h2"])
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def carry() -> None:
            near, _ = listener.accept()
            far = context.wrap_socket(socket.create_connection(("127.0.0.1", port)), server_hostname="127.0.0.1")
            with near, far:
                far.settimeout(0.02)
                near.settimeout(0.02)
                while True:
                    for source, target in ((near, far), (far, near)):
                        with contextlib.suppress(TimeoutError):
                            data = source.recv(65536)
                            if not data:
                                return
                            target.settimeout(10)
                            target.sendall(data)
                            target.settimeout(0.02)

        thread = threading.Thread(target=carry, daemon=True)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        thread.join(10)
