"""Archives: what export writes, import stores; of what anybody else writes, nothing."""

from __future__ import annotations

import asyncio
import io
import json
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wasmkilnd.cache.redis.guarded import GuardedRedis
from wasmkilnd.cache.redis.value_reader import ValueReader
from wasmkilnd.cache.value import format as value_format
from wasmkilnd.cache.value.names import KeyNames
from wasmkilnd.cache.value.pieces import RAW, ZSTD, Body, pack
from wasmkilnd.maintenance.archive import ArchiveBroken, ArchiveReader, ArchiveWriter
from wasmkilnd.maintenance.inventory import Inventory
from wasmkilnd.maintenance.transfer import Import, Moved, export
from wasmkilnd.model import Artifact, Module
from wasmkilnd.signing.sealer import Sealer
from wasmkilnd.wire import CHUNK_BYTES

from tests.contract.sealing import OURS, THEIRS, sealer
from tests.contract.values import artifact, module
from tests.doubles.shelf import TTL_S, Shelf, stored

SEALER = sealer(OURS)
NAMES = KeyNames("wasm:")
LIMIT_BYTES = 16 * CHUNK_BYTES
EXPORTED_AT = 1_800_000_000

VALUES: list[Artifact | Module] = [
    module(1),
    module(2, CHUNK_BYTES + 10),
    SEALER.seal(artifact(3, 200)),
    SEALER.seal(artifact(4, 2 * CHUNK_BYTES + 10)),
]


def shelf_of(values: Sequence[Artifact | Module], signer: Sealer = SEALER) -> Shelf:
    return Shelf({name: value for one in values for name, value in stored(one, signer).items()})


def exported(shelf: Shelf, limit_bytes: int = LIMIT_BYTES) -> tuple[bytes, Moved, list[str]]:
    """Export all of ``shelf``; answer the archive, what was moved, and what was left out."""
    file = io.BytesIO()
    told: list[str] = []

    async def work() -> Moved:
        link = GuardedRedis(shelf)
        listed = [one async for one in Inventory(link, NAMES, SEALER).values()]
        return await export(
            listed,
            ValueReader(link, NAMES, SEALER),
            NAMES,
            ArchiveWriter(file.write, EXPORTED_AT, "a test"),
            limit_bytes,
            lambda name, rejected: told.append(f"{name} {rejected}"),
            lambda one: None,
        )

    moved = asyncio.run(work())
    return file.getvalue(), moved, told


def imported(
    archive: bytes,
    into: Shelf | None = None,
    *,
    signer: Sealer = SEALER,
    limit_bytes: int = LIMIT_BYTES,
    overwrite: bool = False,
) -> tuple[Shelf, Moved, Exception | None]:
    """Import ``archive``; answer what is there then, what was moved, and why it ended early."""
    shelf = Shelf() if into is None else into

    async def take() -> tuple[Moved, Exception | None]:
        taking = Import(
            GuardedRedis(shelf),
            NAMES,
            signer,
            limit_bytes=limit_bytes,
            ttl_s=TTL_S,
            replace=overwrite,
            tell=lambda name, rejected: None,
        )
        try:
            await taking.run(ArchiveReader(io.BytesIO(archive)), lambda size_bytes: None)
        except ArchiveBroken as broken:
            return taking.moved, broken
        return taking.moved, None

    moved, broken = asyncio.run(take())
    return shelf, moved, broken


FULL = shelf_of(VALUES)
ARCHIVE = exported(FULL)[0]
MEMBERS = tarfile.open(fileobj=io.BytesIO(ARCHIVE)).getmembers()  # noqa: SIM115


