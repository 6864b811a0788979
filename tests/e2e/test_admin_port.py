"""Strangers at the admin port take nothing from calls, jobs, scrapes and probes."""

from __future__ import annotations

import http.client
import itertools
import json
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import pytest
from wasmkiln.v1 import module_service_pb2 as pb

from tests.authority import Authority, Pair
from tests.e2e.bearers import add_token
from tests.e2e.callers import Caller
from tests.e2e.daemon import Daemon, fresh_state
from tests.e2e.floods import (
    BEHIND,
    HALF,
    STRANGE,
    UPGRADE,
    Connect,
    over_tcp,
    strangers,
    stuffed,
    with_little_room,
)
from tests.e2e.over_tls import TlsSite, ask
from tests.e2e.processes import eventually, memory_of
from tests.e2e.programs import WASMKILND
from tests.e2e.wasm import constant
from tests.sizes import FULL, size

FEW, TOO_FEW = 700, "too few file descriptors"
"""Descriptors of the daemon: fewer than there are strangers, and what it says of that."""
STRANGERS = 1600
FEWER = 200
"""The number of strangers that ask for something, or send a lot."""
HONEST_S = size(2.5, 0.8)
"""For how long the honest go on, and longer if need be: until each was served ``LEAST`` times."""
LEAST = 4
# Of what several thousand connections by strangers may leave in the log.
LOG_BYTES = 200_000

ENGINE = "wasmtime-50.0.1"
_tags = itertools.count(1)
Page = Callable[[], http.client.HTTPConnection]


def started(folder: Path, *flags: str) -> Daemon:
    command = ("prlimit", f"--nofile={FEW}:{FEW}", WASMKILND)
    return Daemon(fresh_state(folder, engines=(ENGINE,)), flags, command=command)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with started(tmp_path_factory.mktemp("plain") / "state", "--workers", "2") as running:
        yield running


def descriptors_of(daemon: Daemon) -> int:
    return len(list(Path(f"/proc/{daemon.pid}/fd").iterdir()))


def admin_of(daemon: Daemon) -> str:
    return daemon.admin_url.removeprefix("http://")


# Each call on a connection of its own, which takes a descriptor, and without retries.


def calls(daemon: Daemon) -> list[Callable[[], object]]:
    """Return what honest callers do at the gRPC port."""

    def hit() -> None:
        with Caller(daemon) as caller:
            caller.stub.GetCapabilities(pb.GetCapabilitiesRequest(), timeout=60)

    def compile_another() -> None:
        with Caller(daemon) as caller:
            assert list(caller.compile(constant(next(_tags)), timeout=60))

    return [hit, compile_another]


def scrapes(connect: Page, token: str = "") -> list[Callable[[], object]]:
    """Return what honest callers do at the admin port."""

    def get(page: str) -> None:
        with closing(connect()) as connection:
            connection.request("GET", page, headers={"Authorization": f"Bearer {token}"})
            answer = connection.getresponse()
            assert answer.status == 200, answer.status
            assert answer.read()

    return [lambda: get("/metrics"), lambda: get("/readyz")]


def all_are_served(daemon: Daemon, works: list[Callable[[], object]]) -> None:
    """Do each, one after the other in a thread of its own, for a while; then wait for order."""
    until_s = time.monotonic() + HONEST_S

    def repeat(work: Callable[[], object]) -> None:
        done = 0
        while time.monotonic() < until_s or done < LEAST:
            work()
            done += 1
            time.sleep(0.02)

    with ThreadPoolExecutor(len(works)) as pool:
        for each in [pool.submit(repeat, work) for work in works]:
            each.result()
    assert descriptors_of(daemon) < FEW - 64


def all_is_as_before(daemon: Daemon, descriptors: int, logged: int) -> None:
    eventually(lambda: descriptors_of(daemon) <= descriptors + 40, "descriptors do not come back")
    assert len(daemon.log) - logged < LOG_BYTES
    assert "Traceback" not in daemon.log


