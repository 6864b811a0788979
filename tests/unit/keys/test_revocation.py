"""Revoked keys: what they signed, and who may say that they are."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wasmkiln.revoked_keys import (
    ALTOGETHER_MS,
    parse_revocation,
    read_revocations,
    shown,
    strictest,
    to_ms,
    write_revocation,
)
from wasmkiln.trusted_keys import TrustedKeys
from wasmkilnd.cache.redis.guarded import GuardedRedis
from wasmkilnd.cache.redis.mark_store import MarkStore
from wasmkilnd.cache.redis.revocation_store import RevocationStore
from wasmkilnd.cache.value.marks import Mark, Marks, read_mark, write_mark
from wasmkilnd.cache.value.names import KeyNames
from wasmkilnd.cache.value.revocations import read_statement, write_statement
from wasmkilnd.model import Module, Refusal
from wasmkilnd.signing.files import KeysUnusable
from wasmkilnd.signing.opening import open_ring
from wasmkilnd.signing.private import PrivateKey
from wasmkilnd.signing.sealer import DsseSealer, DsseVerifier
from wasmkilnd.signing.store import KeyStore

from tests.contract.sealing import MADE_S, OURS, THEIRS, sealer
from tests.contract.values import artifact, module
from tests.doubles.shelf import Shelf, read, stored

MADE_MS = int(MADE_S * 1000)
THEIR_ID = THEIRS.public.id
ONE = sealer(THEIRS).seal(artifact(1, 300))
MODULE: Module = module(1, 300)


def trusting(revoked: Mapping[str, int], now_s: float = MADE_S, max_age_s: float = 0) -> DsseSealer:
    """Our sealer, which trusts their key but for what ``revoked`` says."""
    keys = TrustedKeys([OURS.public, THEIRS.public], revoked)
    return DsseSealer(OURS.signer(), keys, "0.0.test", lambda: now_s, max_age_s)


def _cause(refusal: Refusal | None) -> str:
    return refusal.cause if refusal else ""


@pytest.mark.parametrize(
    ("since_ms", "cause"),
    [
        (ALTOGETHER_MS, "revoked"),
        (MADE_MS - 1, "revoked"),
        (MADE_MS, "revoked"),
        (MADE_MS + 1, ""),
    ],
)
def test_an_artifact_is_refused_if_it_was_made_at_the_date_or_later(
    since_ms: int, cause: str
) -> None:
    ours = trusting({THEIR_ID: since_ms})
    assert _cause(ours.verify(ONE, ONE.key)) == cause
    assert _cause(ours.outdated(ONE)) == cause
    found, rejected = read(stored(ONE, sealer(THEIRS)), ONE.key, ours)
    assert (found is None) == bool(cause)
    assert rejected == ([cause] if cause else [])
    assert trusting({}).verify(ONE, ONE.key) is None


def test_a_stamp_counts_by_the_time_of_the_attestation_in_it() -> None:
    mine = trusting({}).seal(artifact(1, 300))
    values = stored(mine, sealer(THEIRS, OURS))
    assert read(values, mine.key, trusting({THEIR_ID: MADE_MS}))[1] == ["revoked"]
    assert read(values, mine.key, trusting({THEIR_ID: MADE_MS + 1}))[1] == []


def test_a_module_is_refused_only_if_its_key_is_revoked_altogether() -> None:
    values = stored(MODULE, sealer(THEIRS))
    assert read(values, MODULE.sha256, trusting({THEIR_ID: ALTOGETHER_MS}))[1] == ["revoked"]
    # It names no time, and its bytes have the digest: nobody can put another one there.
    assert read(values, MODULE.sha256, trusting({THEIR_ID: 1}))[1] == []


def test_what_names_no_time_counts_as_signed_now() -> None:
    stamp = sealer(THEIRS).stamp(b"lease")
    assert trusting({THEIR_ID: MADE_MS + 1}).check_stamp_now(b"lease", stamp) is None
    assert _cause(trusting({THEIR_ID: MADE_MS}).check_stamp_now(b"lease", stamp)) == "revoked"
    assert _cause(trusting({}).check_stamp_now(b"other", stamp)) == "mismatch"


def test_what_was_made_before_the_date_is_retired() -> None:
    assert not trusting({}).is_retired(ONE)
    assert trusting({THEIR_ID: MADE_MS + 1}).is_retired(ONE)
    mine = trusting({}).seal(artifact(1, 300))
    assert not trusting({THEIR_ID: MADE_MS + 1}).is_retired(mine)


@pytest.mark.parametrize(("age_s", "cause"), [(0, ""), (60, ""), (60.5, "too_old")])
def test_an_artifact_grows_too_old(age_s: float, cause: str) -> None:
    ours = trusting({}, MADE_S + age_s, max_age_s=60)
    assert _cause(ours.verify(ONE, ONE.key)) == cause
    assert _cause(ours.outdated(ONE)) == cause
    assert trusting({}, MADE_S + age_s).outdated(ONE) is None


@given(st.binary(max_size=200))
def test_any_bytes_are_a_revocation_or_a_value_error(text: bytes) -> None:
    with pytest.raises(ValueError):
        parse_revocation(text)


@pytest.mark.parametrize(
    "said",
    [{"key_id": "x", "since_ms": 1}, {"key_id": THEIR_ID, "since_ms": -1}]
    + [{"key_id": THEIR_ID, "since_ms": since} for since in (True, 1.5, "1", None, 1 << 60)]
    + [{"key_id": THEIR_ID}, [], "", {"key_id": 5, "since_ms": 5}],
)
def test_a_malformed_revocation_is_none(said: object) -> None:
    with pytest.raises(ValueError, match="not a revocation"):
        parse_revocation(json.dumps(said))


def test_words_and_times() -> None:
    assert shown(ALTOGETHER_MS) == "altogether"
    assert shown(to_ms(datetime.fromisoformat("2026-11-27"))) == "since 2026-11-27T00:00:00Z"
    assert to_ms(datetime.fromisoformat("2026-11-27T01:00:00+01:00")) == to_ms(
        datetime.fromisoformat("2026-11-27T00:00:00Z")
    )
    assert shown(1 << 51)
    assert strictest({"a": 5, "b": 1}, {"a": 3, "c": 2}) == {"a": 3, "b": 1, "c": 2}


def test_the_folder_keeps_the_strictest(tmp_path: Path) -> None:
    store = KeyStore(tmp_path / "keys")
    assert store.revoked() == {}
    assert store.revoke(THEIR_ID, 500)
    assert not store.revoke(THEIR_ID, 600)
    assert store.revoke(THEIR_ID, 400)
    assert store.revoked() == {THEIR_ID: 400}
    assert read_revocations(tmp_path / "keys" / "revoked") == {THEIR_ID: 400}
    (tmp_path / "keys" / "revoked" / "x.json").write_text("{}")
    with pytest.raises(KeysUnusable, match="not a revocation"):
        store.revoked()


def test_a_folder_that_others_may_write_to_is_refused(tmp_path: Path) -> None:
    store = KeyStore(tmp_path / "keys")
    store.revoke(THEIR_ID, 500)
    (tmp_path / "keys" / "revoked").chmod(0o777)
    with pytest.raises(KeysUnusable, match="revoked"):
        store.revoked()


def test_the_client_reads_revocations_in_or_beside_the_folder_of_keys(tmp_path: Path) -> None:
    store = KeyStore(tmp_path / "keys")
    store.trust(THEIRS.public)
    store.revoke(THEIR_ID, 7)
    assert TrustedKeys.read(tmp_path / "keys" / "trusted").revoked == {THEIR_ID: 7}
    other = tmp_path / "other"
    (other / "revoked").mkdir(parents=True)
    (other / "their.pem").write_text(THEIRS.public.pem)
    (other / "revoked" / "a.json").write_bytes(write_revocation(THEIR_ID, 9))
    assert TrustedKeys.read(str(other)).revoked == {THEIR_ID: 9}
    assert TrustedKeys.read([other, tmp_path / "keys" / "trusted"]).revoked == {THEIR_ID: 7}


def test_a_ring_learns_and_keeps_what_it_learned(tmp_path: Path) -> None:
    ring = open_ring(tmp_path / "keys", "", (THEIRS.public.hex,))
    assert ring.revoke({THEIR_ID: 9}) == {THEIR_ID: 9}
    assert ring.revoke({THEIR_ID: 9}) == {}
    assert ring.revoke({THEIR_ID: 10}) == {}
    assert open_ring(tmp_path / "keys", "", ()).revoked == {THEIR_ID: 9}


def test_a_ring_that_cannot_keep_it_hands_it_on(tmp_path: Path) -> None:
    ring = open_ring(tmp_path / "keys", "", (THEIRS.public.hex,))
    (tmp_path / "keys" / "revoked").write_text("in the way")
    ring.revoke({THEIR_ID: 9})
    assert ring.revoked == {THEIR_ID: 9}
    (tmp_path / "keys" / "revoked").unlink()
    again = open_ring(tmp_path / "keys", "", ())
    assert again.revoked == {}
    again.take_over(ring)
    assert again.revoked == {THEIR_ID: 9}


def test_a_mark_by_a_revoked_key_is_signed_again_by_who_knows_it() -> None:
    shelf, names, sha256 = Shelf(), KeyNames("wasm:"), ONE.module_sha256
    name, revoked = names.mark(sha256), dict[str, int]()
    shelf.values[name] = write_mark(name, Mark(evicted_ms=5), sealer(THEIRS).stamp)
    keys = TrustedKeys([OURS.public, THEIRS.public])
    keys.revoked = revoked
    ours = DsseSealer(OURS.signer(), keys, "0.0.test", lambda: MADE_S)

    async def look() -> None:
        await store.look([sha256])
        for _ in range(100):  # The mark is written behind.
            await asyncio.sleep(0)

    async def run() -> None:
        await look()
        revoked[THEIR_ID] = ALTOGETHER_MS
        store.recheck()
        await look()
        await store.close()

    store = MarkStore(GuardedRedis(shelf), names, ours, Marks(), 1000)
    asyncio.run(run())
    assert store.marks.of(sha256) == Mark(evicted_ms=5)
    alone = TrustedKeys([OURS.public])
    assert read_mark(name, shelf.values[name], DsseVerifier(alone).check_stamp_now) == Mark(5)


class Fleet:
    """Revocations on one server, as daemons with several keys see them."""

    def __init__(self) -> None:
        self.shelf = Shelf()
        self.names = KeyNames("wasm:")

    def exchange(
        self, who: DsseSealer, known: Mapping[str, int], own: PrivateKey
    ) -> dict[str, int]:
        async def run() -> dict[str, int]:
            link = GuardedRedis(self.shelf)
            store = RevocationStore(link, self.names, who)
            return await store.exchange(
                {OURS.public.id, THEIR_ID, THIRD.public.id}, known, own.public.id
            )

        return asyncio.run(run())


THIRD = PrivateKey.generate()


def of_all(signing: PrivateKey, revoked: Mapping[str, int]) -> DsseSealer:
    keys = TrustedKeys([OURS.public, THEIRS.public, THIRD.public], revoked)
    return DsseSealer(signing.signer(), keys, "0.0.test", lambda: MADE_S)


def test_a_revocation_reaches_others_and_comes_back_when_it_is_deleted() -> None:
    fleet, known = Fleet(), {THEIR_ID: 5}
    assert fleet.exchange(of_all(OURS, known), known, OURS) == {}
    assert fleet.exchange(of_all(THIRD, {}), {}, THIRD) == known
    fleet.shelf.values.clear()
    assert fleet.exchange(of_all(THIRD, known), known, THIRD) == {}
    assert fleet.exchange(of_all(OURS, {}), {}, OURS) == known


def test_the_stricter_statement_stays() -> None:
    fleet = Fleet()
    fleet.exchange(of_all(OURS, {THEIR_ID: 5}), {THEIR_ID: 5}, OURS)
    assert fleet.exchange(of_all(THIRD, {THEIR_ID: 9}), {THEIR_ID: 9}, THIRD) == {THEIR_ID: 5}
    assert fleet.exchange(of_all(OURS, {}), {}, OURS) == {THEIR_ID: 5}
    fleet.exchange(of_all(THIRD, {THEIR_ID: 0}), {THEIR_ID: 0}, THIRD)
    assert fleet.exchange(of_all(OURS, {}), {}, OURS) == {THEIR_ID: 0}


def test_nobody_revokes_or_excuses_their_own_key() -> None:
    fleet = Fleet()
    name = fleet.names.revoked(THEIR_ID)
    fleet.shelf.values[name] = write_statement(THEIR_ID, 1, sealer(THEIRS).stamp)
    assert fleet.exchange(of_all(OURS, {}), {}, OURS) == {}
    # A daemon that knows more replaces it.
    fleet.exchange(of_all(OURS, {THEIR_ID: 0}), {THEIR_ID: 0}, OURS)
    assert fleet.exchange(of_all(THIRD, {}), {}, THIRD) == {THEIR_ID: 0}


def test_a_revoked_key_revokes_no_other() -> None:
    ours, stamp = of_all(OURS, {THEIR_ID: 0}), sealer(THEIRS).stamp
    statement = write_statement(THIRD.public.id, 1, stamp)
    assert read_statement(THIRD.public.id, statement, ours.check_stamp_now) is None
    assert read_statement(THIRD.public.id, statement, of_all(OURS, {}).check_stamp_now) == 1


@given(st.binary(max_size=400))
def test_a_changed_statement_counts_for_nothing(record: bytes) -> None:
    assert read_statement(THEIR_ID, record, of_all(OURS, {}).check_stamp_now) is None


def test_a_statement_about_one_key_is_none_about_another() -> None:
    statement = write_statement(THEIR_ID, 1, sealer(OURS).stamp)
    assert read_statement(THIRD.public.id, statement, of_all(THIRD, {}).check_stamp_now) is None
    damaged = statement[:-3] + b"9}\n"
    assert read_statement(THEIR_ID, damaged, of_all(THIRD, {}).check_stamp_now) is None


def test_the_name_of_a_revocation_is_known_as_such() -> None:
    names = KeyNames("wasm:")
    assert names.is_about_keys(names.revoked(THEIR_ID))
    assert not names.is_about_keys(names.module(MODULE.sha256))
