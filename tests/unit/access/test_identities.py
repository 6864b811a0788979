"""From credentials to identities: each kind, what does not count, and what is remembered."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from cryptography import x509
from wasmkilnd.access.guard import Access, AccessGuard
from wasmkilnd.access.jwt import Issuer
from wasmkilnd.access.policy import Claims, Policy, Rule, default_policy
from wasmkilnd.access.tokens import Token, Tokens, new_token
from wasmkilnd.errors import WasmkilnError, credentials_invalid
from wasmkilnd.model import ALL_ROLES, ANYBODY, PLAINTEXT, Credentials, Entrance, Role, Transport

from tests.authority import DAY, Authority, Pair

UNIX = Entrance(Transport.UNIX, "unix:/run/x.sock")
MTLS = Entrance(Transport.MTLS)
TLS = Entrance(Transport.TLS)
NOBODY = Credentials()


def bearer(text: str) -> Credentials:
    return Credentials(f"Bearer {text}")


def refused(found: AccessGuard, entrance: Entrance, credentials: Credentials) -> tuple[str, str]:
    with pytest.raises(WasmkilnError) as caught:
        found.identity(entrance, credentials)
    return caught.value.reason.value, caught.value.metadata.get("cause", "")


def identities(
    policy: Policy,
    tokens: Sequence[Token] = (),
    client_cas: Callable[[], Sequence[x509.Certificate]] = tuple,
    web_tokens: FakeWebTokens | None = None,
) -> AccessGuard:
    """Return a guard that asks who calls."""
    found: Issuer | None = web_tokens  # type: ignore[assignment]
    return AccessGuard(Access(policy, Tokens(tokens=[*tokens]), True, found), client_cas)


def cas(*authorities: Authority) -> tuple[x509.Certificate, ...]:
    return tuple(x509.load_pem_x509_certificate(each.ca_file.read_bytes()) for each in authorities)


class FakeWebTokens:
    """Knows one token."""

    def __init__(self, until_s: float) -> None:
        self.until_s = until_s
        self.url = ""
        self.asked = 0

    def verify(self, token: str, unknown_key: Callable[[], None]) -> tuple[str, Claims, float]:
        self.asked += 1
        if token != "a.b.c":
            raise credentials_invalid("untrusted", "no")
        return "me", {"groups": ["wasm"]}, self.until_s


def test_a_token_may_be_sent_in_any_case_and_with_spaces() -> None:
    text, kept = new_token("ci", [Role.COMPILE], "", 0, None)
    found = identities(Policy(), [kept])
    for sent in (f"bearer {text}", f"BEARER   {text}  "):
        assert found.identity(PLAINTEXT, Credentials(sent)).name == "token:ci"


@pytest.mark.parametrize(
    ("sent", "cause"),
    [
        ("Basic abc", "malformed"),
        ("Bearer", "malformed"),
        ("Bearer a b", "malformed"),
        ("Bearer \u00fc", "malformed"),
        ("Bearer a.b.c", "unknown"),
    ],
)
def test_what_is_no_token_is_refused(sent: str, cause: str) -> None:
    _, kept = new_token("ci", [Role.COMPILE], "", 0, None)
    found = identities(default_policy(), [kept])
    for entrance in (PLAINTEXT, UNIX):  # A socket is no way around wrong credentials.
        assert refused(found, entrance, Credentials(sent)) == ("CREDENTIALS_INVALID", cause)


def test_a_token_expires_though_it_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    text, kept = new_token("ci", [Role.COMPILE], "", 0, 1000)
    found = identities(Policy(), [kept])
    monkeypatch.setattr("time.time", lambda: 999.0)
    assert found.identity(PLAINTEXT, bearer(text)).name == "token:ci"
    monkeypatch.setattr("time.time", lambda: 1000.0)
    assert refused(found, PLAINTEXT, bearer(text)) == ("CREDENTIALS_INVALID", "expired")


def test_an_expired_token_with_another_secret_is_unknown() -> None:
    text, kept = new_token("ci", [Role.COMPILE], "", 0, 1)
    guessed = text[:-1] + ("0" if text[-1] != "0" else "1")
    found = identities(Policy(), [kept])
    assert refused(found, PLAINTEXT, bearer(guessed)) == ("CREDENTIALS_INVALID", "unknown")


def test_web_tokens_are_verified_once_until_they_expire(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 100.0)
    web = FakeWebTokens(200.0)
    rule = Rule(identity=("jwt:*",), roles=(Role.READ,), claims={"groups": "wasm"})
    found = identities(Policy((rule,)), web_tokens=web)

    assert {found.identity(TLS, bearer("a.b.c")).name for _ in range(3)} == {"jwt:me"}
    assert found.identity(TLS, bearer("a.b.c")).roles == {Role.READ}
    assert web.asked == 1
    assert refused(found, TLS, bearer("a.b.d")) == ("CREDENTIALS_INVALID", "untrusted")
    monkeypatch.setattr("time.time", lambda: 200.0)
    found.identity(TLS, bearer("a.b.c"))
    assert web.asked == 3


def test_certificates_are_named_by_spiffe_id_else_dns_name(tmp_path: Path) -> None:
    ca = Authority(tmp_path)
    roots = cas(ca)
    found = identities(default_policy(), client_cas=lambda: roots)

    def name(pair: Pair) -> str:
        return found.identity(MTLS, Credentials("", pair.cert)).name

    assert name(ca.client(spiffe="spiffe://a.org/x", dns="b.org")) == "spiffe://a.org/x"
    assert name(ca.client(dns="B.org")) == "dns:b.org"
    assert name(ca.client(spiffe="https://a.org", dns="c.org")) == "dns:c.org"
    nameless = Credentials("", ca.client().cert)
    assert refused(found, MTLS, nameless) == ("CREDENTIALS_INVALID", "malformed")
    assert refused(found, MTLS, Credentials("", b"x")) == ("CREDENTIALS_INVALID", "malformed")
    assert refused(found, MTLS, NOBODY) == ("CREDENTIALS_MISSING", "")


def test_a_certificate_ceases_to_count_with_its_ca_and_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = Authority(tmp_path / "old"), Authority(tmp_path / "new")
    ours = Credentials("", old.client(dns="a.org").cert)
    text, kept = new_token("ci", ALL_ROLES, "", 0, None)
    with_token = Credentials(f"Bearer {text}", ours.certificate)
    roots = cas(old)
    found = identities(default_policy(), [kept], lambda: roots)

    assert found.identity(MTLS, ours).name == "dns:a.org"
    assert found.identity(MTLS, with_token).name == "token:ci"
    roots = cas(new, old)
    assert found.identity(MTLS, ours).name == "dns:a.org"
    roots = cas(new)
    for credentials in (ours, with_token):
        assert refused(found, MTLS, credentials) == ("CREDENTIALS_INVALID", "untrusted")
    roots = cas(old)
    assert found.identity(MTLS, ours).name == "dns:a.org"
    later = datetime.datetime.now(datetime.UTC) + 11 * DAY
    monkeypatch.setattr("time.time", later.timestamp)

    class Later(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Later:
            return cls.fromtimestamp(later.timestamp(), tz)

    monkeypatch.setattr("wasmkilnd.access.tls.datetime", Later)
    assert refused(found, MTLS, ours) == ("CREDENTIALS_INVALID", "expired")


def san(*names: x509.GeneralName | bytes) -> x509.ExtensionType:
    """Return a SAN, of bytes as they are."""
    if names and isinstance(names[0], bytes):
        body = names[0]
        return x509.UnrecognizedExtension(
            x509.SubjectAlternativeName.oid, bytes((0x30, len(body))) + body
        )
    return x509.SubjectAlternativeName([each for each in names if not isinstance(each, bytes)])


@pytest.mark.parametrize(
    "names",
    [
        # Each would match "spiffe://a.org/builder/*", or the wrong one of two rules.
        san(x509.UniformResourceIdentifier("spiffe://a.org/builder/../admin")),
        san(x509.UniformResourceIdentifier("spiffe://a.org/builder/.")),
        san(x509.UniformResourceIdentifier("spiffe://a.org/builder//x")),
        san(x509.UniformResourceIdentifier("spiffe://a.org/builder/%2e%2e/admin")),
        san(x509.UniformResourceIdentifier("spiffe://a.org/builder/1?x")),
        san(x509.UniformResourceIdentifier("SPIFFE://a.org/builder/1"), x509.DNSName("b.org")),
        san(*map(x509.UniformResourceIdentifier, ("spiffe://a.org/x", "spiffe://a.org/builder/1"))),
        # A CA that vouches for host names may not look at this.
        san(x509.DNSName("spiffe://a.org/builder/1")),
        san(b"\x82\x00"),
        san(b"\x82\x08a\0.b.org"),
        san(b"\x82\x08\xd1\x91.b.org"),
        san(b"\xa3\x00"),
    ],
)
def test_a_name_of_another_form_than_its_standard_has_is_none(
    tmp_path: Path, names: x509.ExtensionType
) -> None:
    ca = Authority(tmp_path)
    roots = cas(ca)
    found = identities(default_policy(), client_cas=lambda: roots)
    forged = Credentials("", ca.sign_extension(names))
    assert refused(found, MTLS, forged) == ("CREDENTIALS_INVALID", "malformed")


def test_only_cas_in_force_and_those_that_they_may_sign_vouch(tmp_path: Path) -> None:
    free, bound = Authority(tmp_path / "free", path_length=None), Authority(tmp_path / "bound")
    roots = cas(free, bound)
    found = identities(default_policy(), client_cas=lambda: roots)

    def through(ca: Authority) -> Credentials:
        return Credentials("", ca.client(dns="a.org").cert + ca.ca_file.read_bytes())

    assert found.identity(MTLS, through(free.authority("between"))).name == "dns:a.org"
    same_name_other_key = Authority(tmp_path / "false")
    for ca in (bound.authority("between"), same_name_other_key):
        assert refused(found, MTLS, through(ca)) == ("CREDENTIALS_INVALID", "untrusted")


def test_what_is_remembered_is_bounded_and_no_credential() -> None:
    web = FakeWebTokens(float("inf"))
    web.verify = lambda token, unknown_key: ("me", {}, float("inf"))  # type: ignore[method-assign]
    found = identities(Policy(), web_tokens=web)
    for number in range(5000):
        found.identity(TLS, bearer(f"a.b.{number}"))
    assert len(found._known) <= 4096
    assert {len(digest) for _, digest in found._known} == {32}


def test_health_is_open_if_asked_and_without_a_policy() -> None:
    for policy in (Policy(open_health=True), default_policy()):
        guard = identities(policy)
        for path in ("/healthz", "/readyz"):
            assert guard.admit(path, PLAINTEXT, lambda: bearer("wrong")).roles == frozenset()
    for closed, path in ((guard, "/metrics"), (identities(Policy()), "/healthz")):
        with pytest.raises(WasmkilnError):
            closed.admit(path, PLAINTEXT, lambda: bearer("wrong"))


def test_the_guard_refuses_what_it_does_not_know() -> None:
    """Removing the file of the tokens by hand opens nothing, either."""
    guard = AccessGuard(None)
    assert guard.admit("/a.B/C", PLAINTEXT, lambda: NOBODY) is ANYBODY
    text, kept = new_token("ci", ALL_ROLES, "", 0, None)
    guard.replace(Access(tokens=Tokens(tokens=[kept]), on=True))
    for what in ("/a.B/C", "/x"):
        with pytest.raises(WasmkilnError, match="the daemon has nothing there") as caught:
            guard.admit(what, PLAINTEXT, lambda: bearer(text))
        assert caught.value.metadata["role"] == "none"
    guard.replace(Access())
    assert guard.access.on
