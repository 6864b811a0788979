"""Certificates, keys and CAs replaced under load: no call is dropped, and no removed CA counts."""

from __future__ import annotations

import shutil
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from wasmkiln.v1 import module_service_pb2 as pb
from wasmkiln.v1.module_service_pb2_grpc import ModuleServiceStub

from tests.authority import Authority, Pair
from tests.e2e import wasm
from tests.e2e.daemon import Daemon
from tests.e2e.over_tls import TlsSite, ask

RELOADED = '"event": "reloaded"'


@pytest.fixture
def site(tmp_path: Path) -> TlsSite:
    return TlsSite(tmp_path / "tls")


@pytest.fixture
def daemon(site: TlsSite, lean_state_dir: Path, tmp_path: Path) -> Iterator[Daemon]:
    flags = site.flags("--admin-listen", f"unix:{tmp_path}/admin.sock")
    with Daemon(lean_state_dir, flags) as running:
        yield running


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def count(daemon: Daemon, words: str) -> int:
    return sum(words in line for line in list(daemon.log_lines))


def hang_up(daemon: Daemon, words: str = RELOADED) -> None:
    """Send SIGHUP; return once a new line of the log has ``words``."""
    before = count(daemon, words)
    daemon.process.send_signal(signal.SIGHUP)
    wait_until(lambda: count(daemon, words) > before)


def address(daemon: Daemon) -> str:
    return f"localhost:{daemon.address.rpartition(':')[2]}"


def served_certificate(daemon: Daemon, site: TlsSite) -> str:
    """Return the certificate that a new connection is shown."""
    context = ssl.create_default_context(cafile=str(site.authority.ca_file))
    context.load_cert_chain(site.client.cert_file, site.client.key_file)
    port = int(daemon.address.rpartition(":")[2])
    with (
        socket.create_connection(("127.0.0.1", port), timeout=30) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as secured,
    ):
        shown = secured.getpeercert(binary_form=True)
    assert shown
    return ssl.DER_cert_to_PEM_cert(shown)


def metric(daemon: Daemon, name: str) -> float:
    path = daemon._row("metrics").partition("/metrics")[0].removeprefix("unix:")
    with socket.socket(socket.AF_UNIX) as caller:
        caller.settimeout(30)
        caller.connect(path)
        caller.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        page = b"".join(iter(lambda: caller.recv(65536), b"")).decode()
    [line] = [line for line in page.splitlines() if line.startswith(f"wasmkiln_{name} ")]
    return float(line.rpartition(" ")[2])


class Callers:
    """Threads that call all the time: over one connection each, and over new ones."""

    def __init__(self, daemon: Daemon, site: TlsSite, pair: Pair) -> None:
        self._daemon, self._site, self._pair = daemon, site, pair
        self._ended = threading.Event()
        self.calls = [0, 0, 0]
        self.failures: list[str] = []

    @contextmanager
    def running(self) -> Iterator[Callers]:
        works = (self._ask_on_one, self._compile_on_one, self._ask_on_new_ones)
        threads = [
            threading.Thread(target=self._run, args=(number, work))
            for number, work in enumerate(works)
        ]
        for thread in threads:
            thread.start()
        try:
            self.go_on()
            yield self
        finally:
            self._ended.set()
            for thread in threads:
                thread.join(60)
        assert self.failures == []

    def go_on(self) -> None:
        """Wait until each thread has made two calls more, the first of which may be old."""
        wanted = [calls + 2 for calls in self.calls]
        wait_until(
            lambda: (
                bool(self.failures)
                or all(now >= least for now, least in zip(self.calls, wanted, strict=True))
            )
        )
        assert self.failures == []

    def _run(self, number: int, work: Callable[[Callable[[], bool]], None]) -> None:
        def more() -> bool:
            self.calls[number] += 1
            return not self._ended.is_set()

        try:
            work(more)
        except grpc.RpcError as failure:
            self.failures.append(f"{work.__name__}: {failure.code()} {failure.details()}")

    def _channel(self) -> grpc.Channel:
        return self._site.channel(address(self._daemon), self._pair)

    def _ask_on_one(self, more: Callable[[], bool]) -> None:
        with self._channel() as channel:
            while more():
                ask(channel)

    def _compile_on_one(self, more: Callable[[], bool]) -> None:
        number = 7000
        with self._channel() as channel:
            stub = ModuleServiceStub(channel)
            while more():
                number += 1
                request = pb.CompileRequest(module=wasm.adder(number))
                for _ in stub.Compile(request, timeout=60):
                    pass

    def _ask_on_new_ones(self, more: Callable[[], bool]) -> None:
        while more():
            with self._channel() as channel:
                ask(channel)


