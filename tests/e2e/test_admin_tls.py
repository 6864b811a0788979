"""The admin port over TLS: who reads a page, and what strangers and new certificates do to it."""

from __future__ import annotations

import http.client
import os
import shutil
import signal
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.authority import Authority, Pair
from tests.e2e.bearers import add_token
from tests.e2e.daemon import ONE_ENGINE, Daemon, fresh_state
from tests.e2e.over_tls import TlsSite
from tests.e2e.over_tls import ask as ask_grpc
from tests.e2e.processes import eventually
from tests.e2e.programs import Installed
from tests.e2e.strangers import HALF, Strangers, over_tcp
from tests.e2e.test_admin_port import LOG_BYTES, STRANGERS, descriptors_of, with_descriptors
from tests.sizes import size

METRICS_OF_SCRAPERS = """
[[rule]]
identity = "spiffe://example.org/scraper"
roles = ["metrics"]
"""
HONEST_S = size(2.5, 0.8)
LEAST = 4
FEW = 900
"""Descriptors of the daemon: fewer than there are strangers."""


class Site:
    """A daemon whose admin port speaks TLS, and those who ask it."""

    def __init__(self, folder: Path) -> None:
        self.tls = TlsSite(folder / "tls")
        self.scraper = self.tls.authority.client("scraper", spiffe="spiffe://example.org/scraper")
        policy = folder / "policy.toml"
        policy.write_text(METRICS_OF_SCRAPERS)
        state = fresh_state(folder / "state", engines=ONE_ENGINE)
        self.token = add_token(state, "prometheus", "metrics")
        flags = self.tls.flags("--policy-file", str(policy))
        self.daemon = Daemon(state, flags, command=with_descriptors(FEW))

    @property
    def address(self) -> str:
        return self.daemon.admin_url.removeprefix("http://")

    def context(self, pair: Pair | None = None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.tls.authority.ca_file))
        if pair:
            context.load_cert_chain(pair.cert_file, pair.key_file)
        return context

    def connect(
        self, pair: Pair | None = None, source: str = "127.0.0.1"
    ) -> http.client.HTTPSConnection:
        return http.client.HTTPSConnection(
            self.address, timeout=60, context=self.context(pair), source_address=(source, 0)
        )

    def get(
        self, page: str, token: str = "", pair: Pair | None = None, source: str = "127.0.0.1"
    ) -> int:
        connection = self.connect(pair, source)
        try:
            return ask(connection, page, token)
        finally:
            connection.close()

    def replace(self, path: Path, by: Path) -> None:
        new = path.with_suffix(".new")
        shutil.copy(by, new)
        new.replace(path)

    def reload(self) -> None:
        seen = self.daemon.log.count('"reloaded"')
        self.daemon.process.send_signal(signal.SIGHUP)
        eventually(lambda: self.daemon.log.count('"reloaded"') > seen, "not reloaded")


def ask(connection: http.client.HTTPSConnection, page: str, token: str = "") -> int:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    connection.request("GET", page, headers=headers)
    answer = connection.getresponse()
    answer.read()
    return answer.status


