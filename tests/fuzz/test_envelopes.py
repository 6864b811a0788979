"""Whatever bytes come as an attestation, only what a trusted key signed is accepted."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wasmkiln import AttestationInvalid, PublicKey
from wasmkiln.attestation import open_envelope

from tests.attesting import Attester
from tests.fuzz.bytes_from_outside import changed, corpus, json_values, kept
from tests.unit.client.test_attestation import make

ATTESTER = Attester()
GENUINE = make(by=ATTESTER).header.attestation
SEEDS = [GENUINE, *corpus("envelopes")]


class Trusted:
    """Trusts one key."""

    def get(self, key_id: str, /) -> PublicKey | None:
        return ATTESTER.key if key_id == ATTESTER.key.id else None

    revoked = frozenset[str]()


def check(envelope: bytes) -> None:
    if envelope == GENUINE:
        assert open_envelope(envelope, Trusted())[1] == ATTESTER.key.id
        return
    with pytest.raises(AttestationInvalid) as refused:
        open_envelope(envelope, Trusted())
    assert refused.value.metadata["cause"] in {"unsigned", "stranger", "mismatch"}


@kept(*SEEDS)
@given(changed(SEEDS) | st.binary(max_size=256))
def test_any_bytes_are_refused_unless_they_are_what_was_signed(envelope: bytes) -> None:
    check(envelope)


@given(
    st.booleans(),
    st.sampled_from(["payload", "payloadType", "signatures", "keyid", "sig", "other"]),
    json_values,
)
def test_any_value_in_place_of_a_field(inside: bool, name: str, value: Any) -> None:
    said = json.loads(GENUINE)
    (said["signatures"][0] if inside else said)[name] = value
    text = json.dumps(said, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    check(text.encode(errors="surrogatepass"))
