"""TLS of a real daemon: who gets a connection, and where."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from wasmkiln.v1 import admin_service_pb2 as admin_pb
from wasmkiln.v1.admin_service_pb2_grpc import AdminServiceStub

from tests.authority import DAY, Authority
from tests.e2e.daemon import ONE_ENGINE, Daemon, state_with
from tests.e2e.over_tls import TlsSite, ask, openssl
from tests.e2e.programs import WASMKILND

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


def _row(daemon: Daemon, name: str) -> list[str]:
    return daemon._row(name).partition(" (")[0].split(", ")


def _port(address: str) -> str:
    return f"localhost:{address.rpartition(':')[2]}"


def _reflected(address: str) -> set[str]:
    """Return the services that reflection lists at a Unix socket."""
    with grpc.insecure_channel(address) as channel:
        asked = reflection_pb2.ServerReflectionRequest(list_services="")
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        [answer] = stub.ServerReflectionInfo(iter([asked]), timeout=20)
    return {service.name for service in answer.list_services_response.service}


def test_mutual_tls(site: TlsSite, daemon: Daemon) -> None:
    address = _port(daemon.addresses[0])
    with site.channel(address, site.client) as channel:
        assert ask(channel).engines
    with site.channel(address) as channel, pytest.raises(grpc.RpcError) as refusal:
        ask(channel)
    assert refusal.value.code() is grpc.StatusCode.UNAVAILABLE


def test_a_certificate_of_another_ca_gets_no_connection(
    site: TlsSite, daemon: Daemon, tmp_path: Path
) -> None:
    address = _port(daemon.addresses[0])
    for pair in (
        Authority(tmp_path / "other").client(spiffe="spiffe://example.org/builder/1"),
        site.authority.client("expired", dns="ci.example.org", begins=-3 * DAY, ends=-DAY),
    ):
        with site.channel(address, pair) as channel, pytest.raises(grpc.RpcError) as refusal:
            ask(channel)
        assert refusal.value.code() is grpc.StatusCode.UNAVAILABLE


def test_plaintext_gets_no_connection(daemon: Daemon) -> None:
    for address in (daemon.addresses[0], *_row(daemon, "tokens"), _row(daemon, "operator")[0]):
        with grpc.insecure_channel(address) as channel, pytest.raises(grpc.RpcError) as refusal:
            ask(channel)
        assert refusal.value.code() is grpc.StatusCode.UNAVAILABLE


def test_only_tls_1_3_is_spoken(site: TlsSite, daemon: Daemon) -> None:
    [address] = _row(daemon, "tokens")
    assert "CONNECTION ESTABLISHED" in openssl(address, site, "-tls1_3")
    for version in ("-tls1_2", "-tls1_1"):
        assert "CONNECTION ESTABLISHED" not in openssl(address, site, version)


def test_tls_1_2_is_spoken_if_asked(site: TlsSite, lean_state_dir: Path) -> None:
    flags = site.flags("--tls-min-version", "1.2", client_certificates=False)
    with Daemon(lean_state_dir, flags) as asked:
        for version in ("-tls1_2", "-tls1_3"):
            found = openssl(asked.address, site, version)
            assert "CONNECTION ESTABLISHED" in found
            assert f"TLSv{version[-3]}.{version[-1]}" in found
        assert "CONNECTION ESTABLISHED" not in openssl(asked.address, site, "-tls1_1")


def test_the_address_for_tokens_asks_for_no_certificate(site: TlsSite, daemon: Daemon) -> None:
    [address] = _row(daemon, "tokens")
    found = openssl(address, site, "-tls1_3")
    assert "CONNECTION ESTABLISHED" in found
    with site.channel(_port(address)) as channel:
        # It is connected: what it may do is the guard's to say.
        grpc.channel_ready_future(channel).result(timeout=20)


def test_admin_service_is_served_to_operators_alone(site: TlsSite, daemon: Daemon) -> None:
    request = admin_pb.ListQuarantineRequest()
    by_port, by_path = _row(daemon, "operator")
    with site.channel(_port(daemon.addresses[0]), site.client) as channel:
        with pytest.raises(grpc.RpcError) as refusal:
            AdminServiceStub(channel).ListQuarantine(request, timeout=20)
        assert refusal.value.code() is grpc.StatusCode.UNIMPLEMENTED
    with grpc.insecure_channel(daemon.addresses[1]) as channel:
        with pytest.raises(grpc.RpcError) as refusal:
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


def test_the_daemon_ends_in_order_with_several_servers(
    site: TlsSite, lean_state_dir: Path, tmp_path: Path
) -> None:
    path = tmp_path / "kiln.sock"
    flags = site.flags("--listen", f"unix:{path}", "--token-listen", "127.0.0.1:0")
    daemon = Daemon(lean_state_dir, flags)
    with site.channel(_port(daemon.addresses[0]), site.client) as channel:
        ask(channel)
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.stop() == 0
    assert not path.exists()


def test_files_that_cannot_be_used_stop_the_start(
    site: TlsSite, lean_state_dir: Path, tmp_path: Path
) -> None:
    def refused(*flags: str) -> str:
        done = subprocess.run(
            [
                *(WASMKILND, "serve", "--state-dir", str(lean_state_dir)),
                *("--listen", "127.0.0.1:0", "--admin-listen", "none", *flags),
            ],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 1
        [line] = [each for each in done.stderr.splitlines() if each.startswith("error: ")]
        return line

    other = Authority(tmp_path)
    expired = other.server("expired", begins=-3 * DAY, ends=-DAY)
    cert = ("--tls-cert-file", str(site.server.cert_file))
    assert refused(*cert, "--tls-key-file", str(other.server().key_file)) == (
        f"error: cannot use tls_key_file {tmp_path}/server.key: it is not the key of the"
        f" certificate in {site.server.cert_file}"
    )
    assert "it is valid from" in refused(
        *("--tls-cert-file", str(expired.cert_file), "--tls-key-file", str(expired.key_file))
    )
    missing = f"error: cannot use tls_key_file {tmp_path}/none: there is no such file"
    assert refused(*cert, "--tls-key-file", f"{tmp_path}/none") == missing
    checked = subprocess.run(
        [WASMKILND, "config", *cert, "--tls-key-file", f"{tmp_path}/none"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (checked.returncode, checked.stderr.strip()) == (2, missing)
