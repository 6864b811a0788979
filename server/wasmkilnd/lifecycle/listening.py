"""Where the daemon listens, and with which TLS: from the settings to addresses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from wasmkilnd.access.tls import TlsFiles, TlsUnusable, server_credentials
from wasmkilnd.lifecycle.preflight import CannotStart
from wasmkilnd.lifecycle.reload import CannotReload, Prepare
from wasmkilnd.model import Entrance, Transport
from wasmkilnd.network import SocketAccess
from wasmkilnd.options import group_id
from wasmkilnd.rpc.server import Listener, open_socket
from wasmkilnd.setting_values import Address
from wasmkilnd.settings import Settings
from wasmkilnd.telemetry.metrics import TlsStatus


def open_tls(settings: Settings) -> TlsFiles | None:
    """Read the files of TLS; return None where it is off. Raises CannotStart."""
    if not settings.tls_cert_file:
        return None
    try:
        return TlsFiles(settings)
    except TlsUnusable as refusal:
        raise CannotStart(str(refusal)) from None


def prepare_tls(files: TlsFiles) -> Prepare:
    """Return what reads the files again at a reload."""

    def prepare(new: Settings) -> Callable[[], None]:
        try:
            return files.prepare(new)
        except TlsUnusable as refusal:
            raise CannotReload(str(refusal)) from None

    return prepare


def tls_status(files: TlsFiles) -> Callable[[], TlsStatus]:
    """Return a function that tells when the files expire, for the metrics."""

    def status() -> TlsStatus:
        current = files.current
        expiry = {"cert": current.not_after.timestamp()}
        if current.client_ca_not_after:
            expiry["client_ca"] = current.client_ca_not_after.timestamp()
        return TlsStatus(expiry, files.failures)

    return status


def socket_access(settings: Settings) -> SocketAccess:
    """Return who can connect to the daemon's Unix sockets."""
    return SocketAccess(int(settings.socket_mode, 8), group_id(settings.socket_group))


def open_admin_socket(settings: Settings, sockets: SocketAccess) -> None:
    """Give the admin server's Unix socket, if it has one, mode and group. Raises CannotListen."""
    address = settings.admin_listen
    if address.startswith("unix:"):
        open_socket(address, Path(address.removeprefix("unix:")), sockets)


def checks_host(settings: Settings) -> bool:
    """Return whether a website could have browsers ask the admin server under its own name.

    TLS names the server, and a port that other machines reach can be asked without a browser.
    """
    address = Address.parse(settings.admin_listen)
    return address.local and not address.path and not settings.tls_cert_file


def listeners(settings: Settings, tls: TlsFiles | None) -> Sequence[Listener]:
    """Return the addresses of gRPC, in the order of the settings."""
    mutual = Transport.MTLS if settings.tls_client_ca_file else Transport.TLS
    apart = bool(settings.operator_listen)
    found = []
    for setting, addresses, transport, admin in (
        ("listen", settings.listen, mutual, not apart),
        ("token_listen", settings.token_listen, Transport.TLS, not apart),
        ("operator_listen", settings.operator_listen, mutual, True),
    ):
        for address in addresses:
            at = Listener(address, setting, admin)
            if address.startswith("unix:"):
                at = replace(at, entrance=Entrance(Transport.UNIX, address))
            elif tls:
                asks = transport is Transport.MTLS
                credentials = partial(server_credentials, tls, client_certificates=asks)
                at = replace(at, entrance=Entrance(transport), credentials=credentials)
            found.append(at)
    return found


@dataclass(frozen=True, slots=True)
class Bound:
    """The addresses of gRPC with their real ports, in the order of the settings."""

    serving: Sequence[str]
    tokens: Sequence[str]
    operators: Sequence[str]
    tls: str = ""
    """The lowest version of TLS that is spoken; empty where TLS is off."""

    @property
    def all(self) -> Sequence[str]:
        """Every address."""
        return [*self.serving, *self.tokens, *self.operators]


def bound_addresses(
    settings: Settings, listeners: Sequence[Listener], bound: Sequence[str]
) -> Bound:
    """Return what the addresses of ``listeners`` became."""
    of: dict[str, list[str]] = {"listen": [], "token_listen": [], "operator_listen": []}
    for listener, address in zip(listeners, bound, strict=True):
        of[listener.setting].append(address)
    spoken = settings.tls_min_version if settings.tls_cert_file else ""
    return Bound(of["listen"], of["token_listen"], of["operator_listen"], spoken)
