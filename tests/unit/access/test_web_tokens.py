"""JSON Web Tokens: which count, and which do not."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from wasmkilnd.access.identities import Identities
from wasmkilnd.access.key_set import KeySet, parse_key_set, read_key_set
from wasmkilnd.access.policy import Policy
from wasmkilnd.access.unusable import AccessUnusable
from wasmkilnd.access.web_tokens import Issuer, VerifiedWebTokens
from wasmkilnd.errors import Reason, WasmkilnError
from wasmkilnd.model import PLAINTEXT, Credentials

from tests.web_tokens import AUDIENCE, ISSUER, PrivateKey, TestIssuer, part

NOW_S = int(time.time())


class Verifier:
    """Verifies tokens with keys that a test replaces."""

    def __init__(self, keys: KeySet) -> None:
        self.keys = keys
        self.unknown = 0
        issuer = Issuer(ISSUER, ("other", AUDIENCE))
        self.web_tokens = VerifiedWebTokens(issuer, lambda: self.keys, self._count)

    def _count(self) -> None:
        self.unknown += 1

    def refused(self, token: str) -> str:
        with pytest.raises(WasmkilnError) as caught:
            self.web_tokens.verify(token)
        assert caught.value.reason is Reason.CREDENTIALS_INVALID
        assert token not in caught.value.message
        return caught.value.metadata["cause"]


@pytest.fixture
def issuer() -> TestIssuer:
    return TestIssuer()


@pytest.fixture
def verifier(issuer: TestIssuer) -> Verifier:
    return Verifier(parse_key_set(issuer.key_set()))


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
    web_tokens = Verifier(parse_key_set(issuer.key_set())).web_tokens
    subject, claims, until_s = web_tokens.verify(issuer.token(groups=["wasm"]))
    assert (subject, claims["groups"]) == ("me", ["wasm"])
    assert NOW_S + 3600 < until_s < time.time() + 3700
    assert web_tokens.verify(issuer.token(aud=["x", AUDIENCE]))[0] == "me"


@pytest.mark.parametrize(
    ("claims", "cause"),
    [
        ({"exp": NOW_S - 3600}, "expired"),
        ({"exp": None}, "untrusted"),
        ({"exp": "never"}, "untrusted"),
        ({"iss": "https://other.example.org"}, "untrusted"),
        ({"iss": None}, "untrusted"),
        ({"aud": "someone"}, "untrusted"),
        ({"aud": None}, "untrusted"),
        ({"nbf": NOW_S + 3600}, "untrusted"),
        ({"iat": NOW_S + 3600}, "untrusted"),
        ({"sub": None}, "untrusted"),
        ({"sub": ""}, "malformed"),
        ({"sub": "a\nb"}, "malformed"),
        ({"sub": "a" * 600}, "malformed"),
        ({"header": {"crit": ["x"]}}, "malformed"),
        ({"header": {"kid": "k2"}}, "untrusted"),
    ],
)
def test_what_does_not_count(
    verifier: Verifier, issuer: TestIssuer, claims: dict[str, Any], cause: str
) -> None:
    assert verifier.refused(issuer.token(**claims)) == cause


@pytest.mark.parametrize(
    ("claims", "words"),
    [
        ({"aud": "someone"}, "another audience"),
        ({"iss": "https://other.example.org"}, "another issuer"),
        ({"nbf": NOW_S + 3600}, "not valid yet"),
        ({"exp": None}, "lacks the claim exp"),
        ({"exp": "never"}, "its signature or its content does not count"),
    ],
)
def test_who_has_a_token_of_the_issuer_reads_what_is_wrong(
    verifier: Verifier, issuer: TestIssuer, claims: dict[str, Any], words: str
) -> None:
    with pytest.raises(WasmkilnError, match=words):
        verifier.web_tokens.verify(issuer.token(**claims))
    with pytest.raises(WasmkilnError, match="its signature or its content"):
        verifier.web_tokens.verify(TestIssuer().token(**claims))


def test_a_clock_may_be_half_a_minute_off(verifier: Verifier, issuer: TestIssuer) -> None:
    now_s = int(time.time())
    assert verifier.web_tokens.verify(issuer.token(exp=now_s - 5))[0] == "me"
    assert verifier.web_tokens.verify(issuer.token(nbf=now_s + 15))[0] == "me"


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


def test_deep_json_in_a_header_ends_nothing(verifier: Verifier) -> None:
    deep = base64.urlsafe_b64encode(b'{"alg":' + b"[" * 5000 + b"]" * 5000 + b"}").decode()
    assert verifier.refused(f"{deep}.e30.e30") in ("malformed", "untrusted")


def test_an_unknown_key_asks_for_new_ones(verifier: Verifier, issuer: TestIssuer) -> None:
    new = TestIssuer(key_id="k2")
    assert verifier.refused(new.token()) == "untrusted"
    assert verifier.unknown == 1
    verifier.keys = parse_key_set(issuer.key_set(new))
    assert verifier.web_tokens.verify(new.token())[0] == "me"
    # Of several keys, a token has to name one.
    _, body, signature = new.token().split(".")
    assert verifier.refused(f"{part({'alg': 'ES256'})}.{body}.{signature}") == "untrusted"


def test_a_token_that_is_remembered_ends_with_its_key(
    verifier: Verifier, issuer: TestIssuer
) -> None:
    found = Identities(Policy(), web_tokens=verifier.web_tokens)
    sent = Credentials(f"Bearer {issuer.token()}")
    assert found.of(PLAINTEXT, sent).name == "jwt:me"
    verifier.keys = parse_key_set(TestIssuer(key_id="k2").key_set())
    with pytest.raises(WasmkilnError):
        found.of(PLAINTEXT, sent)


def test_only_safe_keys_are_used() -> None:
    issuer = TestIssuer()
    weak = TestIssuer(rsa.generate_private_key(65537, 1024), "weak")
    rows = [
        weak.row(),
        issuer.row(kid="enc", use="enc"),
        issuer.row(kid="other", alg="ES512"),
        {"kty": "oct", "k": "c2VjcmV0", "kid": "shared"},
        {"kty": "EC", "crv": "P-256", "x": "!", "kid": "odd"},
        "text",
        issuer.row(),
    ]
    found = parse_key_set(json.dumps({"keys": rows}).encode())
    assert [(key.id, key.algorithms) for key in found.keys] == [("k1", ("ES256",))]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"{", "it is not JSON"),
        (b"[" * 5000, "it is not JSON"),
        (b"[]", "no list"),
        (b'{"keys": []}', "no public key"),
        (json.dumps({"keys": [{}] * 101}).encode(), "more than 100 keys"),
    ],
)
def test_a_file_without_keys_is_refused(tmp_path: Path, content: bytes, why: str) -> None:
    file = tmp_path / "keys.json"
    file.write_bytes(content)
    with pytest.raises(AccessUnusable, match=f"cannot use jwt_keys {file}: .*{why}"):
        read_key_set(file)
