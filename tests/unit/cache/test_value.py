"""No change of a stored value, whatever it is, comes out as anything but a rejection."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import struct
from collections.abc import Callable
from typing import Any

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from wasmkiln.attestation import TrustedKeys
from wasmkilnd.cache.value import (
    FRAME_BYTES,
    TRAILER_BYTES,
    ZSTD,
    Frame,
    Opened,
    ValueRejected,
    written,
)
from wasmkilnd.model import Artifact, CacheKey, Kind, Module
from wasmkilnd.signing.keys import Keys
from wasmkilnd.signing.sealer import Sealer

from tests.contract.sealing import MADE_S, OURS, THEIRS, sealer
from tests.contract.values import artifact, module, same, shrinking
from tests.doubles.shelf import decoded, name_of, opened, read, stored
from tests.frames import to_frames

SEALER = sealer(OURS)
PACKED = frozenset({ZSTD})

SMALL = SEALER.seal(artifact(1, 300))
LARGE = SEALER.seal(artifact(2, 2 * FRAME_BYTES + 300))
SHRUNK = SEALER.seal(shrinking(3, 2 * FRAME_BYTES + 300))
MODULE = module(4, FRAME_BYTES + 300)
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


def value_of(name: str) -> bytes:
    [value] = STORED[name].values()
    return value


def is_served(name: str, value: bytes) -> bool:
    """Read ``value`` as a daemon does; whatever comes out is as it was put in."""
    what = ALL[name]
    values = {name_of(what): value}
    found, rejected = read(values, key_of(name), SEALER)
    if isinstance(what, Artifact):
        kept, rejected_kept = read(values, key_of(name), SEALER, PACKED)
        assert rejected_kept == rejected
        assert (kept is None) is (found is None)
    if found is None:
        assert rejected
        return False
    if isinstance(what, Artifact):
        assert isinstance(found, Artifact)
        assert isinstance(kept, Artifact)
        assert same(found, what)
        assert kept.encoding == (ZSTD if name == "shrunk" else "")
        assert same(decoded(kept), what)
    else:
        assert found == what
    return True


@pytest.mark.parametrize("name", ALL)
def test_a_value_comes_out_whole_and_under_its_own_key_alone(name: str) -> None:
    assert is_served(name, value_of(name))
    for other in ALL.keys() - {name}:
        values = {name_of(ALL[name]): value_of(other)}
        assert read(values, key_of(name), SEALER) == (None, ["wrong_key"])


@pytest.mark.parametrize("name", ["small", "large", "shrunk"])
def test_a_copy_by_another_key_has_the_bytes_that_were_attested(name: str) -> None:
    both, theirs, one = sealer(OURS, THEIRS), sealer(THEIRS), ALL[name]
    assert isinstance(one, Artifact)
    for copy in (one, opened(value_of(name), one.key, SEALER, PACKED)):
        found = opened(b"".join(written(copy, theirs)), one.key, both)
        assert isinstance(found, Artifact)
        assert same(found, one)
    other = dataclasses.replace(one, frames=(*one.frames[:-1], to_frames(b"x" * 300)[0]))
    values = {name_of(one): b"".join(written(other, theirs))}
    assert read(values, one.key, both) == (None, ["mismatch"])


@pytest.mark.parametrize("name", ["small", "large", "shrunk"])
def test_a_value_that_is_known_is_described_once(name: str) -> None:
    value, one = value_of(name), ALL[name]
    first, second = (opened(value, one.key, SEALER) for _ in range(2))
    assert isinstance(first, Artifact)
    assert isinstance(second, Artifact)
    assert first.described
    assert first.described is second.described
    assert not first.described.frames


@settings(max_examples=50)
@given(st.binary(min_size=1, max_size=200), st.integers(-2, 2), st.integers(0, 2))
def test_what_is_kept_packed_is_what_any_decoder_reads(unit: bytes, more: int, whole: int) -> None:
    size_bytes = max(1, whole * FRAME_BYTES + more)
    payload = (unit * (size_bytes // len(unit) + 1))[:size_bytes]
    digest = hashlib.sha256(payload).hexdigest()
    one = dataclasses.replace(
        artifact(), sha256=digest, size_bytes=len(payload), frames=to_frames(payload)
    )
    found = one = SEALER.seal(one)
    for _ in range(2):  # What was kept as it is stored is stored again as it is kept.
        *frames, _ = written(found, SEALER)
        opened_ = opened(b"".join(written(found, SEALER)), one.key, SEALER, PACKED)
        assert isinstance(opened_, Artifact)
        found = opened_
        assert same(decoded(found), one)
        if found.encoding:
            reader = zstandard.ZstdDecompressor().stream_reader(
                b"".join(frames), read_across_frames=True
            )
            assert reader.read(len(payload) + 1) == payload


def test_a_head_that_was_verified_counts_no_more_once_its_key_or_its_age_does_not() -> None:
    now_s, values = [MADE_S], STORED["small"]
    reader = Sealer(sealer(THEIRS, OURS).keys, max_age_s=60, now=now_s.pop)
    for age_s in (0, 60):
        now_s[:] = [MADE_S + age_s] * 2
        assert read(values, SMALL.key, reader)[0]
    now_s[:] = [MADE_S + 61]
    assert read(values, SMALL.key, reader) == (None, ["too_old"])
    reader.use(sealer(THEIRS).keys, 0)
    assert read(values, SMALL.key, reader) == (None, ["stranger"])
    reader.use(sealer(THEIRS, OURS).keys, 0)
    assert read(values, SMALL.key, reader)[0]
    revoked = TrustedKeys([OURS.public, THEIRS.public], [OURS.public.id])
    reader.use(Keys(THEIRS, revoked), 0)
    assert read(values, SMALL.key, reader) == (None, ["revoked"])


def test_every_byte_counts_and_every_length_but_its_own_is_rejected() -> None:
    value = value_of("small")
    for position in range(len(value)):
        damaged = bytearray(value)
        damaged[position] ^= 1 << position % 8
        assert not is_served("small", bytes(damaged))
        assert not is_served("small", value[:position])
        assert not is_served("small", value[position + 1 :])


def causes(value: bytes) -> list[str]:
    return read({name_of(SMALL): value}, SMALL.key, SEALER)[1]


def resigned(change: Callable[[dict[str, Any]], object]) -> bytes:
    """Return the value of SMALL with another header, which our key has stamped."""
    value = value_of("small")
    frame_bytes = SMALL.size_bytes
    header = json.loads(value[frame_bytes:-TRAILER_BYTES])
    change(header)
    return value[:frame_bytes] + head_of(json.dumps(header).encode())


def head_of(header: bytes, announced: int | None = None) -> bytes:
    size_bytes = len(header) if announced is None else announced
    start = struct.pack(">4sBI", b"WKLN", 3, size_bytes)
    digest = hashlib.sha256(header + start).digest()
    return header + start + digest + SEALER.stamp(b"wasmkiln value 3\0" + digest)


def set_in(*path: str | int, to: Any) -> Callable[[dict[str, Any]], object]:
    def change(header: dict[str, Any]) -> None:
        place: Any = header
        for name in path[:-1]:
            place = place[name]
        place[path[-1]] = to

    return change


FRAME = [300, "0" * 64]


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda header: None, ""),
        (set_in("body", "codec", to="lz4"), "format"),
        (set_in("body", "size_bytes", to=301), "digest"),
        (set_in("body", "size_bytes", to=-1), "format"),
        (set_in("body", "size_bytes", to=1 << 48), "format"),
        (set_in("body", "size_bytes", to=0), "format"),
        (set_in("body", "size_bytes", to=FRAME_BYTES + 300), "format"),
        (set_in("body", "frames", to=[]), "format"),
        (set_in("body", "frames", to=[FRAME, FRAME]), "format"),
        (set_in("body", "frames", to=[[FRAME_BYTES * 2, "0" * 64]]), "format"),
        (set_in("body", "frames", to=[[0, "0" * 64]]), "format"),
        (set_in("body", "frames", to=[[300, "0" * 63]]), "format"),
        (set_in("body", "frames", to=[FRAME]), "digest"),
        (set_in("body", "nonce", to="x"), "format"),
        (set_in("what", to="module"), "format"),
        (set_in("what", to="part"), "format"),
        (set_in("kind", to="other"), "format"),
        (set_in("fingerprint", to="0" * 64), "wrong_key"),
        (set_in("fingerprint", to="0" * 64 + "\n"), "format"),
        (set_in("module", to="0" * 64), "wrong_key"),
        (set_in("engine", "version", to=2), "format"),
        (set_in("settings", "fuel", to=None), "format"),
        (set_in("exports", to=[["a", "b", "c"]]), "format"),
        (set_in("compile_time_s", to=1e10), "format"),
        (set_in("compile_time_s", to=float("nan")), "format"),
        (set_in("compile_time_s", to=1.0), "mismatch"),
        (set_in("attestation", to=""), "unsigned"),
        (set_in("attestation", to="\ud800"), "format"),
        (set_in("more", to=1), "format"),
        (lambda header: header.pop("target"), "format"),
    ],
)
def test_what_a_stamped_header_may_say(
    change: Callable[[dict[str, Any]], object], cause: str
) -> None:
    found = causes(resigned(change))
    if cause == "digest":
        # The frame is as long as it should be, or not: both are the frame's fault.
        assert found in (["digest"], ["format"])
    else:
        assert found == ([cause] if cause else [])


def one_frame(stored_frame: bytes, size_bytes: int, codec: str = ZSTD) -> Opened:
    digest = hashlib.sha256(stored_frame).hexdigest()
    frame = Frame(0, len(stored_frame), digest, size_bytes)
    return Opened(SMALL, codec, size_bytes, (frame,), len(stored_frame), OURS.public.id)


@pytest.mark.parametrize(
    "stored_frame",
    [
        b"no zstd at all",
        b"",
        zstandard.ZstdCompressor().compress(b"x" * 99),
        zstandard.ZstdCompressor(write_content_size=False).compress(b"x" * 100),
        zstandard.ZstdCompressor().compress(b"x" * 100) + b"x",
        zstandard.ZstdCompressor().compress(b"x" * 10**9),
    ],
)
def test_a_signed_frame_of_another_size_is_never_unpacked(stored_frame: bytes) -> None:
    with pytest.raises(ValueRejected):
        one_frame(stored_frame, 100).unpack(0, stored_frame)


def test_a_signed_frame_that_does_not_unpack_is_rejected_by_who_unpacks_it() -> None:
    frames = (*to_frames(b"no zstd at all"), *SHRUNK.frames[1:])
    value = b"".join(written(dataclasses.replace(SHRUNK, frames=frames, encoding=ZSTD), SEALER))
    values = {name_of(SHRUNK): value}
    assert read(values, SHRUNK.key, SEALER) == (None, ["format"])
    assert read(values, SHRUNK.key, SEALER, PACKED)[0]


def test_a_module_is_what_its_digest_says_and_of_the_kind_that_it_is() -> None:
    for lie in (
        dataclasses.replace(MODULE, kind=Kind.COMPONENT),
        dataclasses.replace(MODULE, wasm=module(5).wasm),
    ):
        values = {name_of(MODULE): b"".join(written(lie, SEALER))}
        assert read(values, MODULE.sha256, SEALER)[0] is None
