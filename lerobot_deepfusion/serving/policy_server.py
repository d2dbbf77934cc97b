"""Starts the server: where it listens, what it may serve, and who may connect.

What can be wrong with the options is said before LeRobot and torch are imported.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import signal
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .service import PolicyService

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tls:
    """Files in PEM; `client_ca` signs the certificates of the clients that may connect."""

    cert: Path
    key: Path
    client_ca: Path | None = None


def serve(
    host: str = "localhost",
    port: int = 8080,
    *,
    policies: Sequence[str] = (),
    tls_cert: str | Path | None = None,
    tls_key: str | Path | None = None,
    tls_client_ca: str | Path | None = None,
    fps: int = 30,
    inference_latency: float = 1 / 30,
    obs_queue_timeout: float = 2.0,
) -> None:
    """Serve LeRobot's asynchronous clients, one robot at a time, until SIGINT or SIGTERM.

    Args:
        host: to listen on.
        port: likewise.
        policies: that may be served, each a directory, Hub id or `<Hub id>@<revision>`. Needed unless the host is
            loopback, where a client may name any deepfusion policy.
        tls_cert: the server's certificate, PEM.
        tls_key: its key.
        tls_client_ca: of the certificates that clients must show.
        fps: of the robot: an action lasts 1 / fps seconds.
        inference_latency: seconds that a chunk takes at least.
        obs_queue_timeout: seconds to wait for an observation.

    Raises:
        ValueError: if an option is wrong, or a policy can't be served.
        FileNotFoundError: if a file is not there.
        ImportError: without gRPC.
        RuntimeError: if the port is in use.
    """
    tls = check_options(host, policies, tls_cert, tls_key, tls_client_ca)
    try:
        import grpc  # noqa: F401
    except ImportError as error:
        raise ImportError('the server needs gRPC: pip install "lerobot_policy_deepfusion[async]"') from error
    from lerobot.async_inference.configs import PolicyServerConfig

    from .service import PolicyService

    config = PolicyServerConfig(host, port, fps, inference_latency, obs_queue_timeout)
    service = PolicyService(config, policies)
    asyncio.run(_serve_until_stopped(service, host, port, tls))


def check_options(
    host: str,
    policies: Sequence[str],
    tls_cert: str | Path | None,
    tls_key: str | Path | None,
    tls_client_ca: str | Path | None,
) -> Tls | None:
    """
    Raises:
        ValueError: for a host that others reach without policies to choose from, or half of what TLS needs.
        FileNotFoundError: if a file of TLS is not there.
    """
    if not is_loopback(host) and not policies:
        raise ValueError(
            f"--host={host} lets other machines in, and any of them could name what is loaded here; say what may be "
            "served with --policy=<directory or Hub id>, once for each"
        )
    if tls_cert is None and tls_key is None and tls_client_ca is None:
        if not is_loopback(host):
            logger.warning(
                f"--host={host} without TLS: whoever reaches the port can read, change and send everything. Use "
                "--tls-cert, --tls-key and --tls-client-ca, or the loopback host and a tunnel (docs/serving.md)"
            )
        return None
    if tls_cert is None or tls_key is None:
        raise ValueError("TLS needs the server's --tls-cert and --tls-key, and --tls-client-ca to know its clients")
    tls = Tls(Path(tls_cert), Path(tls_key), None if tls_client_ca is None else Path(tls_client_ca))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:  # gRPC would only say later that no port could be opened
        context.load_cert_chain(tls.cert, tls.key)
        if tls.client_ca is not None:
            context.load_verify_locations(tls.client_ca)
    except ssl.SSLError as error:
        raise ValueError(
            f"{tls.cert}, {tls.key} or {tls.client_ca} is no certificate or key in PEM: {error}"
        ) from error
    return tls


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


async def start_server(service: PolicyService, host: str, port: int, tls: Tls | None = None) -> tuple[Any, int]:
    """A running `grpc.aio.Server` and its port.

    Args:
        port: 0 for one that is free.

    Raises:
        RuntimeError: if the port is in use.
    """
    import grpc
    from lerobot.transport import services_pb2_grpc

    from .service import CHANNEL_OPTIONS

    server = grpc.aio.server(options=CHANNEL_OPTIONS)
    services_pb2_grpc.add_AsyncInferenceServicer_to_server(service, server)
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        if tls is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, _credentials(tls))
    except RuntimeError:
        # A server that never started puts itself into a log record when it is freed, and Python crashes later if
        # something keeps that record.
        await server.start()
        await server.stop(None)
        raise
    await server.start()
    return server, port


def _credentials(tls: Tls) -> Any:
    import grpc

    client_ca = None if tls.client_ca is None else tls.client_ca.read_bytes()
    return grpc.ssl_server_credentials(
        [(tls.key.read_bytes(), tls.cert.read_bytes())], client_ca, require_client_auth=client_ca is not None
    )


async def _serve_until_stopped(service: PolicyService, host: str, port: int, tls: Tls | None) -> None:
    server, port = await start_server(service, host, port, tls)
    secured = "without TLS" if tls is None else "TLS" if tls.client_ca is None else "mutual TLS"
    choice = ", ".join(service.shelf.folders) or "any deepfusion policy that a client names"
    logger.info(f"Serving {choice} on {host}:{port}, {secured}")
    stopped = asyncio.Event()
    with contextlib.suppress(NotImplementedError):  # Windows: Ctrl-C ends `asyncio.run`
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    await stopped.wait()
    logger.info("Stopping")
    await server.stop(grace=1)
