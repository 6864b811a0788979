"""Revoked keys: nothing counts that they signed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wasmkiln.attestation import TrustedKeys, read_revocations, write_revocation
from wasmkilnd.model import Module, Refusal
from wasmkilnd.signing.keys import Keys, KeyStore, KeysUnusable
from wasmkilnd.signing.sealer import Sealer

from tests.contract.sealing import MADE_S, OURS, THEIRS, sealer
from tests.contract.values import artifact, module
from tests.doubles.shelf import read, stored

THEIR_ID = THEIRS.public.id
ONE = sealer(THEIRS).seal(artifact(1, 300))
MODULE: Module = module(1, 300)


def trusting(*revoked: str, now_s: float = MADE_S, max_age_s: float = 0) -> Sealer:
    """Our sealer, which trusts their key unless it is revoked."""
    keys = Keys(OURS, TrustedKeys([OURS.public, THEIRS.public], revoked))
    return Sealer(keys, "0.0.test", max_age_s=max_age_s, now=lambda: now_s)


def _cause(refusal: Refusal | None) -> str:
    return refusal.cause if refusal else ""


def test_a_stamp_by_a_revoked_key_is_refused_whoever_signed_what_is_in_it() -> None:
    mine = trusting().seal(artifact(1, 300))
    for what, key in ((mine, mine.key), (MODULE, MODULE.sha256)):
        values = stored(what, sealer(THEIRS, OURS))
        assert read(values, key, trusting())[1] == []
        assert read(values, key, trusting(THEIR_ID))[1] == ["revoked"]
    stamp = sealer(THEIRS).stamp(b"lease")
    assert _cause(trusting(THEIR_ID).check_stamp(b"lease", stamp)) == "revoked"


def test_a_key_that_is_revoked_and_no_longer_trusted_is_revoked() -> None:
    ours = Sealer(Keys(OURS, TrustedKeys([OURS.public], [THEIR_ID])))
    assert _cause(ours.verify(ONE, ONE.key)) == "revoked"


@pytest.mark.parametrize(("age_s", "cause"), [(0, ""), (60, ""), (60.5, "too_old")])
def test_an_artifact_grows_too_old(age_s: float, cause: str) -> None:
    ours = trusting(now_s=MADE_S + age_s, max_age_s=60)
    assert _cause(ours.verify(ONE, ONE.key)) == cause
    assert _cause(ours.outdated(ONE)) == cause
    assert trusting(now_s=MADE_S + age_s).outdated(ONE) is None


def revoked_in(tmp_path: Path, *texts: bytes) -> Path:
    folder = tmp_path / "revoked"
    folder.mkdir(parents=True, exist_ok=True)
    for number, text in enumerate(texts):
        (folder / f"{number}.json").write_bytes(text)
    return folder


@given(text=st.binary(max_size=200))
def test_any_bytes_are_a_revocation_or_a_value_error(
    tmp_path_factory: pytest.TempPathFactory, text: bytes
) -> None:
    folder = revoked_in(tmp_path_factory.mktemp("any"), text)
    with pytest.raises(ValueError, match="does not say which key is revoked"):
        read_revocations(folder)


@pytest.mark.parametrize("said", [{"key_id": "x"}, {}, [], "", {"key_id": 5, "since_ms": 5}])
def test_a_malformed_revocation_is_none(tmp_path: Path, said: object) -> None:
    with pytest.raises(ValueError, match="does not say which key is revoked"):
        read_revocations(revoked_in(tmp_path, json.dumps(said).encode()))


def test_0_6_0_reads_what_is_written_and_its_dates_have_no_meaning(tmp_path: Path) -> None:
    assert json.loads(write_revocation(THEIR_ID)) == {"key_id": THEIR_ID, "since_ms": 0}
    for since_ms in (1, 4_102_444_800_000):
        dated = json.dumps({"key_id": THEIR_ID, "since_ms": since_ms}).encode()
        assert read_revocations(revoked_in(tmp_path, dated)) == {THEIR_ID}


def test_the_key_directory_keeps_revocations(tmp_path: Path) -> None:
    store = KeyStore(tmp_path / "keys")
    assert store.trusted().revoked == frozenset()
    store.revoke(THEIR_ID)
    store.revoke(THEIR_ID)
    assert store.trusted().revoked == {THEIR_ID}
    (tmp_path / "keys" / "revoked" / "x.json").write_text("{}")
    with pytest.raises(KeysUnusable, match="does not say which key is revoked"):
        store.trusted()
    (tmp_path / "keys" / "revoked").chmod(0o777)
    with pytest.raises(KeysUnusable, match="other users may write to it"):
        store.trusted()


def test_the_client_reads_revocations_in_or_beside_the_folder_of_keys(tmp_path: Path) -> None:
    store = KeyStore(tmp_path / "keys")
    store.trust(THEIRS.public)
    store.revoke(THEIR_ID)
    assert TrustedKeys.read(tmp_path / "keys" / "trusted").revoked == {THEIR_ID}
    other = tmp_path / "other"
    revoked_in(other, write_revocation(OURS.public.id))
    (other / "their.pem").write_text(THEIRS.public.pem)
    assert TrustedKeys.read(str(other)).revoked == {OURS.public.id}
    both = TrustedKeys.read([other, tmp_path / "keys" / "trusted"])
    assert both.revoked == {THEIR_ID, OURS.public.id}
