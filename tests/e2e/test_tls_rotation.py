"""Certificates, CAs, tokens, policy and key set replaced while every kind of caller calls."""

from __future__ import annotations

import http.client
import itertools
import re
import shutil
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from wasmkiln.v1 import module_service_pb2 as pb
from wasmkiln.v1.module_service_pb2_grpc import ModuleServiceStub

from tests.authority import Authority, Pair
from tests.e2e import wasm
from tests.e2e.bearers import Metadata, add_token, bearer, reload, token_command, verdict
from tests.e2e.daemon import Configured, Daemon, RedisDaemon
from tests.e2e.over_tls import TlsSite, ask
from tests.e2e.processes import eventually
from tests.web_tokens import TestIssuer, jwt_table

POLICY = """
[[rule]]
identity = ["spiffe://example.org/*", "jwt:*"]
roles = ["compile"]

[[rule]]
identity = "dns:demoted.example.org"
roles = {roles}
"""
CALLS_BETWEEN = 5

Call = Callable[[], str]


@dataclass
class Caller:
    """Calls without a pause, and remembers when each call began and ended, and what came of it."""

    name: str
    call: Call
    calls: list[tuple[float, float, str]] = field(default_factory=list)

    @contextmanager
    def calling(self) -> Iterator[None]:
        """Call in a thread of its own for as long as the context lasts."""
        over = threading.Event()

        def run() -> None:
            while not over.is_set():
                began_s = time.monotonic()
                found = self.call()
                self.calls.append((began_s, time.monotonic(), found))

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join(60)

    def since(self, moment_s: float) -> Sequence[str]:
        """Return what came of the calls that began after a moment."""
        return [found for began_s, _, found in list(self.calls) if began_s > moment_s]


def local(address: str) -> str:
    return f"localhost:{address.rpartition(':')[2]}"


@dataclass
class House:
    """A daemon, and what its callers do."""

    daemon: Daemon
    tls: TlsSite
    stack: ExitStack

    def stub(self, pair: Pair | None = None) -> ModuleServiceStub:
        """Connect: to the address for tokens without a certificate."""
        found = self.daemon.address if pair else self.daemon._row("tokens").partition(" ")[0]
        return ModuleServiceStub(self.stack.enter_context(self.tls.channel(local(found), pair)))

    def kept(self, pair: Pair | None = None, metadata: Metadata = ()) -> Call:
        """Ask over one connection."""
        ask = self.stub(pair).GetCapabilities
        return lambda: verdict(ask, pb.GetCapabilitiesRequest(), metadata)

    def anew(self, pair: Pair) -> Call:
        """Ask over another connection each time."""

        def call() -> str:
            with self.tls.channel(local(self.daemon.address), pair) as channel:
                ask = ModuleServiceStub(channel).GetCapabilities
                return verdict(ask, pb.GetCapabilitiesRequest())

        return call

    def compiling(self, pair: Pair) -> Call:
        """Compile another module at each call, over one connection."""
        compile_, tags = self.stub(pair).Compile, itertools.count(7000)
        return lambda: verdict(compile_, pb.CompileRequest(module=wasm.adder(next(tags))))

    def loading(self, pair: Pair) -> Call:
        """Load a module, over one connection."""
        load = self.stub(pair).Load
        return lambda: verdict(load, pb.LoadRequest(module=wasm.adder(1)))

    def line(self, pair: Pair | None = None) -> http.client.HTTPSConnection:
        """Return a connection for pages."""
        context = ssl.create_default_context(cafile=str(self.tls.authority.ca_file))
        if pair:
            context.load_cert_chain(pair.cert_file, pair.key_file)
        address = self.daemon.admin_url.removeprefix("http://")
        line = http.client.HTTPSConnection(address, timeout=60, context=context)
        self.stack.callback(line.close)
        return line

    def scraping(self, pair: Pair | None = None, token: str = "", *, anew: bool = False) -> Call:
        """Read a page, over one connection or another each time."""
        line = self.line(pair)

        def call() -> str:
            line.request("GET", "/readyz", headers=dict(bearer(token)) if token else {})
            answer = line.getresponse()
            answer.read()
            if anew:
                line.close()
            return "" if answer.status == 200 else str(answer.status)

        return call

    def served(self) -> set[bytes]:
        """Return the certificates that new connections are shown at two of its ports."""
        addresses = (self.daemon.admin_url, self.daemon._row("tokens").partition(" ")[0])
        ports = [int(address.rpartition(":")[2]) for address in addresses]
        shown = (ssl.get_server_certificate(("127.0.0.1", port), timeout=30) for port in ports)
        return {each.encode() for each in shown}


