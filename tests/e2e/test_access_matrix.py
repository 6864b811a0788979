"""Every RPC and page, by every kind of identity and by none, over every transport.

The verdict must be that of the table, no more and no less. RPCs are read from the descriptors
that reflection serves, pages from the status page: one that is new and has no row fails here.
"""

from __future__ import annotations

import http.client
import re
import shutil
import ssl
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from tests.e2e.bearers import Metadata, add_token, bearer, reason_of, token_command
from tests.e2e.daemon import ONE_ENGINE, Daemon, state_with
from tests.e2e.grpcurl import Grpcurl
from tests.e2e.over_tls import TlsSite
from tests.e2e.programs import Installed
from tests.web_tokens import TestIssuer, jwt_table

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

ROLES = ("read", "compile", "admin", "metrics")


@dataclass(frozen=True)
class Need:
    """What a caller needs; without a role any identity will do."""

    role: str = ""
    whole_daemon: bool = False
    """Whether it acts on all namespaces, so that only the default one's callers may."""


METRICS_OF_ALL = Need("metrics", whole_daemon=True)
RPCS = {
    "/wasmkiln.v1.ModuleService/Load": Need("compile"),
    "/wasmkiln.v1.ModuleService/Upload": Need("compile"),
    "/wasmkiln.v1.ModuleService/QueryUpload": Need("compile"),
    # Of a digest; uploading and compiling need the role compile.
    "/wasmkiln.v1.ModuleService/Compile": Need("read"),
    "/wasmkiln.v1.ModuleService/FindMissing": Need("read"),
    "/wasmkiln.v1.ModuleService/GetCapabilities": Need(),
    "/wasmkiln.v1.ModuleService/Stats": Need("metrics"),
    "/wasmkiln.v1.AdminService/Evict": Need("admin"),
    "/wasmkiln.v1.AdminService/Pin": Need("admin"),
    "/wasmkiln.v1.AdminService/Unpin": Need("admin"),
    "/wasmkiln.v1.AdminService/ListPins": Need("admin"),
    "/wasmkiln.v1.AdminService/ListJobs": Need("admin"),
    "/wasmkiln.v1.AdminService/EndJob": Need("admin"),
    "/wasmkiln.v1.AdminService/ListQuarantine": Need("admin"),
    "/wasmkiln.v1.AdminService/ReleaseQuarantine": Need("admin"),
    "/wasmkiln.v1.AdminService/Drain": Need("admin", whole_daemon=True),
    "/wasmkiln.v1.AdminService/UndoDrain": Need("admin", whole_daemon=True),
    "/grpc.health.v1.Health/Check": Need(),
    "/grpc.health.v1.Health/Watch": Need(),
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo": Need(),
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": Need(),
    "/grpc.channelz.v1.Channelz/GetTopChannels": METRICS_OF_ALL,
    "/grpc.channelz.v1.Channelz/GetServers": METRICS_OF_ALL,
    "/grpc.channelz.v1.Channelz/GetServer": METRICS_OF_ALL,
    "/grpc.channelz.v1.Channelz/GetServerSockets": METRICS_OF_ALL,
    "/grpc.channelz.v1.Channelz/GetChannel": METRICS_OF_ALL,
    "/grpc.channelz.v1.Channelz/GetSubchannel": METRICS_OF_ALL,
    "/grpc.channelz.v1.Channelz/GetSocket": METRICS_OF_ALL,
}
PAGES = {"/": METRICS_OF_ALL, "/metrics": METRICS_OF_ALL, "/healthz": Need(), "/readyz": Need()}
"""The pages; what the status page loads beside them needs what it needs itself."""


@dataclass(frozen=True)
class Who:
    """A caller: what it sends, and what the daemon should make of it."""

    name: str
    metadata: Metadata = ()
    roles: frozenset[str] = frozenset()
    namespace: str = ""
    refused: str = ""
    """Why it gets nowhere, whatever it wants."""

    def verdict(self, need: Need) -> str:
        """Return the verdict of the table: "" to admit it."""
        if self.refused:
            return self.refused
        held = self.roles | {"read"} if "compile" in self.roles else self.roles
        if (need.role and need.role not in held) or (need.whole_daemon and self.namespace):
            return f"ROLE_MISSING {need.role}"
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
    (folder / "policy.toml").write_text(jwt_table(folder / "keys.json") + POLICY)
    (folder / "keys.json").write_bytes(issuer.key_set())
    flags = [
        *("--policy-file", str(folder / "policy.toml")),
        *("--redis-url", "none", "--workers", "1"),
    ]
    plain_flags = [*flags, "--listen", f"unix:{folder}/kiln.sock"]
    secure_flags = tls.flags(*flags, "--token-listen", "127.0.0.1:0")
    with Daemon(states[0], plain_flags) as plain, Daemon(states[1], secure_flags) as secure:
        yield Site(plain, secure, tls, callers)
    assert plain.process.returncode == secure.process.returncode == 0


def callers_with_tokens(state: Path) -> Iterator[Who]:
    yield Who("nobody", refused=MISSING)
    yield Who("basic", (("authorization", "Basic eDp5"),), refused=INVALID)
    yield Who("unknown", bearer("wk_0123456789ab_" + "0" * 48), refused=INVALID)
    revoked = add_token(state, "revoked", *ROLES)
    token_command(state, "revoke", "revoked")
    yield Who("revoked", bearer(revoked), refused=INVALID)
    brief = add_token(state, "expired", *ROLES, expires="1s")
    yield Who("expired", bearer(brief), refused=INVALID)
    for role in ROLES:
        yield Who(role, bearer(add_token(state, role, role)), roles=frozenset({role}))
    yield Who("all", bearer(add_token(state, "all", *ROLES)), roles=frozenset(ROLES))
    text = add_token(state, "tenant", *ROLES, namespace="team")
    yield Who("tenant", bearer(text), roles=frozenset(ROLES), namespace="team")


