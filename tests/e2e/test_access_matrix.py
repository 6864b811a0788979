"""Every RPC and page, by every kind of identity and by none, over every transport.

The verdict must be that of the table, no more and no less. RPCs and pages are read from the
descriptors and from the server: one that is new and has no row fails here.
"""

from __future__ import annotations

import http.client
import shutil
import ssl
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from prometheus_client import CollectorRegistry
from wasmkilnd.access.guard import AccessGuard
from wasmkilnd.access.needs import PATHS, RPCS, Need
from wasmkilnd.model import ALL_ROLES, Role, with_included
from wasmkilnd.telemetry.admin.pages import Pages
from wasmkilnd.telemetry.admin.server import AdminServer
from wasmkilnd.telemetry.metrics.recorder import Metrics
from wasmkilnd.telemetry.status_page.pages import status_pages
from wasmkilnd.telemetry.status_page.sampler import Sampler

from tests.doubles.status_sources import sources
from tests.e2e.bearers import Metadata, add_token, bearer, reason_of, token_command
from tests.e2e.daemon import ONE_ENGINE, Daemon, state_with
from tests.e2e.over_tls import TlsSite
from tests.e2e.programs import Installed
from tests.web_tokens import AUDIENCE, ISSUER, TestIssuer

MISSING, INVALID = "CREDENTIALS_MISSING", "CREDENTIALS_INVALID"
NO_CONNECTION = "no connection"
BUILDER = "spiffe://example.org/builder/1"
POLICY = f"""
[[rule]]
identity = "{BUILDER}"
roles = ["compile"]

[[rule]]
identity = "jwt:*"
claims = {{ groups = "wasm" }}
roles = ["read", "admin"]

[[rule]]
identity = "unix:*"
roles = ["admin", "metrics"]
"""
# No message: a call that is admitted fails for that, and does nothing. Drain would end the daemon.
GARBAGE = b"\xff\xff\xff\xff"

# Written down once more, so that the table does not change unnoticed.
EXPECTED_ROLES = {
    "Load": "compile",
    "Compile": "read",
    "FindMissing": "read",
    "GetCapabilities": "",
    "Stats": "metrics",
    "Evict": "admin",
    "Pin": "admin",
    "Unpin": "admin",
    "ListPins": "admin",
    "ListQuarantine": "admin",
    "ReleaseQuarantine": "admin",
    "Drain": "admin",
    "Check": "",
    "List": "",
    "Watch": "",
    "ServerReflectionInfo": "",
    "GetTopChannels": "metrics",
    "GetServers": "metrics",
    "GetServer": "metrics",
    "GetServerSockets": "metrics",
    "GetChannel": "metrics",
    "GetSubchannel": "metrics",
    "GetSocket": "metrics",
}


@dataclass(frozen=True)
class Who:
    """A caller: what it sends, and what the daemon should make of it."""

    name: str
    metadata: Metadata = ()
    roles: frozenset[Role] = frozenset()
    namespace: str = ""
    refused: str = ""
    """Why it gets nowhere, whatever it wants."""

    def verdict(self, need: Need) -> str:
        """Return the verdict of the table: "" to admit it."""
        if self.refused:
            return self.refused
        if need.role and need.role not in with_included(self.roles):
            return f"ROLE_MISSING {need.role.value}"
        if need.whole_daemon and self.namespace:
            return f"ROLE_MISSING {need.role.value if need.role else ''}".strip()
        return ""


@dataclass
class Site:
    """Two daemons with the same policy and tokens, one without TLS, and their callers."""

    plain: Daemon
    secure: Daemon
    tls: TlsSite
    callers: Sequence[Who]


