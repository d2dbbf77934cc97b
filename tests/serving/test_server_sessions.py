"""Who is served, by a clock of the test; and which options a server starts with."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from lerobot_deepfusion.cli import main
from lerobot_deepfusion.serving import policy_server
from lerobot_deepfusion.serving.policy_server import check_options, is_loopback
from lerobot_deepfusion.serving.refusal import Refused
from lerobot_deepfusion.serving.sessions import SILENT, SILENT_SAME_HOST, Client, Sessions

ARM = Client("ipv4:10.0.0.5:40000")
ARM_AGAIN = Client("ipv4:10.0.0.5:40001")
OTHER = Client("ipv4:10.0.0.6:40000")
SIX, SIX_AGAIN = Client("ipv6:%5Bfe80::1%5D:40000"), Client("ipv6:%5Bfe80::1%5D:40001")


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def sessions(clock: Clock) -> Sessions[list[str]]:
    return Sessions(clock)


def find(sessions: Sessions[list[str]], client: Client) -> Any:
    return sessions.find(client, lambda work: work.append("dropped"))


def test_the_place_is_free_taken_and_given_back(sessions: Sessions[list[str]]) -> None:
    session = sessions.enter(ARM)
    with pytest.raises(Refused, match=r"busy with ipv4:10.0.0.5:40000; this server serves one robot at a time"):
        sessions.enter(OTHER)
    sessions.leave(session)
    assert sessions.enter(OTHER).client == OTHER
    sessions.leave(session)  # of the one before: nothing to give back
    with pytest.raises(Refused, match="busy"):
        sessions.enter(ARM)


def test_entering_again_begins_with_nothing(sessions: Sessions[list[str]]) -> None:
    sessions.enter(ARM).work = ["policy"]
    assert find(sessions, ARM).work == ["policy"]
    sessions.enter(ARM)
    with pytest.raises(Refused, match=r"^no policy was chosen"):
        find(sessions, ARM)


@pytest.mark.parametrize(
    ("first", "second", "seconds"),
    [
        (ARM, OTHER, SILENT),
        (ARM, ARM_AGAIN, SILENT_SAME_HOST),
        (SIX, SIX_AGAIN, SILENT_SAME_HOST),
        (ARM, Client(ARM_AGAIN.peer, (b"another robot",)), SILENT),
    ],
)
def test_a_silent_robot_loses_its_place(
    sessions: Sessions[list[str]], clock: Clock, first: Client, second: Client, seconds: float
) -> None:
    """Counted from the end of its last call; while one is answered it is not silent, however long that takes."""
    session = sessions.enter(first)
    with sessions.call(session, "SendPolicyInstructions"):
        clock.now += 1000
        with pytest.raises(Refused, match="busy"):
            sessions.enter(second)
    clock.now += seconds - 0.1
    with pytest.raises(Refused, match="busy"):
        sessions.enter(second)
    clock.now += 0.1
    assert sessions.enter(second).client == second


def test_a_new_connection_of_the_same_host_goes_on(sessions: Sessions[list[str]], clock: Clock) -> None:
    """With the policy, and without what was queued. Another host never goes on with what is not its own."""
    sessions.enter(ARM).work = ["policy"]
    with pytest.raises(Refused, match=r"^busy with ipv4:10.0.0.5:40000, and no policy was chosen"):
        find(sessions, ARM_AGAIN)
    clock.now += SILENT
    with pytest.raises(Refused, match="busy"):
        find(sessions, OTHER)
    assert find(sessions, ARM_AGAIN).work == ["policy", "dropped"]
    with pytest.raises(Refused, match=r"busy with ipv4:10.0.0.5:40001"):
        find(sessions, ARM)


def test_one_call_of_a_kind_at_a_time(sessions: Sessions[list[str]]) -> None:
    session = sessions.enter(ARM)
    with sessions.call(session, "GetActions"), sessions.call(session, "SendObservations"):
        with pytest.raises(Refused, match="another GetActions"), sessions.call(session, "GetActions"):
            pass
        assert session.calls == {"GetActions", "SendObservations"}
    assert not session.calls
    with sessions.call(session, "SendPolicyInstructions"), pytest.raises(Refused, match="is being loaded"):
        sessions.enter(ARM)


# --- options ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        *[("localhost", True), ("127.0.0.1", True), ("127.9.9.9", True), ("::1", True)],
        *[("0.0.0.0", False), ("::", False), ("192.168.1.20", False), ("robot-lab", False), ("", False)],
        *[("localhost.evil.example", False), ("127.0.0.1.nip.io", False), ("unix:/tmp/x", False)],
    ],
)
def test_another_host_needs_policies(host: str, loopback: bool, caplog: pytest.LogCaptureFixture) -> None:
    assert is_loopback(host) is loopback
    if loopback:
        assert check_options(host, [], None, None, None) is None
        assert not caplog.text
    else:
        with pytest.raises(ValueError, match="what may be served with --policy="):
            check_options(host, [], None, None, None)
        assert check_options(host, ["you/policy"], None, None, None) is None
        assert "without TLS: whoever reaches the port" in caplog.text


def test_half_of_tls_is_none(tmp_path: Path) -> None:
    """Never a server without TLS where one with it was asked for."""
    for cert, key, authority in [("a", None, None), (None, "a", None), (None, None, "a"), ("a", None, "a")]:
        with pytest.raises(ValueError, match="TLS needs"):
            check_options("localhost", [], cert, key, authority)
    with pytest.raises(FileNotFoundError):
        check_options("localhost", [], tmp_path / "missing.pem", tmp_path / "missing.key", None)
    (tmp_path / "text").write_text("no certificate")
    with pytest.raises(ValueError, match="is no certificate or key in PEM"):
        check_options("localhost", [], tmp_path / "text", tmp_path / "text", None)


def test_the_command_tells_a_wrong_option() -> None:
    with pytest.raises(SystemExit, match=r"deepfusion serve: --host=0\.0\.0\.0 lets other machines in"):
        main(["serve", "--host=0.0.0.0"])


def test_the_command_passes_its_options_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """LeRobot's own among them, by LeRobot's names."""
    passed: dict[str, Any] = {}
    monkeypatch.setattr(policy_server, "serve", lambda **options: passed.update(options))
    options = ["--policy=a", "--policy=b@v1", "--fps=20", "--obs_queue_timeout=1", "--tls-cert=c", "--port=9"]
    main(["serve", *options])
    tls = {"tls_cert": Path("c"), "tls_key": None, "tls_client_ca": None}
    lerobot = {"fps": 20, "inference_latency": 0.0333, "obs_queue_timeout": 1.0}
    assert passed == {"host": "localhost", "port": 9, "policies": ("a", "b@v1"), **tls, **lerobot}


def test_a_port_in_use_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """gRPC would share it with another server, and each client get either."""
    monkeypatch.chdir(tmp_path)  # LeRobot writes logs there
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(SystemExit, match="serve: Failed to bind"):
        main(["serve", "--host=127.0.0.1", f"--port={taken.getsockname()[1]}"])