def test_no_call_is_dropped_and_none_is_let_in(lean_state_dir: Path, tmp_path: Path) -> None:
    tls, old_ca = TlsSite(tmp_path / "site"), Authority(tmp_path / "old")
    ours = tls.authority.ca_file.read_bytes()
    tls.client_ca_file.write_bytes(ours + old_ca.ca_file.read_bytes())
    stays, goes = TestIssuer(key_id="stays"), TestIssuer(key_id="goes")
    policy, key_set = tmp_path / "policy.toml", tmp_path / "keys.json"
    policy.write_text(jwt_table(key_set) + POLICY.format(roles='["compile"]'))
    key_set.write_bytes(stays.key_set(goes))
    tokens = {name: add_token(lean_state_dir, name, "compile") for name in ("stays", "goes")}
    flags = tls.flags("--token-listen", "127.0.0.1:0", "--policy-file", str(policy))
    old = old_ca.client(spiffe="spiffe://example.org/b")
    demoted = tls.authority.client("demoted", dns="demoted.example.org")
    with RedisDaemon(lean_state_dir, flags) as daemon, ExitStack() as stack:
        house = House(daemon, tls, stack)
        stay = [
            Caller("certificate", house.kept(tls.client)),
            Caller("certificate that compiles", house.compiling(tls.client)),
            Caller("certificate over new connections", house.anew(tls.client)),
            Caller("token", house.kept(metadata=bearer(tokens["stays"]))),
            Caller("jwt", house.kept(metadata=bearer(stays.token()))),
            Caller("scraper", house.scraping(token=tokens["stays"])),
            Caller("scraper over new connections", house.scraping(tls.client, anew=True)),
        ]
        loses = Caller("demoted", house.loading(demoted))
        go = [
            loses,
            Caller("certificate", house.kept(old)),
            Caller("certificate over new connections", house.anew(old)),
            Caller("token", house.kept(metadata=bearer(tokens["goes"]))),
            Caller("jwt", house.kept(metadata=bearer(goes.token()))),
            Caller("scraper", house.scraping(old)),
        ]
        for caller in (*stay, *go):
            stack.enter_context(caller.calling())

        def all_called(since_s: float) -> None:
            eventually(
                lambda: all(len(one.since(since_s)) >= CALLS_BETWEEN for one in (*stay, *go)),
                "some callers do not get on",
                120,
            )

        def renew(name: str) -> bytes:
            fresh = tls.authority.server(name)
            tls.server.cert_file.write_bytes(fresh.cert)
            tls.server.key_file.write_bytes(fresh.key)
            return fresh.cert

        all_called(0)
        before_s = time.monotonic()
        fresh = renew("fresh")
        tls.client_ca_file.write_bytes(ours)
        policy.write_text(jwt_table(key_set) + POLICY.format(roles='["read"]'))
        key_set.write_bytes(stays.key_set())
        token_command(lean_state_dir, "revoke", "goes")
        reload(daemon)
        answered_s = time.monotonic()
        assert house.served() == {fresh}
        all_called(answered_s)

        fresh = renew("fresher")  # Without a signal.
        eventually(lambda: house.served() == {fresh}, "the new certificate is not served")
        all_called(time.monotonic())

        for caller in stay:
            assert {found for _, _, found in caller.calls} == {""}, caller.name
        for caller in go:
            assert {found for _, ended_s, found in caller.calls if ended_s < before_s} == {""}
            assert "" not in caller.since(answered_s), caller.name
        assert set(loses.since(answered_s)) == {"ROLE_MISSING compile"}


def test_broken_files_change_nothing(lean_state_dir: Path, tmp_path: Path) -> None:
    tls = TlsSite(tmp_path / "tls")
    good, token = tls.server.key, add_token(lean_state_dir, "ops", "metrics")
    with Daemon(lean_state_dir, tls.flags()) as daemon, ExitStack() as stack:
        house = House(daemon, tls, stack)
        asks = house.anew(tls.client)
        shutil.copy(Authority(tmp_path / "other").server().key_file, tls.server.key_file)
        daemon.process.send_signal(1)
        told = daemon.wait_for_log("cannot reload: what cannot be used stays as it was")
        assert "cannot use tls_key_file" in told
        assert "it is not the key of the certificate" in told
        tls.client_ca_file.write_text("nothing")
        daemon.wait_for_log("cannot read changed files: they change nothing")
        assert asks() == ""
        line = house.line()
        line.request("GET", "/metrics", headers=dict(bearer(token)))
        page = line.getresponse().read().decode()
        [failures] = re.findall(r"^wasmkiln_tls_reload_failures_total (\S+)", page, re.MULTILINE)
        assert float(failures) >= 2
        tls.server.key_file.write_bytes(good)
        tls.client_ca_file.write_bytes(tls.authority.ca_file.read_bytes())
        reload(daemon)
        assert asks() == ""
    assert "PRIVATE KEY" not in daemon.log


def test_turning_tls_off_needs_a_restart(lean_state_dir: Path, tmp_path: Path) -> None:
    tls = TlsSite(tmp_path / "tls")
    files = {
        "tls_cert_file": str(tls.server.cert_file),
        "tls_key_file": str(tls.server.key_file),
        "tls_client_ca_file": str(tls.client_ca_file),
    }
    with Configured(lean_state_dir, **files) as one:
        one.write(**dict.fromkeys(files, ""))
        told = [(line["event"], line.get("setting")) for line in one.reload()]
        assert {("setting needs a restart", setting) for setting in files} <= {*told}
        with tls.channel(local(one.daemon.address), tls.client) as channel:
            assert ask(channel).engines
        moved = shutil.copy(tls.server.cert_file, tmp_path / "moved.pem")
        one.write(**{**files, "tls_cert_file": str(moved)})
        assert "tls_cert_file" in [line.get("setting") for line in one.reload()]
