"""Where the daemon listens, and with which TLS: from the settings to groups of addresses."""

from __future__ import annotations

import grp
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from wasmkilnd.access.tls import TlsFiles, TlsUnusable, server_credentials
from wasmkilnd.lifecycle.preflight import CannotStart
from wasmkilnd.lifecycle.reload import CannotReload, Prepare
from wasmkilnd.model import Entrance, Transport
from wasmkilnd.network import SocketAccess
from wasmkilnd.rpc.server import ListenGroup, open_socket
from wasmkilnd.setting_values import Address
from wasmkilnd.settings import Settings
from wasmkilnd.telemetry.admin.names import Names
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
    group = settings.socket_group
    number = int(group) if group.isdecimal() else grp.getgrnam(group).gr_gid if group else None
    return SocketAccess(int(settings.socket_mode, 8), number)


def open_admin_socket(settings: Settings, sockets: SocketAccess) -> None:
    """Give the admin server's Unix socket, if it has one, mode and group. Raises CannotListen."""
    address = settings.admin_listen
    if address.startswith("unix:"):
        open_socket(address, Path(address.removeprefix("unix:")), sockets)


def admin_names(settings: Settings) -> Names | None:
    """Return which names the admin server answers to; None for all."""
    address = Address.parse(settings.admin_listen)
    if address.path or not address.local or settings.tls_cert_file:
        return None
    return Names()


def listen_groups(settings: Settings, tls: TlsFiles | None) -> Sequence[ListenGroup]:
    """Return the addresses of gRPC, grouped by how they are served."""
    mutual = Transport.MTLS if settings.tls_client_ca_file else Transport.TLS
    apart = bool(settings.operator_listen)
    groups: list[ListenGroup] = []
    for setting, addresses, transport, admin in (
        ("listen", settings.listen, mutual, not apart),
        ("token_listen", settings.token_listen, Transport.TLS, not apart),
        ("operator_listen", settings.operator_listen, mutual, True),
    ):
        over_tcp = [address for address in addresses if not address.startswith("unix:")]
        if over_tcp and tls:
            credentials = partial(
                server_credentials, tls, client_certificates=transport is Transport.MTLS
            )
            groups.append(ListenGroup(setting, Entrance(transport), over_tcp, credentials, admin))
        elif over_tcp:
            groups.append(ListenGroup(setting, Entrance(), over_tcp, admin=admin))
        # gRPC does not tell which of its Unix sockets a call came through: each has a server.
        groups.extend(
            ListenGroup(setting, Entrance(Transport.UNIX, address), [address], admin=admin)
            for address in addresses
            if address.startswith("unix:")
        )
    return groups


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
    settings: Settings, groups: Sequence[ListenGroup], bound: Sequence[Sequence[str]]
) -> Bound:
    """Return what the addresses of ``groups`` became."""

    def of(setting: str, wanted: Sequence[str]) -> Sequence[str]:
        over_tcp = iter(
            [
                address
                for group, addresses in zip(groups, bound, strict=True)
                if group.setting == setting and group.entrance.transport is not Transport.UNIX
                for address in addresses
            ]
        )
        return [each if each.startswith("unix:") else next(over_tcp) for each in wanted]

    return Bound(
        of("listen", settings.listen),
        of("token_listen", settings.token_listen),
        of("operator_listen", settings.operator_listen),
        settings.tls_min_version if settings.tls_cert_file else "",
    )