def callers_with_web_tokens(issuer: TestIssuer) -> Iterator[Who]:
    groups, roles = ["wasm"], frozenset({"read", "admin"})
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


def test_every_rpc_has_a_row_and_no_other_has(site: Site) -> None:
    headers = (f"{key}: {value}" for key, value in everybody(site).metadata)
    grpcurl = Grpcurl(site.plain.addresses[0], *headers)
    listed = [grpcurl("list", service) for service in grpcurl("list").stdout.split()]
    methods = [method for each in listed for method in each.stdout.split()]
    assert sorted(RPCS) == sorted("/{0}/{2}".format(*each.rpartition(".")) for each in methods)


def everybody(site: Site) -> Who:
    """Return the caller with all roles."""
    return next(who for who in site.callers if who.name == "all")


@pytest.mark.parametrize("over", ["plaintext", "TLS"])
def test_without_a_certificate(site: Site, over: str) -> None:
    [tokens] = site.secure._row("tokens").partition(" (")[0].split(", ")
    with (
        grpc.insecure_channel(site.plain.addresses[0])
        if over == "plaintext"
        else site.tls.channel(f"localhost:{tokens.rpartition(':')[2]}")
    ) as channel:
        for who in site.callers:
            assert verdicts(channel, who) == table(who), who.name


def test_a_unix_socket(site: Site) -> None:
    of_socket = Who("socket", roles=frozenset({"admin", "metrics"}))
    with grpc.insecure_channel(site.plain.addresses[1]) as channel:
        for who in (of_socket, *site.callers):
            expected = of_socket if who.refused == MISSING else who
            assert verdicts(channel, who) == table(expected), who.name


def test_mutual_tls(site: Site) -> None:
    address = f"localhost:{site.secure.address.rpartition(':')[2]}"
    stranger = site.tls.authority.client("stranger", spiffe="spiffe://example.org/other")
    nameless = site.tls.authority.client("nameless")
    for pair, name, roles, refused in (
        (site.tls.client, "builder", frozenset({"compile"}), ""),
        (stranger, "stranger", frozenset[str](), ""),
        (nameless, "nameless", frozenset[str](), INVALID),
    ):
        by_certificate = Who(name, roles=roles, refused=refused)
        with site.tls.channel(address, pair) as channel:
            for who in site.callers:
                expected = by_certificate if refused or who.refused == MISSING else who
                assert verdicts(channel, who) == table(expected), (name, who.name)
    with site.tls.channel(address) as channel:
        assert set(verdicts(channel, everybody(site)).values()) == {NO_CONNECTION}


@pytest.mark.parametrize("over", ["plaintext", "TLS", "TLS with a certificate"])
def test_pages(site: Site, over: str) -> None:
    context = ssl.create_default_context(cafile=str(site.tls.authority.ca_file))
    if over == "TLS with a certificate":
        context.load_cert_chain(site.tls.client.cert_file, site.tls.client.key_file)
    host = (site.plain if over == "plaintext" else site.secure).admin_url.partition("://")[2]

    def connection() -> http.client.HTTPConnection:
        if over == "plaintext":
            return http.client.HTTPConnection(host, timeout=60)
        return http.client.HTTPSConnection(host, timeout=60, context=context)

    by_certificate = Who("builder", roles=frozenset({"compile"}))
    if over != "plaintext":
        plain = http.client.HTTPConnection(host, timeout=60)
        with closing(plain), pytest.raises((OSError, http.client.HTTPException)):
            _get(plain, "/healthz", everybody(site))
    with closing(connection()) as line:
        needs = needs_of_pages(line, everybody(site))
    status_of = {"": 200, MISSING: 401, INVALID: 401}
    for who in site.callers:
        known = over == "TLS with a certificate" and who.refused == MISSING
        caller = by_certificate if known else who
        expected = {page: status_of.get(caller.verdict(need), 403) for page, need in needs.items()}
        expected["/none"] = 401 if caller.refused else 403
        with closing(connection()) as line:
            assert {page: _get(line, page, who)[0] for page in expected} == expected, who.name


def needs_of_pages(line: http.client.HTTPConnection, who: Who) -> Mapping[str, Need]:
    """Return what each page needs, those that the status page and its scripts name among them."""
    named = re.findall(r'(?:href|src)="([^"]+)"', _get(line, "/", who)[1])
    scripts = [_get(line, f"/{name}", who)[1] for name in named if name.endswith(".js")]
    named += [name for script in scripts for name in re.findall(r'fetch\("([^"]+)"', script)]
    found = {f"/{name}": METRICS_OF_ALL for name in named if re.fullmatch(r"[\w./]+", name)}
    # Its looks, its script, and what the script asks for again and again.
    assert len(found.keys() - PAGES.keys()) >= 3, named
    return {**found, **PAGES}


def _get(line: http.client.HTTPConnection, page: str, who: Who) -> tuple[int, str]:
    line.request("GET", page, headers={key.title(): value for key, value in who.metadata})
    answer = line.getresponse()
    text = answer.read().decode()
    assert ("Bearer" in answer.headers.get("WWW-Authenticate", "")) == (answer.status == 401)
    if answer.will_close:
        line.close()
    return answer.status, text
