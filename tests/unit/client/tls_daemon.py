"""A daemon over TLS, or none, that answers GetCapabilities and says who called."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
from wasmkiln.v1 import module_service_pb2 as modules
from wasmkiln.v1 import module_service_pb2_grpc as modules_grpc

from tests.authority import Pair


class TlsDaemon(modules_grpc.ModuleServiceServicer):
    """Takes the tokens in `tokens`, if there are any, and every certificate that TLS let in."""

    def __init__(self) -> None:
        self.address = ""
        self.tokens: set[str] = set()
        self.seen: list[str] = []
        self.certificates: list[bytes] = []
        self.pair: Pair | None = None
        # The next call waits for the first of these, and has begun once the second is set.
        self.holds: deque[tuple[threading.Event, threading.Event]] = deque()

    def GetCapabilities(  # noqa: N802
        self, request: modules.GetCapabilitiesRequest, context: Any
    ) -> modules.GetCapabilitiesResponse:
        sent = dict(context.invocation_metadata()).get("authorization", "")
        self.seen.append(sent)
        certificate = context.auth_context().get("x509_pem_cert", [b""])[0]
        self.certificates.append(certificate)
        if self.holds:
            goes_on, begun = self.holds.popleft()
            begun.set()
            goes_on.wait(30)
        if self.tokens and sent.removeprefix("Bearer ") not in self.tokens:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "who calls?")
        caller = modules.Caller(identity="token:ci", roles=["read", "compile"], namespace="team-a")
        return modules.GetCapabilitiesResponse(caller=caller)


@contextmanager
def tls_daemon(
    pair: Pair | None = None, client_ca: Path | None = None, address: str = "127.0.0.1:0"
) -> Iterator[TlsDaemon]:
    """Run one: over TLS with `pair`, with certificates of clients by `client_ca`."""
    daemon = TlsDaemon()
    daemon.pair = pair
    server = grpc.server(futures.ThreadPoolExecutor(4))
    modules_grpc.add_ModuleServiceServicer_to_server(daemon, server)
    if pair is None:
        port = server.add_insecure_port(address)
    else:

        def current() -> Any:
            assert daemon.pair
            chain = daemon.pair.key_file.read_bytes(), daemon.pair.cert_file.read_bytes()
            roots = client_ca.read_bytes() if client_ca else None
            return grpc.ssl_server_certificate_configuration([chain], roots)

        port = server.add_secure_port(
            address,
            grpc.dynamic_ssl_server_credentials(current(), current, client_ca is not None),
        )
    daemon.address = f"127.0.0.1:{port}"
    server.start()
    try:
        yield daemon
    finally:
        server.stop(None).wait()