def test_the_servers_certificate_is_replaced_under_load(site: TlsSite, daemon: Daemon) -> None:
    with Callers(daemon, site, site.client).running() as callers:
        assert served_certificate(daemon, site).encode() == site.server.cert
        replaced = site.authority.server()
        hang_up(daemon)
        assert served_certificate(daemon, site).encode() == replaced.cert
        callers.go_on()
        # Without a signal.
        replaced = site.authority.server()
        before = count(daemon, "TLS files reloaded")
        wait_until(lambda: count(daemon, "TLS files reloaded") > before)
        assert served_certificate(daemon, site).encode() == replaced.cert
        callers.go_on()


def test_no_certificate_of_a_removed_ca_is_let_in(
    site: TlsSite, daemon: Daemon, tmp_path: Path
) -> None:
    other = Authority(tmp_path / "other")
    stranger = other.client(spiffe="spiffe://example.org/builder/2")
    old, new = site.authority.ca_file.read_bytes(), other.ca_file.read_bytes()
    with site.channel(address(daemon), site.client) as connected:
        ask(connected)
        with site.channel(address(daemon), stranger) as early, pytest.raises(grpc.RpcError):
            ask(early)
        site.client_ca_file.write_bytes(old + new)
        hang_up(daemon)
        with Callers(daemon, site, stranger).running() as callers:
            ask(connected)
            site.client_ca_file.write_bytes(new)
            hang_up(daemon)
            # Over a connection that was made before.
            with pytest.raises(grpc.RpcError) as refusal:
                ask(connected)
            assert refusal.value.code() is grpc.StatusCode.UNAUTHENTICATED
            # And over a new one.
            with site.channel(address(daemon), site.client) as late:
                with pytest.raises(grpc.RpcError) as refusal:
                    ask(late)
                assert refusal.value.code() is grpc.StatusCode.UNAVAILABLE
            callers.go_on()


def test_broken_files_change_nothing(site: TlsSite, daemon: Daemon, tmp_path: Path) -> None:
    good = site.server.key
    with Callers(daemon, site, site.client).running() as callers:
        before = served_certificate(daemon, site)
        shutil.copy(Authority(tmp_path / "other").server().key_file, site.server.key_file)
        hang_up(daemon, "cannot reload: what cannot be used stays as it was")
        line = daemon.wait_for_log("cannot reload: what cannot be used stays as it was")
        assert "cannot use tls_key_file" in line
        assert "it is not the key of the certificate" in line
        site.client_ca_file.write_text("nothing")
        daemon.wait_for_log("cannot read changed files: they change nothing")
        assert served_certificate(daemon, site) == before
        assert metric(daemon, "tls_reload_failures_total") >= 2
        callers.go_on()
        site.server.key_file.write_bytes(good)
        site.client_ca_file.write_bytes(site.authority.ca_file.read_bytes())
        hang_up(daemon)
        callers.go_on()
    assert "PRIVATE KEY" not in daemon.log


def test_turning_tls_off_needs_a_restart(
    site: TlsSite, lean_state_dir: Path, tmp_path: Path
) -> None:
    file = tmp_path / "wasmkilnd.toml"
    files = (
        f'tls_cert_file = "{site.server.cert_file}"\n'
        f'tls_key_file = "{site.server.key_file}"\n'
        f'tls_client_ca_file = "{site.client_ca_file}"\n'
    )
    file.write_text(files)
    flags = ("--config", str(file), "--redis-url", "none", "--workers", "1")
    with Daemon(lean_state_dir, flags) as daemon:
        file.write_text("")
        hang_up(daemon)
        for setting in ("tls_cert_file", "tls_key_file", "tls_client_ca_file"):
            assert f'"setting": "{setting}"' in daemon.wait_for_log(
                f'"setting needs a restart", "setting": "{setting}"'
            )
        with site.channel(address(daemon), site.client) as channel:
            ask(channel)
        moved = tmp_path / "moved.pem"
        shutil.copy(site.server.cert_file, moved)
        file.write_text(files.replace(str(site.server.cert_file), str(moved)))
        hang_up(daemon)
        assert "tls_cert_file" in daemon.wait_for_log('"setting changed"')