@pytest.fixture(scope="module")
def site(engines: Installed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    one = Site(tmp_path_factory.mktemp("site"))
    with one.daemon:
        yield one


@pytest.fixture
def own_site(engines: Installed, tmp_path: Path) -> Iterator[Site]:
    one = Site(tmp_path)
    with one.daemon:
        yield one


def hello() -> bytes:
    """Return a whole ClientHello."""
    outgoing = ssl.MemoryBIO()
    session = ssl.create_default_context().wrap_bio(
        ssl.MemoryBIO(), outgoing, server_hostname="localhost"
    )
    with pytest.raises(ssl.SSLWantReadError):
        session.do_handshake()
    return outgoing.read()


def half_over_tls(site: Site) -> Callable[[], socket.socket]:
    """Return what makes a connection that ends its handshake and sends half a request."""
    context = site.context()

    def connect() -> socket.socket:
        plain = over_tcp(site.address)()
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        session = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
        try:
            while True:
                try:
                    session.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    plain.sendall(outgoing.read())
                    received = plain.recv(65536)
                    incoming.write(received) if received else incoming.write_eof()
            session.write(HALF)
            plain.sendall(outgoing.read())
        except OSError:  # of which those of TLS are some
            plain.close()
            raise
        return plain

    return connect


def test_a_token_or_a_certificate_will_do_and_no_other(site: Site) -> None:
    builder = site.tls.client  # with the role compile at most
    for page in ("/metrics", "/healthz", "/readyz"):
        assert site.get(page) == 401
        assert site.get(page, "wk_wrong") == 401
        assert site.get(page, site.token) == 200
        assert site.get(page, pair=site.scraper) == 200
    assert site.get("/metrics", pair=builder) == 403
    assert site.get("/no-page") == 401
    stranger = Authority(site.tls.authority.folder / "stranger").client(
        spiffe="spiffe://example.org/scraper"
    )
    with pytest.raises((ssl.SSLError, OSError, http.client.HTTPException)):
        site.get("/metrics", pair=stranger)


def test_of_two_tokens_none_counts(site: Site) -> None:
    connection = site.connect()
    connection.putrequest("GET", "/metrics")
    for token in (site.token, "wk_another"):
        connection.putheader("Authorization", f"Bearer {token}")
    connection.endheaders()
    assert connection.getresponse().status == 401
    connection.close()


def test_a_certificate_counts_whose_ca_one_of_the_daemons_has_signed(tmp_path: Path) -> None:
    tls = TlsSite(tmp_path / "tls")
    root = Authority(tmp_path / "root", path_length=None)
    tls.client_ca_file.write_bytes(root.ca_file.read_bytes())
    between = root.authority("between")
    caller = between.client(spiffe="spiffe://example.org/builder/1")
    caller.cert_file.write_bytes(caller.cert + between.ca_file.read_bytes())
    context = ssl.create_default_context(cafile=str(tls.authority.ca_file))
    context.load_cert_chain(caller.cert_file, caller.key_file)
    state = fresh_state(tmp_path / "state", engines=ONE_ENGINE)
    with Daemon(state, tls.flags()) as daemon:
        session = None
        for _ in range(2):  # The second would go on with the first one's session.
            host, _, port = daemon.admin_url.removeprefix("http://").rpartition(":")
            plain = socket.create_connection((host, int(port)), timeout=60)
            with context.wrap_socket(plain, server_hostname=host, session=session) as connection:
                connection.sendall(b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n")
                assert connection.recv(4096).startswith(b"HTTP/1.1 200 ")
                session = connection.session
        with tls.channel(daemon.address, caller) as channel:
            assert ask_grpc(channel).caller.identity == "spiffe://example.org/builder/1"


@pytest.mark.parametrize("what", ["silent", "half a hello", "hello", "half a request"])
def test_strangers_take_nothing_from_those_who_scrape(site: Site, what: str) -> None:
    connect: Callable[[], socket.socket] = over_tcp(site.address)
    sent, count = {"silent": b"", "half a hello": hello()[:100]}.get(what, hello()), STRANGERS
    if what == "half a request":
        connect, sent, count = half_over_tls(site), b"", 200
    # Handshakes cost time, so that only another address is sure to get its turn.
    source = "127.0.0.2" if what == "hello" else "127.0.0.1"
    before, logged = descriptors_of(site.daemon), len(site.daemon.log)
    until_s = time.monotonic() + HONEST_S

    def scrape(page: str) -> int:
        done = 0
        while time.monotonic() < until_s or done < LEAST:
            assert site.get(page, site.token, source=source) == 200
            done += 1
        return done

    with Strangers(connect, sent, count), ThreadPoolExecutor(2) as pool:
        until_s = time.monotonic() + HONEST_S
        assert min(pool.map(scrape, ("/metrics", "/readyz"))) >= LEAST
        assert descriptors_of(site.daemon) < FEW - 64
    eventually(lambda: descriptors_of(site.daemon) <= before + 40, "descriptors do not come back")
    assert len(site.daemon.log) - logged < LOG_BYTES
    assert "Traceback" not in site.daemon.log


def test_new_certificates_drop_no_request_and_old_ones_let_nobody_in(own_site: Site) -> None:
    site = own_site
    kept, kept_by_certificate = site.connect(), site.connect(site.scraper)
    assert ask(kept, "/readyz", site.token) == 200
    assert ask(kept_by_certificate, "/metrics") == 200
    ended = False

    def scrape() -> int:
        done = 0
        while not ended:
            assert site.get("/readyz", site.token) == 200
            assert ask(kept, "/readyz", site.token) == 200
            done += 1
        return done

    def served() -> bytes:
        connection = site.connect()
        connection.connect()
        shown = connection.sock.getpeercert(binary_form=True) or b""
        connection.close()
        return shown

    before = served()
    renewed = site.tls.authority.server("renewed")
    other = Authority(site.tls.authority.folder, "other")
    with ThreadPoolExecutor(1) as pool:
        scraping = pool.submit(scrape)
        site.replace(site.tls.server.key_file, renewed.key_file)
        site.replace(site.tls.server.cert_file, renewed.cert_file)
        os.chmod(site.tls.server.key_file, 0o600)  # noqa: PTH101
        site.reload()
        assert served() != before
        site.replace(site.tls.client_ca_file, other.ca_file)
        site.reload()
        assert ask(kept_by_certificate, "/metrics") == 401
        ended = True
        assert scraping.result(60) > 0
    for connection in (kept, kept_by_certificate):
        connection.close()