IDLE = {"half", "silent", "http2", "no http"}
# One kind of strangers after the other, or all that ask for nothing at once, and all that do.
KINDS = [{what} for what in STRANGE] if FULL else [IDLE, STRANGE.keys() - IDLE]


@pytest.mark.parametrize("kinds", KINDS, ids=lambda kinds: "-".join(sorted(kinds)))
def test_strangers_by_the_thousand_take_nothing_from_the_honest(
    daemon: Daemon, kinds: Set[str]
) -> None:
    before = descriptors_of(daemon), len(daemon.log)
    count = (STRANGERS if kinds <= IDLE else FEWER) // len(kinds)
    address = admin_of(daemon)

    def page() -> http.client.HTTPConnection:
        return http.client.HTTPConnection(address, timeout=60)

    with ExitStack() as stack:
        for what in kinds:
            stack.enter_context(strangers(over_tcp(address), STRANGE[what], count))
        all_are_served(daemon, [*calls(daemon), *scrapes(page)])
    all_is_as_before(daemon, *before)


@pytest.mark.parametrize("behind", BEHIND)
def test_bytes_behind_an_unread_answer_fill_no_memory(daemon: Daemon, behind: str) -> None:
    asked, (end, more) = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n", BEHIND[behind]
    opening, before = (asked + b"\r\n") * 20 + asked + end, memory_of(daemon.pid)
    with stuffed(with_little_room(admin_of(daemon)), opening, more, 128):
        grown = memory_of(daemon.pid) - before
        assert daemon.metrics()  # Others are served.
    print(f"{grown / 2**20:.0f} MiB more")
    assert grown < 128 * 2**20


@pytest.mark.parametrize("end", [UPGRADE, b"Content-Length: 5\r\n\r\nhello"])
def test_a_connection_ends_after_a_body_or_an_upgrade(daemon: Daemon, end: bytes) -> None:
    """What may follow on it is a request to some proxies, and none to others."""
    asked = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"
    with over_tcp(admin_of(daemon))() as sock:
        sock.sendall(asked + end)
        time.sleep(0.1)
        with suppress(ConnectionError):
            sock.sendall(asked + b"Connection: close\r\n\r\n")
        got = b""
        with suppress(ConnectionError):
            while part := sock.recv(4096):
                got += part
    assert got.count(b"HTTP/1.1 200 OK") == 1


def test_a_unix_socket_is_as_hard_to_take(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"

    def over_unix(*, patient: bool) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.setblocking(patient)
        try:
            sock.connect(str(path))
        except OSError:
            sock.close()
            raise
        return sock

    def page() -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection("kiln", timeout=60)
        connection.sock = over_unix(patient=True)
        return connection

    with started(tmp_path / "state", "--admin-listen", f"unix:{path}") as daemon:
        with strangers(lambda: over_unix(patient=False), HALF, STRANGERS):
            all_are_served(daemon, [*calls(daemon), *scrapes(page)])
        assert len(daemon.log) < LOG_BYTES


def test_connections_to_the_grpc_port_leave_descriptors_for_jobs(daemon: Daemon) -> None:
    with Caller(daemon) as caller:
        assert list(caller.compile(constant(next(_tags))))
        with strangers(over_tcp(daemon.address), b"PRI * HTTP/2.0", STRANGERS):
            for _ in range(20):
                assert list(caller.compile(constant(next(_tags))))
                assert descriptors_of(daemon) < FEW - 64
    assert "cannot start a job" not in daemon.log
    # The daemon has said so, and what to do.
    [said] = [one for one in map(json.loads, daemon.log_lines) if one["event"] == TOO_FEW]
    assert (said["level"], said["allowed"]) == ("warning", FEW)
    assert said["needed"] > 1024 + 512
    assert 16 <= said["max_connections"] < 100
    assert "max_connections" in said["advice"]


class TlsPort:
    """A daemon whose admin port speaks TLS, and a CA that one of its CAs has signed."""

    def __init__(self, folder: Path) -> None:
        self.tls = TlsSite(folder / "tls")
        root = Authority(folder / "root", path_length=None)
        self.between = root.authority("between")
        self.tls.client_ca_file.write_bytes(root.ca_file.read_bytes())
        self.token = add_token(folder / "state", "prometheus", "metrics")
        self.daemon = started(folder / "state", *self.tls.flags())
        self.context = ssl.create_default_context(cafile=str(self.tls.authority.ca_file))

    def page(
        self, source: str = "127.0.0.1", context: ssl.SSLContext | None = None
    ) -> http.client.HTTPConnection:
        return http.client.HTTPSConnection(
            admin_of(self.daemon),
            timeout=60,
            context=context or self.context,
            source_address=(source, 0),
        )


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsPort]:
    one = TlsPort(tmp_path_factory.mktemp("tls"))
    with one.daemon:
        yield one


