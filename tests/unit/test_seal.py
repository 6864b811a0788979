"""What is signed, and that nothing else is believed."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from securesystemslib.dsse import Envelope
from securesystemslib.signer import SSlibKey
from wasmkiln.attestation import peek
from wasmkilnd.model import STAMP_BYTES, Artifact, CacheKey, ExternType, Kind, Refusal

from tests.contract.sealing import OURS, THEIRS, sealer
from tests.contract.values import artifact
from tests.doubles.shelf import read, stored
from tests.frames import to_frames

SEALER, STRANGER = sealer(OURS), sealer(THEIRS)
ONE, OTHER = SEALER.seal(artifact(1, 300)), SEALER.seal(artifact(2, 300))


def accepted(one: Artifact, key: CacheKey) -> bool:
    """Store ``one`` under ``key`` with a stamp that is right; tell whether it would be used.

    So what is shown holds by the attestation alone.
    """
    try:
        one.attestation.decode()
    except UnicodeDecodeError:  # No value can hold it.
        return SEALER.verify(one, key) is None
    [value] = stored(one, SEALER).values()
    [name] = stored(replace(ONE, **_at(key)), SEALER)
    return read({name: value}, key, SEALER)[0] is not None


def _at(key: CacheKey) -> dict[str, Any]:
    spec = replace(ONE.spec, fingerprint=key.fingerprint)
    return {"module_sha256": key.module_sha256, "spec": spec}


def with_payload(one: Artifact, payload: bytes) -> Artifact:
    return replace(
        one,
        sha256=hashlib.sha256(payload).hexdigest(),
        size_bytes=len(payload),
        frames=to_frames(payload),
    )


def test_another_implementation_verifies_it() -> None:
    key = SSlibKey(OURS.public.id, "ed25519", "ed25519", {"public": OURS.public.hex})
    assert Envelope.from_dict(json.loads(ONE.attestation)).verify([key], 1)


@pytest.mark.parametrize(
    "metadata",
    [None, 7, "x", [], [["a", 1]], {}, {"wasmkiln_madeMs": "1"}, {"wasmkiln_madeMs": -1}],
)
def test_metadata_of_any_shape_is_no_error_but_no_statement(metadata: object) -> None:
    envelope = json.loads(ONE.attestation)
    statement = json.loads(base64.b64decode(envelope["payload"]))
    details = statement["predicate"]["runDetails"]
    odd = {**details["metadata"], **metadata} if isinstance(metadata, dict) else metadata
    details["metadata"] = odd if metadata else metadata
    envelope["payload"] = base64.b64encode(json.dumps(statement).encode()).decode()
    assert peek(dumped(envelope)) is None


def with_forged_signature(one: Artifact) -> Artifact:
    """A stranger's signature under our key's id."""
    envelope = json.loads(STRANGER.seal(one).attestation)
    envelope["signatures"][0]["keyid"] = OURS.public.id
    return replace(one, attestation=dumped(envelope))


CAUSES: list[tuple[str, Callable[[Artifact], Artifact]]] = [
    ("unsigned", lambda one: replace(one, attestation=b"")),
    ("unsigned", lambda one: replace(one, attestation=b"{}")),
    ("unsigned", lambda one: replace(one, attestation=b"[" * 100_000)),
    ("unsigned", lambda one: replace(one, attestation=b" " + one.attestation)),
    ("stranger", STRANGER.seal),
    ("mismatch", lambda one: replace(one, attestation=OTHER.attestation)),
    ("mismatch", with_forged_signature),
    ("mismatch", lambda one: replace(one, attestation=retyped(one))),
    ("mismatch", lambda one: replace(one, attestation=of_something_else())),
    ("mismatch", lambda one: with_payload(one, b"evil")),
    ("mismatch", lambda one: replace(one, kind=Kind.COMPONENT)),
    ("mismatch", lambda one: replace(one, compile_time_s=0.5)),
    ("mismatch", lambda one: replace(one, imports=())),
    ("mismatch", lambda one: replace(one, exports=(*one.exports, ExternType("", "x", "f", "")))),
    ("mismatch", lambda one: replace(one, types_truncated=True)),
    ("mismatch", lambda one: replace(one, module_sha256="0" * 64)),
    *(
        ("mismatch", lambda one, change=change: replace(one, spec=replace(one.spec, **change)))
        for change in (
            {"target": "aarch64-unknown-linux-gnu"},
            {"cpu": "native"},
            {"settings": {"fuel": "true"}},
            {"changed_settings": {"fuel": "true"}},
            {"fingerprint": "0" * 64},
            {"engine": replace(artifact().spec.engine, version="2.0")},
        )
    ),
]


def retyped(one: Artifact) -> bytes:
    envelope = json.loads(one.attestation)
    envelope["payloadType"] = "text/plain"
    return dumped(envelope)


def of_something_else() -> bytes:
    """Our own signature, over something that is no statement about an artifact."""
    envelope = Envelope(b"{}", "application/vnd.in-toto+json", {})
    said = {"keyid": OURS.public.id, "sig": base64.b64encode(OURS.sign(envelope.pae())).decode()}
    return dumped({**envelope.to_dict(), "signatures": [said]})


def dumped(envelope: object) -> bytes:
    return json.dumps(envelope, sort_keys=True, separators=(",", ":")).encode()


@pytest.mark.parametrize(("cause", "change"), CAUSES)
def test_every_change_is_refused_with_its_cause(
    cause: str, change: Callable[[Artifact], Artifact]
) -> None:
    changed = change(ONE)
    refusal = SEALER.verify(changed, changed.key)
    assert refusal is not None
    assert refusal.cause == cause
    assert not accepted(changed, ONE.key)


def test_a_stranger_is_named_and_what_to_do() -> None:
    refusal = SEALER.verify(STRANGER.seal(ONE), ONE.key)
    assert refusal is not None
    assert THEIRS.public.id in refusal.why
    assert "WASMKILN_SIGNING_KEY" in refusal.why


# --- no mutation of a stored value, whoever computes its digests ------------------------


def test_no_value_is_accepted_under_another_key() -> None:
    for one, key in ((ONE, OTHER.key), (OTHER, ONE.key)):
        assert _cause(SEALER.verify(one, key)) == "mismatch"
        assert not accepted(one, key)
        # With a header that says the key that it is put under:
        spec = replace(one.spec, fingerprint=key.fingerprint)
        moved = replace(one, module_sha256=key.module_sha256, spec=spec)
        assert not accepted(moved, key)


# --- stamps ---------------------------------------------------------------------------------


def test_a_stamp_names_its_key_and_is_no_other_messages() -> None:
    stamp = SEALER.stamp(b"message")
    assert len(stamp) == STAMP_BYTES
    assert stamp[:32].hex() == OURS.public.id
    assert SEALER.check_stamp(b"message", stamp) is None
    assert _cause(SEALER.check_stamp(b"another", stamp)) == "mismatch"
    assert _cause(SEALER.check_stamp(b"message", STRANGER.stamp(b"message"))) == "stranger"
    assert sealer(THEIRS, OURS).check_stamp(b"message", stamp) is None


@given(st.integers(0, STAMP_BYTES - 1), st.integers(1, 255))
def test_no_changed_stamp_is_accepted(position: int, flip: int) -> None:
    stamp = bytearray(SEALER.stamp(b"message"))
    stamp[position] ^= flip
    assert SEALER.check_stamp(b"message", bytes(stamp)) is not None


def _cause(refusal: Refusal | None) -> str:
    return refusal.cause if refusal else ""


def test_what_is_sealed_anew_is_described_anew() -> None:
    one = sealer(OURS).seal(artifact(1))
    again = sealer(THEIRS).seal(replace(one, described=replace(one, frames=())))
    assert again.attestation != one.attestation
    assert again.described is None
