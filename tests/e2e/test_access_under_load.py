"""Certificates, tokens, policy and key set replaced together, while every kind of caller calls."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from wasmkiln.v1 import module_service_pb2 as pb
from wasmkiln.v1.module_service_pb2_grpc import ModuleServiceStub

from tests.authority import Authority
from tests.e2e import wasm
from tests.e2e.bearers import Metadata, add_token, bearer, token_command, verdict
from tests.e2e.daemon import RedisDaemon
from tests.e2e.over_tls import TlsSite
from tests.e2e.processes import eventually
from tests.e2e.test_access import reload
from tests.web_tokens import TestIssuer, jwt_table

POLICY = """
[[rule]]
identity = ["spiffe://example.org/*", "jwt:*"]
roles = ["compile"]

[[rule]]
identity = "dns:demoted.example.org"
roles = {roles}
"""
CALLS_BETWEEN = 20

Call = Callable[[], str]


@dataclass
class Caller:
    """Calls without a pause, and remembers when each call began and ended, and what came of it."""

    name: str
    call: Call
    calls: list[tuple[float, float, str]] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def calling(self) -> Iterator[None]:
        """Call in a thread of its own for as long as the context lasts."""
        thread = threading.Thread(target=self._run)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join(60)

    def _run(self) -> None:
        while not self._stop.is_set():
            began_s = time.monotonic()
            found = self.call()
            self.calls.append((began_s, time.monotonic(), found))

    def since(self, moment_s: float) -> Sequence[str]:
        """Return what came of the calls that began after a moment."""
        return [found for began_s, _, found in list(self.calls) if began_s > moment_s]


def _caller(
    stack: ExitStack, name: str, channel: grpc.Channel, metadata: Metadata, *, loads: bool = False
) -> Caller:
    stub = ModuleServiceStub(stack.enter_context(channel))
    if loads:
        request = pb.LoadRequest(module=wasm.adder(1))
        return Caller(name, lambda: verdict(stub.Load, request, metadata))
    return Caller(
        name, lambda: verdict(stub.GetCapabilities, pb.GetCapabilitiesRequest(), metadata)
    )


def test_no_call_is_dropped_and_none_is_let_in(lean_state_dir: Path, tmp_path: Path) -> None:
    site, old_ca = TlsSite(tmp_path / "site"), Authority(tmp_path / "old")
    site.client_ca_file.write_bytes(
        site.authority.ca_file.read_bytes() + old_ca.ca_file.read_bytes()
    )
    stays, goes = TestIssuer(key_id="stays"), TestIssuer(key_id="goes")
    policy, key_set = tmp_path / "policy.toml", tmp_path / "keys.json"
    policy.write_text(jwt_table(key_set) + POLICY.format(roles='["compile"]'))
    key_set.write_bytes(stays.key_set(goes))
    tokens = {name: add_token(lean_state_dir, name, "compile") for name in ("stays", "goes")}
    flags = site.flags(
        *("--token-listen", "127.0.0.1:0", "--policy-file", str(policy)),
        *("--admin-listen", "none"),
    )
    with RedisDaemon(lean_state_dir, flags) as daemon, ExitStack() as stack:
        by_certificate = f"localhost:{daemon.address.rpartition(':')[2]}"
        by_token = f"localhost:{daemon._row('tokens').partition(' ')[0].rpartition(':')[2]}"

        def with_token(name: str, text: str) -> Caller:
            return _caller(stack, name, site.channel(by_token), bearer(text))

        def with_certificate(
            name: str, authority: Authority, *, spiffe: str = "", dns: str = ""
        ) -> Caller:
            pair = authority.client(name.replace(" ", "_"), spiffe=spiffe, dns=dns)
            loads = "demoted" in name
            return _caller(stack, name, site.channel(by_certificate, pair), (), loads=loads)

        stay = [
            with_certificate("certificate stays", site.authority, spiffe="spiffe://example.org/a"),
            with_token("token stays", tokens["stays"]),
            with_token("jwt stays", stays.token()),
        ]
        go = [
            with_certificate("certificate goes", old_ca, spiffe="spiffe://example.org/b"),
            with_certificate("demoted", site.authority, dns="demoted.example.org"),
            with_token("token goes", tokens["goes"]),
            with_token("jwt goes", goes.token()),
        ]
        for caller in (*stay, *go):
            stack.enter_context(caller.calling())

        def all_called(since_s: float, times: int) -> None:
            eventually(
                lambda: all(len(one.since(since_s)) >= times for one in (*stay, *go)),
                "some callers do not get on",
                120,
            )

        all_called(0, CALLS_BETWEEN)
        before_s = time.monotonic()
        fresh = site.authority.server("fresh")
        site.server.cert_file.write_bytes(fresh.cert)
        site.server.key_file.write_bytes(fresh.key)
        site.client_ca_file.write_bytes(site.authority.ca_file.read_bytes())
        policy.write_text(jwt_table(key_set) + POLICY.format(roles='["read"]'))
        key_set.write_bytes(stays.key_set())
        token_command(lean_state_dir, "revoke", "goes")
        reload(daemon)
        answered_s = time.monotonic()
        all_called(answered_s, CALLS_BETWEEN)

        for caller in stay:
            assert {found for _, _, found in caller.calls} == {""}, caller.name
        for caller in go:
            assert {found for _, ended_s, found in caller.calls if ended_s < before_s} == {""}
            assert "" not in caller.since(answered_s), caller.name
        [demoted] = [caller for caller in go if caller.name == "demoted"]
        assert set(demoted.since(answered_s)) == {"ROLE_MISSING compile"}
