"""Private keys: how they may be written, and that they never show."""

from __future__ import annotations

import base64
import traceback

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from wasmkilnd.signing.keys import PrivateKey

KEY = PrivateKey.generate()
PEM = KEY.pem.decode()


@pytest.mark.parametrize(
    "text",
    [
        PEM,
        PEM.replace("\n", "\\n"),
        f"  {PEM}\n",
        KEY.base64,
        base64.b64decode(KEY.base64).hex(),
    ],
    ids=["pem", "on-one-line", "spaces", "base64", "hex"],
)
def test_every_way_to_write_a_key(text: str) -> None:
    assert PrivateKey.parse(text).public == KEY.public


def test_it_does_not_show() -> None:
    assert KEY.public.id in repr(KEY)
    for secret in (KEY.base64, PEM.splitlines()[1]):
        assert secret not in f"{KEY} {KEY!r} {vars(KEY)}"


OTHER_KIND = (
    generate_private_key(SECP256R1())
    .private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    .decode()
)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hunter2hunter2",
        base64.b64encode(b"hunter2").decode(),
        "ab" * 31,
        OTHER_KIND,
        "-----BEGIN PRIVATE KEY-----\nhunter2\n-----END PRIVATE KEY-----",
        KEY.public.pem,
    ],
)
def test_what_is_no_key_is_refused_without_quoting_it(text: str) -> None:
    with pytest.raises(ValueError, match="Ed25519 private key") as caught:
        PrivateKey.parse(text)
    told = "".join(traceback.format_exception(caught.value))
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert not text or "ab" * 31 not in told
