"""No change of a stored value, whatever it is, comes out as anything but a rejection."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wasmkilnd import wire
from wasmkilnd.cache.value.format import HEADER_OFFSET, head_end
from wasmkilnd.cache.value.pieces import CODECS, RAW, ZSTD, Body, codec_for, cut, decoded, pack
from wasmkilnd.cache.value.rejected import ValueRejected
from wasmkilnd.model import STAMP_BYTES, Artifact, CacheKey, Module
from wasmkilnd.wire import CHUNK_BYTES

from tests.contract.sealing import OURS, THEIRS, sealer
from tests.contract.values import artifact, module, payload_of, same
from tests.doubles.shelf import read, stored

SEALER = sealer(OURS)


def compressible(one: Artifact) -> Artifact:
    """An artifact of the same key that is worth compressing."""
    payload = (one.sha256.encode() * (1 + one.size_bytes // 64))[: one.size_bytes]
    return replace(one, frames=wire.to_frames(payload), sha256=hashlib.sha256(payload).hexdigest())


SMALL = SEALER.seal(artifact(1, 300))
LARGE = SEALER.seal(artifact(2, 2 * CHUNK_BYTES + 300))
SHRUNK = SEALER.seal(compressible(artifact(3, 2 * CHUNK_BYTES + 300)))
MODULE = module(4, CHUNK_BYTES + 300)
ALL: dict[str, Artifact | Module] = {
    "small": SMALL,
    "large": LARGE,
    "shrunk": SHRUNK,
    "module": MODULE,
}
STORED = {name: stored(what, SEALER) for name, what in ALL.items()}


def key_of(name: str) -> CacheKey | str:
    what = ALL[name]
    return what.key if isinstance(what, Artifact) else what.sha256


def is_served(name: str, values: dict[bytes, bytes]) -> bool:
    """Read ``values`` as a daemon does; whatever comes out is as it was put in."""
    found, rejected = read(values, key_of(name), SEALER)
    what = ALL[name]
    if isinstance(what, Artifact):
        kept, rejected_kept = read(values, key_of(name), SEALER, frozenset({ZSTD}))
        assert rejected_kept == rejected
        assert (kept is None) is (found is None)
    if found is None:
        return False
    assert not rejected
    if isinstance(what, Artifact):
        assert isinstance(found, Artifact)
        assert isinstance(kept, Artifact)
        assert same(found, what)
        assert kept.encoding == ("" if name == "large" else ZSTD) or name == "small"
        assert same(decoded(kept), what)
    else:
        assert found == what
    return True


@pytest.mark.parametrize("name", ALL)
def test_what_was_stored_comes_out_whole(name: str) -> None:
    assert is_served(name, STORED[name])


def test_only_what_shrinks_is_compressed() -> None:
    sizes = {name: sum(map(len, values.values())) for name, values in STORED.items()}
    assert sizes["large"] > LARGE.size_bytes
    assert sizes["shrunk"] < SHRUNK.size_bytes / 20
    assert codec_for(cut(payload_of(SHRUNK.frames))) == ZSTD
    assert codec_for(cut(payload_of(LARGE.frames))) == RAW
    assert codec_for([]) == RAW


@pytest.mark.parametrize("name", ALL)
def test_no_value_is_much_larger_than_a_piece(name: str) -> None:
    assert len(STORED[name]) == max(1, -(-_size(ALL[name]) // CHUNK_BYTES))
    assert all(len(value) < CHUNK_BYTES + 16_384 for value in STORED[name].values())


def _size(what: Artifact | Module) -> int:
    return what.size_bytes if isinstance(what, Artifact) else len(what.wasm)


@pytest.mark.parametrize("flip", [0x01, 0x80, 0xFF])
def test_every_byte_of_a_head_counts(flip: int) -> None:
    [(key, value)] = STORED["small"].items()
    for position in range(len(value)):
        damaged = bytearray(value)
        damaged[position] ^= flip
        assert not is_served("small", {key: bytes(damaged)})


def test_every_length_but_its_own_is_rejected() -> None:
    [(key, value)] = STORED["small"].items()
    for length in range(len(value)):
        assert not is_served("small", {key: value[:length]})


names = st.sampled_from(list(ALL))


@st.composite
def mutations(draw: st.DrawFn) -> tuple[str, dict[bytes, bytes]]:
    """A stored value of which any part was changed, cut, grown, lost or swapped."""
    name = draw(names)
    values = dict(STORED[name])
    for _ in range(draw(st.integers(1, 3))):
        key = draw(st.sampled_from(list(values)))
        value = bytearray(values[key])
        at = draw(st.integers(0, max(0, len(value) - 1)))
        match draw(st.sampled_from(["byte", "cut", "grow", "lose", "swap", "drop", "foreign"])):
            case "byte" if value:
                value[at] ^= draw(st.integers(1, 255))
            case "cut":
                del value[at:]
            case "drop":
                del value[at : at + draw(st.integers(1, 100))]
            case "grow":
                value[at:at] = draw(st.binary(min_size=1, max_size=50))
            case "lose":
                values.pop(key)
                if not values:
                    return name, values
                continue
            case "swap":
                other = draw(st.sampled_from(list(values)))
                values[key], values[other] = values[other], values[key]
                continue
            case "foreign":
                value = bytearray(draw(st.sampled_from([*STORED[draw(names)].values()])))
        values[key] = bytes(value)
    return name, values


@settings(max_examples=1000)
@given(mutations())
def test_no_mutation_is_ever_served(mutation: tuple[str, dict[bytes, bytes]]) -> None:
    name, values = mutation
    assert is_served(name, values) is (values == STORED[name])


@settings(max_examples=300)
@given(st.binary(max_size=300), names)
def test_no_bytes_at_all_do_more_than_be_rejected(value: bytes, name: str) -> None:
    [*_, key] = STORED[name]
    for given_value in (value, b"WKLN\x02" + value):
        assert not is_served(name, {**STORED[name], key: given_value})


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("other", ALL)
def test_a_value_under_another_key_is_rejected(name: str, other: str) -> None:
    if name == other:
        return
    [*_, key] = STORED[name]
    [*_, swapped] = STORED[other].values()
    values = {**STORED[other], **STORED[name], key: swapped}
    assert read(values, key_of(name), SEALER) == (None, ["wrong_key"])


def test_a_stranger_and_a_forger_are_told_apart_from_damage() -> None:
    [(key, value)] = STORED["small"].items()
    [theirs] = stored(SMALL, sealer(THEIRS)).values()
    assert read({key: theirs}, SMALL.key, SEALER)[1] == ["stranger"]
    # A signature of ours, of something else.
    [*_, other] = STORED["large"].values()
    stamp = slice(HEADER_OFFSET - STAMP_BYTES, HEADER_OFFSET)
    forged = bytearray(theirs)
    forged[stamp] = other[stamp]
    assert read({key: bytes(forged)}, SMALL.key, SEALER)[1] == ["mismatch"]
    damaged = value[:-400] + b"!" + value[-399:]
    assert read({key: damaged}, SMALL.key, SEALER)[1] == ["digest"]


def test_a_head_may_be_longer_than_what_was_read_of_it() -> None:
    [*_, value] = STORED["large"].values()
    assert head_end(value[:9]) > HEADER_OFFSET
    with pytest.raises(ValueRejected):
        head_end(value[:8])


@pytest.mark.parametrize(
    ("body", "cause"),
    [
        (Body("lz4", 0, ()), "version"),
        (Body(RAW, 10, ()), "format"),
        (Body(RAW, 0, (pack(RAW, memoryview(b"x"))[1],)), "format"),
        (Body(ZSTD, CHUNK_BYTES + 1, (pack(RAW, memoryview(b"x"))[1],)), "format"),
    ],
)
def test_a_body_that_cannot_be_is_refused(body: Body, cause: str) -> None:
    with pytest.raises(ValueRejected) as rejected:
        body.check()
    assert rejected.value.cause.value == cause


@pytest.mark.parametrize("codec", CODECS)
@given(payload=st.binary(min_size=1, max_size=2000))
@settings(max_examples=50)
def test_pieces_round_trip(codec: str, payload: bytes) -> None:
    [raw] = cut(payload)
    packed, piece = pack(codec, raw)
    body = Body(codec, len(payload), (piece,))
    assert body.unpack(0, [packed]) == [payload]
    with pytest.raises(ValueRejected):
        body.unpack(0, [packed + b"x"])


def test_a_bomb_is_not_unpacked() -> None:
    bomb, piece = pack(ZSTD, memoryview(bytes(50_000_000)))
    assert len(bomb) < 10_000
    for size_bytes in (1000, CHUNK_BYTES):
        body = Body(ZSTD, size_bytes, (piece,))
        with pytest.raises(ValueRejected):
            body.unpack(0, [bomb])
    with pytest.raises(ValueRejected):  # Bytes that were vouched for, and are no zstd at all.
        Body(ZSTD, 5, (pack(RAW, memoryview(b"hello"))[1],)).unpack(0, [b"hello"])
