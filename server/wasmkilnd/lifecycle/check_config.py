"""Check, without starting anything, what ``serve`` would refuse: ``wasmkilnd config``.

Nothing is left: a key that the first start makes is not missed here. Each failure is the one that
``serve`` would end with, but for rights in the object store, without which it serves. What a start
takes back of a volume's group, the command has taken back before (``running``).
"""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import suppress
from pathlib import Path

from wasmkilnd import options, tenants
from wasmkilnd.access import guard, tls
from wasmkilnd.cache.object_store import prefix_of
from wasmkilnd.lifecycle import engines, preflight, running
from wasmkilnd.network import IN_USE, cannot_listen
from wasmkilnd.redis.servers import check_files
from wasmkilnd.settings import EMBEDDED, NONE, Address, Settings
from wasmkilnd.signing import keys
from wasmkilnd.telemetry import audit, tracing


def check(settings: Settings) -> guard.Access:
    """Return who may do what. May block.

    Raises CannotStart, and other exceptions of this package, as ``serve`` would.
    """
    if why := preflight.limits_too_low(settings):
        raise preflight.CannotStart(why)
    _check_state(settings)
    _check_audit(settings)
    if traces := tracing.open_tracing(""):
        traces.close()
    if settings.tls_cert_file:
        tls.load(settings)
    access, _ = guard.read_access(settings)
    if why := tenants.why_not(access.policy.namespaces):
        raise preflight.CannotStart(why)
    keys.read_keys(settings).refuse_revoked()
    if why := engines.refusal(settings):
        raise preflight.CannotStart(why)
    engines.check_installed(settings)
    engines.open_advisories(settings)
    if settings.redis_url.get_secret_value() not in (EMBEDDED, NONE):
        check_files(options.redis_access(settings))
    _check_objects(settings)
    # A daemon that runs here has the addresses itself.
    if not running.running(settings.state_dir):
        for setting, address in settings.addresses:
            _check_address(setting, address)
    return access


def _check_state(settings: Settings) -> None:
    """Make the state directory, and remove what was not there before."""
    state_dir = settings.state_dir.absolute()
    missing = [each for each in (state_dir, *state_dir.parents) if not os.path.lexists(each)]
    try:
        preflight.make_state_dir(settings)
    finally:
        for folder in missing:
            with suppress(OSError):
                folder.rmdir()


def _check_audit(settings: Settings) -> None:
    if settings.audit_file in ("", "log"):
        return
    path = Path(settings.audit_file)
    there = path.exists()
    try:
        flags = os.O_WRONLY | os.O_APPEND if there else os.O_DIRECTORY
        os.close(os.open(path if there else path.parent, flags))
    except OSError as failure:
        raise preflight.CannotStart(audit.cannot_write_audit(path, failure)) from None


def _check_objects(settings: Settings) -> None:
    if not (bucket := options.open_bucket(settings)):
        return
    mode, prefix = settings.object_store_mode, prefix_of(settings.redis_prefix)
    reads, writes = mode != "write-only", mode != "read-only"
    if why := asyncio.run(bucket.missing_rights(prefix, reads=reads, writes=writes)):
        raise preflight.CannotStart(f"object_store_url: {why}")


def _check_address(setting: str, address: Address) -> None:
    folder, why = Path(address.path).parent, IN_USE
    if address.path:
        why = f"{folder} is not a directory"
    try:
        if address.path:
            os.close(os.open(folder, os.O_DIRECTORY))
        elif address.port:
            found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
            for family, *_, where in found:
                # gRPC servers share a port by SO_REUSEPORT; what listens already shows here.
                socket.create_server(where[:2], family=family).close()
    except OSError:
        raise cannot_listen(address, setting, why) from None