@pytest.mark.parametrize("what", ["half a hello", "hello", "half a request"])
def test_strangers_take_nothing_over_tls(port: TlsPort, what: str) -> None:
    outgoing, address = ssl.MemoryBIO(), admin_of(port.daemon)
    session = port.context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        session.do_handshake()
    hello = outgoing.read()

    def after_a_handshake() -> socket.socket:
        plain = over_tcp(address)()
        with port.context.wrap_socket(plain, server_hostname="localhost") as session:
            session.sendall(HALF)
            return socket.socket(fileno=session.detach())

    rows: dict[str, tuple[Connect, bytes, int]] = {
        "half a hello": (over_tcp(address), hello[:100], STRANGERS),
        "hello": (over_tcp(address), hello, STRANGERS),
        "half a request": (after_a_handshake, b"", FEWER),
    }
    # Handshakes cost time, so that only another address is sure to get its turn.
    source = "127.0.0.2" if what == "hello" else "127.0.0.1"
    before = descriptors_of(port.daemon), len(port.daemon.log)
    with strangers(*rows[what]):
        all_are_served(port.daemon, scrapes(lambda: port.page(source), port.token))
    all_is_as_before(port.daemon, *before)


def test_of_two_tokens_none_counts(port: TlsPort) -> None:
    with closing(port.page()) as connection:
        connection.putrequest("GET", "/metrics")
        for token in (port.token, "wk_another"):
            connection.putheader("Authorization", f"Bearer {token}")
        connection.endheaders()
        assert connection.getresponse().status == 401


def test_a_certificate_counts_whose_ca_one_of_the_daemons_has_signed(port: TlsPort) -> None:
    """And that of another CA reads no page."""

    def context(caller: Pair) -> ssl.SSLContext:
        made = ssl.create_default_context(cafile=str(port.tls.authority.ca_file))
        made.load_cert_chain(caller.cert_file, caller.key_file)
        return made

    caller = port.between.client(spiffe="spiffe://example.org/builder/1")
    caller.cert_file.write_bytes(caller.cert + port.between.ca_file.read_bytes())
    ours, session = context(caller), None
    for _ in range(2):  # The second would go on with the first one's session.
        plain = over_tcp(admin_of(port.daemon))()
        with ours.wrap_socket(plain, server_hostname="localhost", session=session) as connection:
            connection.sendall(b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert connection.recv(4096).startswith(b"HTTP/1.1 200 ")
            session = connection.session
    with port.tls.channel(port.daemon.address, caller) as channel:
        assert ask(channel).caller.identity == "spiffe://example.org/builder/1"
    stranger = port.tls.authority.client("stranger", spiffe="spiffe://example.org/builder/1")
    theirs = context(stranger)
    for get in scrapes(lambda: port.page(context=theirs), port.token):
        with pytest.raises((OSError, http.client.HTTPException)):
            get()