@pytest.fixture(scope="module")
def site(engines: Installed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("matrix")
    tls = TlsSite(folder / "tls")
    states = [state_with(folder / name, *ONE_ENGINE) for name in ("plain", "secure")]
    issuer = TestIssuer()
    callers = [*callers_with_tokens(states[0]), *callers_with_web_tokens(issuer)]
    (states[1] / "access").mkdir(mode=0o700)
    shutil.copy(states[0] / "access" / "tokens.json", states[1] / "access")
    (folder / "policy.toml").write_text(POLICY)
    (folder / "keys.json").write_bytes(issuer.key_set())
    flags = [
        *("--policy-file", str(folder / "policy.toml"), "--jwt-issuer", ISSUER),
        *("--jwt-audience", AUDIENCE, "--jwt-keys", str(folder / "keys.json")),
        *("--redis-url", "none", "--workers", "1"),
    ]
    plain_flags = [*flags, "--listen", f"unix:{folder}/kiln.sock"]
    secure_flags = tls.flags(*flags, "--token-listen", "127.0.0.1:0")
    with Daemon(states[0], plain_flags) as plain, Daemon(states[1], secure_flags) as secure:
        yield Site(plain, secure, tls, callers)
    assert plain.process.returncode == secure.process.returncode == 0


def callers_with_tokens(state: Path) -> Iterator[Who]:
    everything = [role.value for role in Role]
    yield Who("nobody", refused=MISSING)
    yield Who("basic", (("authorization", "Basic eDp5"),), refused=INVALID)
    yield Who("unknown", bearer("wk_0123456789ab_" + "0" * 48), refused=INVALID)
    revoked = add_token(state, "revoked", *everything)
    token_command(state, "revoke", "revoked")
    yield Who("revoked", bearer(revoked), refused=INVALID)
    brief = add_token(state, "expired", *everything, expires="1s")
    yield Who("expired", bearer(brief), refused=INVALID)
    for role in Role:
        text = add_token(state, role.value, role.value)
        yield Who(role.value, bearer(text), roles=frozenset({role}))
    yield Who("all", bearer(add_token(state, "all", *everything)), roles=ALL_ROLES)
    text = add_token(state, "tenant", *everything, namespace="team")
    yield Who("tenant", bearer(text), roles=ALL_ROLES, namespace="team")


def callers_with_web_tokens(issuer: TestIssuer) -> Iterator[Who]:
    groups, roles = ["wasm"], frozenset({Role.READ, Role.ADMIN})
    yield Who("web", bearer(issuer.token(groups=groups)), roles=roles)
    yield Who("web-without-a-rule", bearer(issuer.token()))
    yield Who("web-of-another", bearer(TestIssuer().token(groups=groups)), refused=INVALID)
    yield Who("web-expired", bearer(issuer.token(groups=groups, exp=1)), refused=INVALID)


def verdicts(channel: grpc.Channel, who: Who) -> Mapping[str, str]:
    """Return the verdict of each RPC."""
    return {rpc: _verdict(channel, rpc, who.metadata) for rpc in RPCS}


def _verdict(channel: grpc.Channel, rpc: str, metadata: Metadata) -> str:
    call = channel.stream_stream(rpc)
    try:
        for _ in call(iter([GARBAGE]), metadata=metadata, timeout=60):
            return ""
    except grpc.RpcError as refused:
        if refused.code() is grpc.StatusCode.UNAVAILABLE:
            return NO_CONNECTION
        reason = reason_of(refused)
        # The message is none: so the daemon has read it, which it does of admitted calls alone.
        return "" if reason == "INVALID_REQUEST" else reason
    return ""


def table(who: Who) -> Mapping[str, str]:
    return {rpc: who.verdict(need) for rpc, need in RPCS.items()}


def test_every_rpc_and_page_has_a_row_and_no_other_has(site: Site) -> None:
    everybody = next(who for who in site.callers if who.name == "all")
    assert set(RPCS) == set(rpcs_of(site.plain, everybody.metadata))
    assert {rpc.rpartition("/")[2] for rpc in RPCS} == set(EXPECTED_ROLES)
    for rpc, need in RPCS.items():
        assert (need.role.value if need.role else "") == EXPECTED_ROLES[rpc.rpartition("/")[2]]
    server = AdminServer("127.0.0.1:0", *_unused(), pages=_status_pages())
    routes = server._runner.app.router.resources()
    assert set(PATHS) == {route.canonical for route in routes}


def rpcs_of(daemon: Daemon, metadata: Metadata) -> Iterator[str]:
    """Yield each RPC of the services that reflection lists, from their descriptors."""
    asked = reflection_pb2.ServerReflectionRequest
    with grpc.insecure_channel(daemon.addresses[0]) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)

        def answer(request: Any) -> Any:
            [found] = stub.ServerReflectionInfo(iter([request]), timeout=60, metadata=metadata)
            return found

        for listed in answer(asked(list_services="")).list_services_response.service:
            found = answer(asked(file_containing_symbol=listed.name)).file_descriptor_response
            for content in found.file_descriptor_proto:
                file = descriptor_pb2.FileDescriptorProto.FromString(content)
                for service in file.service:
                    if f"{file.package}.{service.name}" == listed.name:
                        yield from (f"/{listed.name}/{method.name}" for method in service.method)


