"""Check, without starting anything, what ``serve`` would refuse: ``wasmkilnd config``.

Nothing is made and nothing is left: a key that the first start makes is not missed here. Each
failure is the one that ``serve`` would end with. What a start takes back of a volume's group, the
command has taken back before (``running``).
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from wasmkilnd.access import tls
from wasmkilnd.access.guard import Access, read_access
from wasmkilnd.cache.redis_servers import AccessUnusable, connect
from wasmkilnd.lifecycle import engines, serve_namespaces
from wasmkilnd.lifecycle.preflight import CannotStart, check_limits
from wasmkilnd.lifecycle.running import running
from wasmkilnd.options import group_id, redis_access
from wasmkilnd.ownership import check_path
from wasmkilnd.setting_values import NONE, Address
from wasmkilnd.settings import Settings
from wasmkilnd.signing.keys import read_keys
from wasmkilnd.telemetry.audit import cannot_write_audit
from wasmkilnd.telemetry.tracing import open_collector


def check(settings: Settings) -> Access:
    """Return who may do what. May block.

    Raises CannotStart, AccessUnusable, KeysUnusable, NotOurs and TracingUnusable, as ``serve``
    would.
    """
    check_limits(settings)
    check_path(settings.state_dir)
    _check_audit(settings)
    open_collector()
    if settings.tls_cert_file:
        tls.load(settings)
    access, _ = read_access(settings)
    if why := serve_namespaces.refusal(settings, access.policy.namespaces):
        raise CannotStart(why)
    read_keys(settings).refuse_revoked()
    if why := engines.refusal(settings):
        raise CannotStart(why)
    engines.open_advisories(settings)
    _check_redis(settings)
    # A daemon that runs here has the addresses itself.
    if not running(settings.state_dir):
        for setting, text in _addresses(settings):
            _check_address(settings, setting, Address.parse(text))
    return access


def _check_audit(settings: Settings) -> None:
    if not settings.audit_file or settings.audit_file == "log":
        return
    path = Path(settings.audit_file).expanduser()
    try:
        if path.exists():
            os.close(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC))
        elif not path.parent.is_dir():
            raise FileNotFoundError(2, os.strerror(2))
    except OSError as failure:
        raise CannotStart(cannot_write_audit(path, failure)) from None


def _check_redis(settings: Settings) -> None:
    url = settings.redis_url.get_secret_value()
    if url in ("", "none"):
        return

    async def read_files() -> None:
        connect(url, redis_access(settings))

    try:
        asyncio.run(read_files())
    except AccessUnusable as failure:
        raise CannotStart(str(failure)) from None


def _addresses(settings: Settings) -> Iterator[tuple[str, str]]:
    for setting in ("listen", "token_listen", "operator_listen"):
        for address in getattr(settings, setting):
            yield setting, address
    if settings.admin_listen != NONE:
        yield "admin_listen", settings.admin_listen


def _check_address(settings: Settings, setting: str, address: Address) -> None:
    flag = setting.replace("_", "-")
    advice = f"choose another with --{flag} or WASMKILN_{setting.upper()}"
    if address.path:
        _check_socket(settings, address)
    elif address.port and not _can_bind(address):
        raise CannotStart(
            f"cannot listen on {address}: it is in use, or not an address of this machine; {advice}"
        )


def _check_socket(settings: Settings, address: Address) -> None:
    folder = Path(address.path).parent
    if not folder.is_dir():
        raise CannotStart(f"cannot listen on {address}: {folder} is not a directory; create it")
    group = group_id(settings.socket_group)
    mine = {os.getegid(), *os.getgroups()}
    if group is not None and os.geteuid() != 0 and group not in mine:
        raise CannotStart(
            f"cannot set mode and group of {address} (socket_group): {os.strerror(1)}"
        )


def _can_bind(address: Address) -> bool:
    try:
        found = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except OSError:
        return False
    for family, kind, protocol, _, where in found:
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(where)
                # gRPC servers share a port by SO_REUSEPORT; what listens already shows here.
                probe.listen()
            except OSError:
                return False
    return True