def edited(edit: Callable[[list[tuple[tarfile.TarInfo, bytes]]], object]) -> bytes:
    """Return the archive after ``edit`` changed its members, written by Python's own tarfile."""
    with tarfile.open(fileobj=io.BytesIO(ARCHIVE)) as tar:
        members = [
            (info, file.read()) for info in tar.getmembers() if (file := tar.extractfile(info))
        ]
    edit(members)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for info, content in members:
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def test_all_that_was_exported_is_imported_byte_for_byte() -> None:
    shelf, moved, broken = imported(ARCHIVE)
    assert shelf.values == FULL.values
    assert (moved.artifacts, moved.modules, broken) == (2, 2, None)
    assert moved.signers == {OURS.public.id: 4}
    assert moved.stored_bytes == sum(map(len, FULL.values.values()))


def test_anybody_s_tar_can_list_it() -> None:
    names = [member.name for member in MEMBERS]
    assert names[0] == "wasmkiln-cache.json"
    with tarfile.open(fileobj=io.BytesIO(ARCHIVE)) as tar:
        manifest = tar.extractfile(names[0])
        assert manifest
        assert json.load(manifest)["format"] == "wasmkiln cache archive"
    for one in VALUES:
        if isinstance(one, Artifact):
            assert f"compiled/{one.module_sha256}/{one.spec.fingerprint}" in names
        else:
            assert f"module/{one.sha256}" in names
    assert all(member.mtime == EXPORTED_AT + TTL_S for member in MEMBERS[1:])


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_there_is_kept_unless_it_is_to_be_replaced(overwrite: bool) -> None:
    spoilt = Shelf({name: b"!" for name in FULL.values if NAMES.value_at(name)})
    shelf, moved, _ = imported(ARCHIVE, spoilt, overwrite=overwrite)
    assert (moved.values, moved.kept) == ((4, 0) if overwrite else (0, 4))
    assert (shelf.values == FULL.values) is overwrite


def test_what_does_not_verify_is_not_exported_and_told() -> None:
    shelf = shelf_of(VALUES)
    theirs = sealer(THEIRS)
    strange = artifact(9)
    shelf.values |= stored(theirs.seal(strange), theirs)
    lost = next(name for name in shelf.values if NAMES.part_at(name))
    del shelf.values[lost]
    archive, moved, told = exported(shelf)
    assert moved.values == 3
    assert moved.refused == {"incomplete": 1, "stranger": 1}
    assert len(told) == 2
    assert any(strange.module_sha256 in line and THEIRS.public.id in line for line in told)
    assert imported(archive)[1].values == 3


def test_what_is_larger_than_the_limit_is_left_out_on_both_ways() -> None:
    archive, moved, _ = exported(FULL, limit_bytes=CHUNK_BYTES)
    assert (moved.values, moved.refused) == (2, {"format": 2})
    assert imported(archive)[1].values == 2
    _, moved, _ = imported(ARCHIVE, limit_bytes=CHUNK_BYTES)
    assert (moved.values, moved.refused) == (2, {"format": 2})


def test_a_stranger_s_values_are_refused() -> None:
    shelf, moved, broken = imported(ARCHIVE, signer=sealer(THEIRS))
    assert (shelf.values, moved.refused, broken) == ({}, {"stranger": 4}, None)
    shelf, moved, _ = imported(ARCHIVE, signer=sealer(THEIRS, OURS))
    assert moved.values == 4