def test_plaintext(site: Site) -> None:
    with grpc.insecure_channel(site.plain.addresses[0]) as channel:
        for who in site.callers:
            assert verdicts(channel, who) == table(who), who.name


def test_a_unix_socket(site: Site) -> None:
    of_socket = Who("socket", roles=frozenset({Role.ADMIN, Role.METRICS}))
    with grpc.insecure_channel(site.plain.addresses[1]) as channel:
        for who in (of_socket, *site.callers):
            expected = of_socket if who.refused == MISSING else who
            assert verdicts(channel, who) == table(expected), who.name


def test_tls(site: Site) -> None:
    [address] = site.secure._row("tokens").partition(" (")[0].split(", ")
    with site.tls.channel(f"localhost:{address.rpartition(':')[2]}") as channel:
        for who in site.callers:
            assert verdicts(channel, who) == table(who), who.name


def test_mutual_tls(site: Site) -> None:
    address = f"localhost:{site.secure.address.rpartition(':')[2]}"
    stranger = site.tls.authority.client("stranger", spiffe="spiffe://example.org/other")
    nameless = site.tls.authority.client("nameless")
    for pair, name, roles, refused in (
        (site.tls.client, "builder", frozenset({Role.COMPILE}), ""),
        (stranger, "stranger", frozenset[Role](), ""),
        (nameless, "nameless", frozenset[Role](), INVALID),
    ):
        by_certificate = Who(name, roles=roles, refused=refused)
        with site.tls.channel(address, pair) as channel:
            for who in site.callers:
                expected = by_certificate if refused or who.refused == MISSING else who
                assert verdicts(channel, who) == table(expected), (name, who.name)
    with site.tls.channel(address) as channel:
        everybody = next(who for who in site.callers if who.name == "all")
        assert set(verdicts(channel, everybody).values()) == {NO_CONNECTION}


@pytest.mark.parametrize("with_certificate", [False, True])
def test_pages_over_tls(site: Site, with_certificate: bool) -> None:
    context = ssl.create_default_context(cafile=str(site.tls.authority.ca_file))
    if with_certificate:
        context.load_cert_chain(site.tls.client.cert_file, site.tls.client.key_file)
    by_certificate = Who("builder", roles=frozenset({Role.COMPILE}))
    host = site.secure.admin_url.removeprefix("http://").removeprefix("https://")
    for who in site.callers:
        expected = by_certificate if with_certificate and who.refused == MISSING else who
        with closing(http.client.HTTPSConnection(host, timeout=60, context=context)) as line:
            assert pages(line, who) == statuses(expected), who.name


def test_pages_over_plaintext(site: Site) -> None:
    host = site.plain.admin_url.removeprefix("http://")
    for who in site.callers:
        with closing(http.client.HTTPConnection(host, timeout=60)) as line:
            assert pages(line, who) == statuses(who), who.name


def pages(line: http.client.HTTPConnection, who: Who) -> Mapping[str, int]:
    """Return the status of each page, and of one that is none."""
    found = {}
    for page in (*PATHS, "/none"):
        line.request("GET", page, headers={key.title(): value for key, value in who.metadata})
        answer = line.getresponse()
        answer.read()
        found[page] = answer.status
        assert ("Bearer" in answer.headers.get("WWW-Authenticate", "")) == (answer.status == 401)
        if answer.will_close:
            line.close()
    return found


def statuses(who: Who) -> Mapping[str, int]:
    """Return the statuses by the table."""
    of = {"": 200, MISSING: 401, INVALID: 401}
    rows = {page: of.get(who.verdict(need), 403) for page, need in PATHS.items()}
    return {**rows, "/none": 401 if who.refused else 403}


def _status_pages() -> Pages:
    metrics = Metrics("1.2.3")
    return status_pages(sources(metrics), Sampler(metrics))


def _unused() -> tuple[Any, Any, Any, Any]:
    """Return what a server needs that is never started."""
    return CollectorRegistry(), lambda: (True, ""), AccessGuard(None), None
