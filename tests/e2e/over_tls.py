"""Daemons that speak TLS, and channels to them, for tests."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import grpc
from wasmkiln.v1 import module_service_pb2 as pb
from wasmkiln.v1.module_service_pb2_grpc import ModuleServiceStub

from tests.authority import Authority, Pair


class TlsSite:
    """An authority, and the files that a daemon and its callers use."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority(folder)
        self.server = self.authority.server()
        self.client_ca_file = folder / "client_ca.pem"
        self.client_ca_file.write_bytes(self.authority.ca_file.read_bytes())
        self.client = self.authority.client(spiffe="spiffe://example.org/builder/1")

    def flags(self, *more: str, client_certificates: bool = True) -> Sequence[str]:
        """Return the flags of a daemon that uses the files."""
        given = ["--tls-cert-file", str(self.server.cert_file)]
        given += ["--tls-key-file", str(self.server.key_file)]
        if client_certificates:
            given += ["--tls-client-ca-file", str(self.client_ca_file)]
        return [*given, "--redis-url", "none", "--workers", "1", *more]

    def channel(self, address: str, pair: Pair | None = None) -> grpc.Channel:
        """Return a new connection, with the certificate of ``pair``."""
        credentials = grpc.ssl_channel_credentials(
            self.authority.ca_file.read_bytes(),
            *((pair.key, pair.cert) if pair else ()),
        )
        # Otherwise channels of one process share connections.
        options = [("grpc.use_local_subchannel_pool", 1)]
        return grpc.secure_channel(address, credentials, options)


def ask(channel: grpc.Channel, timeout_s: float = 20.0) -> pb.GetCapabilitiesResponse:
    """Make a call that needs any identity."""
    stub = ModuleServiceStub(channel)
    found: pb.GetCapabilitiesResponse = stub.GetCapabilities(
        pb.GetCapabilitiesRequest(), timeout=timeout_s
    )
    return found


def openssl(address: str, site: TlsSite, *words: str) -> str:
    """Return what ``openssl s_client`` prints about a handshake."""
    flags = ("-connect", address, "-alpn", "h2", "-brief", "-verify_return_error", *words)
    command = ["openssl", "s_client", *flags, "-CAfile", str(site.authority.ca_file)]
    # What the daemon sends after the handshake is no text.
    done = subprocess.run(command, input=b"", capture_output=True, timeout=60, check=False)
    return (done.stdout + done.stderr).decode(errors="replace")