def test_names_inside_say_nothing() -> None:
    def rename(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
        for number, (info, _) in enumerate(members[1:]):
            info.name = f"../../etc/passwd{number}"

    assert imported(edited(rename))[0].values == FULL.values


def test_a_value_that_comes_twice_is_stored_once() -> None:
    shelf, moved, _ = imported(edited(lambda members: members.extend(members[1:])))
    assert (moved.values, moved.duplicates, moved.kept) == (4, 4, 0)
    assert shelf.values == FULL.values


def test_a_bad_first_copy_does_not_hide_the_good_one() -> None:
    def spoil(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
        good = members[1:]
        members[1:] = [(info, content[:-1] + b"!") for info, content in good] + good

    shelf, moved, _ = imported(edited(spoil))
    assert shelf.values == FULL.values
    assert moved.refused.total() == 4


class Clocked(Shelf):
    """Takes note of how long the values live that are put into it."""

    def __init__(self) -> None:
        super().__init__()
        self.lives: list[int] = []

    def _one(self, name: Any, key: Any, *rest: Any) -> Any:
        if name == "SET":
            self.lives.append(rest[rest.index("EX") + 1])
        return super()._one(name, key, *rest)


@pytest.mark.parametrize(
    ("date", "ttl_s"),
    [
        (EXPORTED_AT + 7, 7),
        (EXPORTED_AT + 10**9, TTL_S),  # Nothing lives longer than this tier's own values,
        (0, TTL_S),  # not even what had no end,
        (EXPORTED_AT, 1),
        (1, 1),  # and what has no time left is not for ever.
    ],
)
def test_a_value_lives_as_long_as_it_had_left(date: int, ttl_s: int) -> None:
    def edit(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
        del members[2:]
        members[1][0].mtime = date

    shelf = Clocked()
    imported(edited(edit), shelf)
    assert shelf.lives[-1] == ttl_s


@pytest.mark.parametrize("length", [0, 1, 511, 512, 600, 1024, len(ARCHIVE) // 2])
def test_a_cut_archive_is_told_to_be_one(length: int) -> None:
    shelf, _, broken = imported(ARCHIVE[:length])
    assert "cut off" in str(broken)
    assert shelf.values.items() <= FULL.values.items()


def test_one_that_ends_between_two_values_is_cut_off_as_well() -> None:
    end = MEMBERS[2].offset
    _, moved, broken = imported(ARCHIVE[:end])
    assert "cut off" in str(broken)
    assert moved.values == 1


@pytest.mark.parametrize(
    "content", [b"x" * 2000, b"\0" * 2000, b"\x1f\x8b" + b"y" * 1000, b"PK\x03\x04" * 300]
)
def test_another_file_is_no_archive(content: bytes) -> None:
    shelf, _, broken = imported(content)
    assert "not what `wasmkilnd cache export` writes" in str(broken) or "cut off" in str(broken)
    assert not shelf.values


@pytest.mark.parametrize(
    "manifest",
    [b"", b"[]", b"{}", b'{"format": "other"}', b"[" * 60_000, b'{"format": ' + b"9" * 10_000],
)
def test_one_without_its_manifest_is_refused(manifest: bytes) -> None:
    def edit(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
        members[0] = (members[0][0], manifest)

    shelf, _, broken = imported(edited(edit))
    assert broken
    assert not shelf.values


def test_a_later_version_is_told_to_be_one() -> None:
    def edit(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
        members[0] = (members[0][0], members[0][1].replace(b'"version": 1', b'"version": 2'))

    _, _, broken = imported(edited(edit))
    assert "of a version that this wasmkilnd does not know" in str(broken)


@pytest.mark.parametrize(
    "kind",
    [
        *(tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE),
        *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_SPARSE),
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_nothing_but_files_is_read_however_large_it_says_to_be(kind: bytes, first: bool) -> None:
    bomb = tarfile.TarInfo("bomb")
    bomb.type = kind
    bomb.size = 8 * 1024**3 - 1
    header = bomb.tobuf(tarfile.USTAR_FORMAT)
    archive = header + ARCHIVE if first else ARCHIVE[: MEMBERS[1].offset] + header
    shelf, _, broken = imported(archive)
    assert "not what" in str(broken)
    assert not shelf.values


class Endless(io.RawIOBase):
    """An archive of one value that says to have 8 GiB, and has them; counts what is held."""

    def __init__(self) -> None:
        bomb = tarfile.TarInfo("bomb")
        bomb.size = 3 * 1024**2
        self._start = io.BytesIO(ARCHIVE[: MEMBERS[1].offset] + bomb.tobuf(tarfile.USTAR_FORMAT))
        self.largest_read = 0

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        self.largest_read = max(self.largest_read, size)
        return self._start.read(size) or b"\xff" * size


def test_what_is_refused_is_passed_over_without_being_held() -> None:
    endless = Endless()
    reader = ArchiveReader(endless)  # type: ignore[arg-type]
    member = next(reader.members())
    assert member.size_bytes == 3 * 1024**2
    member.skip()
    assert endless.largest_read <= 1024**2


def forged(body: Body, payload: bytes) -> bytes:
    """Return an archive of one artifact that a trusted key signed, whatever it is."""
    one = SEALER.seal(artifact(7, 100))
    value = value_format.write_artifact_head(one, body, SEALER.stamp) + payload

    def edit(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
        members[1:] = [(members[1][0], value)]

    return edited(edit)


def test_what_a_trusted_key_signed_is_unpacked_with_care() -> None:
    bomb, piece = pack(ZSTD, memoryview(bytes(50_000_000)))
    huge = replace(piece, size_bytes=1 << 40)
    for body, payload in (
        (Body(ZSTD, 1000, (piece,)), bomb),
        (Body(ZSTD, CHUNK_BYTES, (huge,)), bomb),
        (Body(RAW, 100, (pack(RAW, memoryview(b"y" * 100))[1],)), b"y" * 100),  # other code
    ):
        shelf, moved, _ = imported(forged(body, payload))
        assert not shelf.values
        assert moved.refused.total() == 1


@st.composite
def mutations(draw: st.DrawFn) -> bytes:
    """The archive, with any of its bytes changed, cut, repeated, lost or moved."""
    archive = bytearray(ARCHIVE)
    places = [*(m.offset for m in MEMBERS), *(m.offset_data for m in MEMBERS), 0]
    for _ in range(draw(st.integers(1, 3))):
        # Near a header or a head as often as anywhere.
        at = min(
            len(archive) - 1,
            draw(st.sampled_from(places)) + draw(st.integers(0, 3000))
            if draw(st.booleans())
            else draw(st.integers(0, len(archive) - 1)),
        )
        length = draw(st.sampled_from([1, 2, 512, 1024, 100_000]))
        match draw(st.sampled_from(["byte", "cut", "drop", "repeat", "grow", "mend"])):
            case "byte":
                archive[at] ^= draw(st.integers(1, 255))
            case "cut":
                del archive[max(1, at) :]
            case "drop":
                del archive[at : min(at + length, len(archive) - 1)]
            case "repeat":
                archive[at:at] = archive[at : at + length]
            case "grow":
                archive[at:at] = draw(st.binary(min_size=1, max_size=600))
            case "mend":
                # A header with any size, date or type, and a checksum that is right.
                block = bytearray(archive[at // 512 * 512 :][:512].ljust(512, b"\0"))
                spot = draw(st.integers(100, 511))
                block[spot] = draw(st.integers(0, 255))
                total = sum(block[:148]) + 8 * 32 + sum(block[156:])
                block[148:156] = b"%06o\0 " % total
                archive[at // 512 * 512 : at // 512 * 512 + 512] = block
    return bytes(archive)


@settings(max_examples=400)
@given(mutations(), st.booleans())
def test_no_mutated_archive_has_anything_stored_that_was_not_exported(
    archive: bytes, overwrite: bool
) -> None:
    shelf, moved, _ = imported(archive, overwrite=overwrite)
    assert shelf.values.items() <= FULL.values.items()
    # And what is there is there as a whole.
    assert sum(map(len, shelf.values.values())) == moved.stored_bytes


@settings(max_examples=200)
@given(st.binary(max_size=3000))
def test_no_bytes_at_all_do_more_than_be_refused(content: bytes) -> None:
    for archive in (content, ARCHIVE[: MEMBERS[1].offset] + content):
        shelf, _, broken = imported(archive)
        assert broken
        assert not shelf.values
