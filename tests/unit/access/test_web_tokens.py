"""JSON Web Tokens: which count, and which do not."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from wasmkilnd.access.guard import Access, AccessGuard
from wasmkilnd.access.jwt import Issuer, Keys, parse_keys, read_issuer
from wasmkilnd.access.policy import Claims, Jwt
from wasmkilnd.errors import Reason, WasmkilnError
from wasmkilnd.files.operator_files import CannotUse
from wasmkilnd.model import PLAINTEXT, Credentials

from tests.web_tokens import AUDIENCE, ISSUER, PrivateKey, TestIssuer, part

NOW_S = int(time.time())


class Verifier:
    """Verifies tokens with keys that a test replaces."""

    def __init__(self, keys: Keys) -> None:
        self.keys = keys
        self.unknown = 0

    @property
    def issuer(self) -> Issuer:
        return Issuer(ISSUER, ("other", AUDIENCE), self.keys)

    def verify(self, token: str) -> tuple[str, Claims, float]:
        return self.issuer.verify(token, self._count)

    def _count(self) -> None:
        self.unknown += 1

    def refused(self, token: str) -> str:
        with pytest.raises(WasmkilnError) as caught:
            self.verify(token)
        assert caught.value.reason is Reason.CREDENTIALS_INVALID
        assert token not in caught.value.message
        return caught.value.metadata["cause"]


@pytest.fixture
def issuer() -> TestIssuer:
    return TestIssuer()


@pytest.fixture
def verifier(issuer: TestIssuer) -> Verifier:
    return Verifier(parse_keys(issuer.key_set()))


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP256R1()),
        rsa.generate_private_key(65537, 2048),
        ed25519.Ed25519PrivateKey.generate(),
    ],
    ids=["ec", "rsa", "ed25519"],
)
def test_each_kind_of_key(key: PrivateKey) -> None:
    issuer = TestIssuer(key)
    web_tokens = Verifier(parse_keys(issuer.key_set()))
    subject, claims, until_s = web_tokens.verify(issuer.token(groups=["wasm"]))
    assert (subject, claims["groups"]) == ("me", ["wasm"])
    assert NOW_S + 3600 < until_s < time.time() + 3700
    assert web_tokens.verify(issuer.token(aud=["x", AUDIENCE]))[0] == "me"


@pytest.mark.parametrize(
    ("claims", "cause", "words"),
    [
        ({"exp": NOW_S - 3600}, "expired", ""),
        ({"exp": None}, "untrusted", 'missing the "exp" claim'),
        ({"exp": "never"}, "untrusted", "its signature or its content does not count"),
        ({"iss": "https://other.example.org"}, "untrusted", "Invalid issuer"),
        ({"iss": None}, "untrusted", ""),
        ({"aud": "someone"}, "untrusted", "Audience doesn't match"),
        ({"aud": None}, "untrusted", ""),
        ({"nbf": NOW_S + 3600}, "untrusted", "not yet valid"),
        ({"iat": NOW_S + 3600}, "untrusted", ""),
        ({"sub": None}, "untrusted", ""),
        ({"sub": ""}, "malformed", ""),
        ({"sub": "a\nb"}, "malformed", ""),
        ({"sub": "a" * 600}, "malformed", ""),
        ({"header": {"crit": ["x"]}}, "malformed", ""),
        ({"header": {"kid": "k2"}}, "untrusted", ""),
    ],
)
def test_what_does_not_count(
    verifier: Verifier, issuer: TestIssuer, claims: dict[str, Any], cause: str, words: str
) -> None:
    token = issuer.token(**claims)
    assert verifier.refused(token) == cause
    with pytest.raises(WasmkilnError, match=words or None):
        verifier.verify(token)
    if words:  # Who has no token of the issuer does not read what is wrong with its claims.
        with pytest.raises(WasmkilnError, match="its signature or its content"):
            verifier.verify(TestIssuer().token(**claims))


def test_a_clock_may_be_half_a_minute_off(verifier: Verifier, issuer: TestIssuer) -> None:
    now_s = int(time.time())
    assert verifier.verify(issuer.token(exp=now_s - 5))[0] == "me"
    assert verifier.verify(issuer.token(nbf=now_s + 15))[0] == "me"


def test_nobody_signs_in_the_issuers_place(verifier: Verifier, issuer: TestIssuer) -> None:
    assert verifier.refused(TestIssuer().token()) == "untrusted"
    head, body, signature = issuer.token().split(".")
    assert verifier.refused(f"{head}.{body}.") == "untrusted"
    other = issuer.token(sub="you").split(".")[1]
    assert verifier.refused(f"{head}.{other}.{signature}") == "untrusted"
    unsigned = part({"alg": "none", "kid": "k1"})
    assert verifier.refused(f"{unsigned}.{body}.") == "untrusted"
    # The public key as the secret of a symmetric algorithm: everybody has it.
    public = issuer.key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    signed = part({"alg": "HS256", "kid": "k1"}) + "." + body
    mac = hmac.new(public, signed.encode(), hashlib.sha256).hexdigest()
    assert verifier.refused(f"{signed}.{mac}") == "untrusted"
    # A key that comes with the token.
    own = TestIssuer()
    token = own.token(header={"jwk": own.row(), "jku": "https://example.org"})
    assert verifier.refused(token) == "untrusted"


@pytest.mark.parametrize("token", ["a.b.c", "..", "[" * 4000 + ".a.b", "\u00fc.a.b"])
def test_garbage_is_malformed(verifier: Verifier, token: str) -> None:
    assert verifier.refused(token) == "malformed"
    deep = base64.urlsafe_b64encode(b'{"alg":' + b"[" * 5000 + b"]" * 5000 + b"}").decode()
    assert verifier.refused(f"{deep}.e30.e30") in ("malformed", "untrusted")


def test_an_unknown_key_asks_for_new_ones(verifier: Verifier, issuer: TestIssuer) -> None:
    new = TestIssuer(key_id="k2")
    assert verifier.refused(new.token()) == "untrusted"
    assert verifier.unknown == 1
    verifier.keys = parse_keys(issuer.key_set(new))
    assert verifier.verify(new.token())[0] == "me"
    # Of several keys, a token has to name one.
    _, body, signature = new.token().split(".")
    assert verifier.refused(f"{part({'alg': 'ES256'})}.{body}.{signature}") == "untrusted"


async def test_an_unknown_key_fetches_beside_the_calls_and_at_most_once_a_minute(
    issuer: TestIssuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    new, asked, now_s = TestIssuer(key_id="k2"), list[str](), [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now_s[0])
    old = Issuer(ISSUER, (AUDIENCE,), parse_keys(issuer.key_set()), "https://example.org/keys")
    guard = AccessGuard(Access(on=True, issuer=old))
    slept: list[float] = []

    async def fetch(url: str) -> Keys:
        asked.append(url)
        return parse_keys(new.key_set())

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        now_s[0] += max(0.0, seconds)

    monkeypatch.setattr("wasmkilnd.access.guard.fetch_keys", fetch)
    monkeypatch.setattr("wasmkilnd.access.guard.asyncio.sleep", sleep)
    sent = Credentials(f"Bearer {new.token()}")
    follows = asyncio.create_task(guard.follow_keys())
    for _ in range(20):
        with pytest.raises(WasmkilnError):
            guard.identity(PLAINTEXT, sent)
    await _until(lambda: asked)
    assert slept == [60.0]
    assert guard.identity(PLAINTEXT, sent).name == "jwt:me"
    assert len(asked) == 1
    assert guard.keys_fetched
    follows.cancel()
    await asyncio.gather(follows, return_exceptions=True)


async def test_a_fetch_that_fails_counts_until_one_works_or_no_url_is_named(
    issuer: TestIssuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = Access(on=True, issuer=Issuer(ISSUER, (AUDIENCE,), {}, "https://example.org/keys"))
    found: Keys = {}

    async def fetch(_: str) -> Keys:
        return found

    monkeypatch.setattr("wasmkilnd.access.guard.fetch_keys", fetch)
    guard = AccessGuard(named)
    await guard.fetch_keys()
    assert not guard.keys_fetched
    found = parse_keys(issuer.key_set())
    await guard.fetch_keys()
    assert guard.keys_fetched
    found = {}
    await guard.fetch_keys()
    guard.replace(Access(on=True))
    await guard.fetch_keys()
    assert guard.keys_fetched


async def _until(done: Callable[[], object]) -> None:
    loop = asyncio.get_running_loop()
    while not done():
        turn = loop.create_future()
        loop.call_soon(turn.set_result, None)
        await turn


def test_only_safe_keys_are_used() -> None:
    issuer = TestIssuer()
    weak = TestIssuer(rsa.generate_private_key(65537, 1024), "weak")
    rows = [
        weak.row(),
        issuer.row(kid="enc", use="enc"),
        {"kty": "oct", "k": "c2VjcmV0", "kid": "shared"},
        {"kty": "EC", "crv": "P-256", "x": "!", "kid": "odd"},
        "text",
        issuer.row(),
    ]
    found = parse_keys(json.dumps({"keys": rows}).encode())
    assert {key_id: key.algorithm_name for key_id, key in found.items()} == {"k1": "ES256"}


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"{", "it is no JSON Web Key Set"),
        (b"[" * 5000, "it is no JSON Web Key Set"),
        (b"[]", "it is no JSON Web Key Set"),
        (b'{"keys": []}', "it is no JSON Web Key Set"),
        (
            json.dumps({"keys": [TestIssuer().row(kid=str(n)) for n in range(101)]}).encode(),
            "it needs 1 to 100 keys",
        ),
    ],
)
def test_a_file_without_keys_is_refused(tmp_path: Path, content: bytes, why: str) -> None:
    file = tmp_path / "keys.json"
    file.write_bytes(content)
    with pytest.raises(CannotUse, match=f"cannot use jwt keys {file}: .*{why}"):
        read_issuer(Jwt(issuer=ISSUER, audience=(AUDIENCE,), keys=str(file)))
