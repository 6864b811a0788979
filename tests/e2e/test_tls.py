"""TLS of a real daemon: who gets a connection, and where."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from wasmkiln.v1 import admin_service_pb2 as admin_pb
from wasmkiln.v1.admin_service_pb2_grpc import AdminServiceStub

from tests.authority import DAY, Authority
from tests.e2e.daemon import ONE_ENGINE, Daemon, state_with
from tests.e2e.grpcurl import Grpcurl
from tests.e2e.over_tls import TlsSite, ask, openssl

# Of root any group, of others one of their own.
GROUP = 12345 if os.geteuid() == 0 else os.getgroups()[0]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> TlsSite:
    return TlsSite(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def daemon(site: TlsSite, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    folder = tmp_path_factory.mktemp("daemon")
    flags = site.flags(
        *("--listen", f"unix:{folder}/kiln.sock", "--token-listen", "127.0.0.1:0"),
        *("--operator-listen", f"127.0.0.1:0,unix:{folder}/operator.sock"),
        *("--admin-listen", f"unix:{folder}/admin.sock"),
        *("--socket-group", str(GROUP)),
    )
    with Daemon(state_with(folder / "state", *ONE_ENGINE), flags) as running:
        yield running
    # In order, with several servers.
    assert running.process.returncode == 0
    assert not list(folder.glob("*.sock"))


def _row(daemon: Daemon, name: str) -> list[str]:
    return daemon._row(name).partition(" (")[0].split(", ")


def _port(address: str) -> str:
    return f"localhost:{address.rpartition(':')[2]}"


def _reflected(address: str) -> set[str]:
    """Return the services that reflection lists at a Unix socket."""
    return {*Grpcurl(address.removeprefix("unix:"), flags=["-unix"])("list").stdout.split()}


def _is_refused(channel: grpc.Channel) -> bool:
    with channel, pytest.raises(grpc.RpcError) as refusal:
        ask(channel)
    return refusal.value.code() is grpc.StatusCode.UNAVAILABLE


def test_who_gets_no_connection(site: TlsSite, daemon: Daemon, tmp_path: Path) -> None:
    address = _port(daemon.addresses[0])
    for pair in (
        None,
        Authority(tmp_path / "other").client(spiffe="spiffe://example.org/builder/1"),
        site.authority.client("expired", dns="ci.example.org", begins=-3 * DAY, ends=-DAY),
    ):
        assert _is_refused(site.channel(address, pair))
    for one in (daemon.addresses[0], *_row(daemon, "tokens"), _row(daemon, "operator")[0]):
        assert _is_refused(grpc.insecure_channel(one))


def test_only_tls_1_3_is_spoken_unless_asked(
    site: TlsSite, daemon: Daemon, lean_state_dir: Path
) -> None:
    [address] = _row(daemon, "tokens")
    assert _versions(address, site) == {"-tls1_3"}
    flags = site.flags("--tls-min-version", "1.2", client_certificates=False)
    with Daemon(lean_state_dir, flags) as asked:
        assert _versions(asked.address, site) == {"-tls1_2", "-tls1_3"}


def _versions(address: str, site: TlsSite) -> set[str]:
    """Return the versions in which a connection without a certificate is made."""
    versions = ("-tls1_1", "-tls1_2", "-tls1_3")
    told = {version: openssl(address, site, version) for version in versions}
    made = {version for version in versions if "CONNECTION ESTABLISHED" in told[version]}
    assert all(f"TLSv{v[-3]}.{v[-1]}" in told[v] for v in made)
    return made


def test_admin_service_is_served_to_operators_alone(site: TlsSite, daemon: Daemon) -> None:
    request = admin_pb.ListQuarantineRequest()
    by_port, by_path = _row(daemon, "operator")
    for channel in (
        site.channel(_port(daemon.addresses[0]), site.client),
        grpc.insecure_channel(daemon.addresses[1]),
    ):
        with channel, pytest.raises(grpc.RpcError) as refusal:
            AdminServiceStub(channel).ListQuarantine(request, timeout=20)
        assert refusal.value.code() is grpc.StatusCode.UNIMPLEMENTED
    with grpc.insecure_channel(by_path) as channel:
        AdminServiceStub(channel).ListQuarantine(request, timeout=20)
    with site.channel(_port(by_port), site.client) as channel:
        assert ask(channel).engines
    assert "wasmkiln.v1.AdminService" in _reflected(by_path)
    listed = _reflected(daemon.addresses[1])
    assert "wasmkiln.v1.ModuleService" in listed
    assert "wasmkiln.v1.AdminService" not in listed


def test_unix_sockets_have_the_mode_and_group_that_were_asked_for(daemon: Daemon) -> None:
    admin = daemon._row("metrics").partition("/metrics")[0]
    for address in (daemon.addresses[1], _row(daemon, "operator")[1], admin):
        found = Path(address.removeprefix("unix:")).stat()
        assert found.st_mode & 0o777 == 0o660
        assert found.st_gid == GROUP
