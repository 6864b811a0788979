"""Whatever somebody does to the files of the host store, no daemon uses a wrong one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from wasmkiln.shared import ARTIFACT, ATTESTATION, HEADER
from wasmkilnd.cache.host_store import HostStore
from wasmkilnd.errors import TierUnavailable
from wasmkilnd.model import Artifact
from wasmkilnd.signing.sealer import Sealer

from tests.contract.sealing import MADE_S, THEIRS, sealer
from tests.doubles.notes import Notes
from tests.faults_host.stores import (
    FILES,
    SEALER,
    artifact,
    check_file,
    check_is_right,
    folder_of,
    store,
)

ONE = artifact(1, 1_300_000)
OTHER = artifact(2, 1_300_000)
NOBODY = 65534

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")


def is_there(path: Path) -> bool:
    return os.path.lexists(path)


async def look(tier: HostStore, how: str, one: Artifact) -> object:
    return await (tier.get(one.key) if how == "get" else tier.file_of(one.key))


async def check_is_refused(
    directory: Path, change: Callable[[Path], object], causes: set[str], how: str
) -> None:
    """Change an entry, and look for it with a daemon that knew it, and with one that did not."""
    for knew in (True, False):
        notes = Notes()
        async with store(directory) as writer:
            await writer.put(ONE)
            if not knew:
                change(folder_of(directory, ONE))
        async with store(directory, notes) as tier:
            if knew:
                assert await look(tier, how, ONE)
                change(folder_of(directory, ONE))
            assert await look(tier, how, ONE) is None
            assert len(notes.rejected) == 1
            assert set(notes.rejected) <= causes
            assert not is_there(folder_of(directory, ONE))
            # A miss from now on, and then as good as new.
            assert await look(tier, how, ONE) is None
            await tier.put(ONE)
            assert await check_is_right(tier, ONE)
            assert len(notes.rejected) == 1


HOW = pytest.mark.parametrize("how", ["get", "file_of"])


@HOW
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("place", [0, 0.5, 1])
async def test_a_flipped_bit(tmp_path: Path, name: str, place: float, how: str) -> None:
    def flip(folder: Path) -> None:
        path = folder / name
        with path.open("r+b") as file:
            at = int(place * (path.stat().st_size - 1))
            file.seek(at)
            [byte] = file.read(1)
            file.seek(at)
            file.write(bytes([byte ^ 1]))

    causes = {"digest", "format", "version", "stranger", "mismatch", "truncated"}
    await check_is_refused(tmp_path / "store", flip, causes, how)


@HOW
@pytest.mark.parametrize("name", FILES)
async def test_a_file_that_is_gone_short_or_long(tmp_path: Path, name: str, how: str) -> None:
    def shorten(folder: Path) -> None:
        os.truncate(folder / name, (folder / name).stat().st_size - 1)

    def lengthen(folder: Path) -> None:
        with (folder / name).open("ab") as file:
            file.write(b"\n")

    def remove(folder: Path) -> None:
        (folder / name).unlink()

    any_cause = {"incomplete", "digest", "format", "truncated"}
    for change in (remove, shorten, lengthen):
        await check_is_refused(tmp_path / "store", change, any_cause, how)


@HOW
@pytest.mark.parametrize("name", FILES)
async def test_a_file_that_others_may_change(tmp_path: Path, name: str, how: str) -> None:
    for mode in (0o660, 0o602):

        def change(folder: Path, mode: int = mode) -> None:
            (folder / name).chmod(mode)

        await check_is_refused(tmp_path / "store", change, {"foreign"}, how)


@as_root
@HOW
@pytest.mark.parametrize("name", [*FILES, "."])
async def test_a_file_or_folder_of_another_user(tmp_path: Path, name: str, how: str) -> None:
    def change(folder: Path) -> None:
        os.chown(folder / name, NOBODY, -1)

    await check_is_refused(tmp_path / "store", change, {"foreign"}, how)


@HOW
@pytest.mark.parametrize("name", FILES)
async def test_a_symbolic_link_a_second_name_a_pipe_a_folder(
    tmp_path: Path, name: str, how: str
) -> None:
    def link(folder: Path) -> None:
        (folder / name).rename(tmp_path / "elsewhere")
        (folder / name).symlink_to(tmp_path / "elsewhere")

    def second_name(folder: Path) -> None:
        (tmp_path / "second").unlink(missing_ok=True)
        (tmp_path / "second").hardlink_to(folder / name)

    def pipe(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    def subfolder(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    for change in (link, second_name, pipe, subfolder):
        await check_is_refused(tmp_path / "store", change, {"foreign"}, how)


@pytest.mark.parametrize("above", [0, 1, 2])
async def test_a_folder_that_is_a_link(tmp_path: Path, above: int) -> None:
    """The entry's own folder, or one above it."""
    directory, notes = tmp_path / "store", Notes()
    async with store(directory) as writer:
        await writer.put(ONE)
        await writer.put(OTHER)
    folder = [folder_of(directory, ONE), *folder_of(directory, ONE).parents][above]
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    async with store(directory, notes) as tier:
        assert await tier.get(ONE.key) is None
        assert notes.rejected == ["foreign"]
        assert not is_there(folder)
        assert (tmp_path / "elsewhere").exists()  # Nothing behind the link was touched.
        await tier.put(ONE)
        assert await check_is_right(tier, ONE)
        assert await check_is_right(tier, OTHER)


@pytest.mark.parametrize("above", [0, 1, 2])
async def test_a_folder_that_others_may_change(tmp_path: Path, above: int) -> None:
    directory, notes = tmp_path / "store", Notes()
    async with store(directory) as writer:
        await writer.put(ONE)
    folder = [folder_of(directory, ONE), *folder_of(directory, ONE).parents][above]
    folder.chmod(0o770)
    async with store(directory, notes) as tier:
        assert await tier.get(ONE.key) is None
        assert notes.rejected == ["foreign"]
        await tier.put(ONE)
        assert await check_is_right(tier, ONE)


@pytest.mark.parametrize("above", [0, 1, 2])
async def test_a_write_replaces_what_is_in_its_way(tmp_path: Path, above: int) -> None:
    directory = tmp_path / "store"
    folder = [folder_of(directory, ONE), *folder_of(directory, ONE).parents][above]
    (tmp_path / "elsewhere").mkdir()
    for plant in (
        lambda: folder.symlink_to(tmp_path / "elsewhere"),
        lambda: folder.write_text("a file"),
        lambda: (folder / "sub" / "sub").mkdir(parents=True),
    ):
        async with store(directory) as tier:
            folder.parent.mkdir(parents=True, exist_ok=True)
            plant()
            await tier.put(ONE)
            assert await check_is_right(tier, ONE)
            assert list((tmp_path / "elsewhere").iterdir()) == []
        shutil.rmtree(directory)


@pytest.mark.parametrize(
    "names", [(ARTIFACT,), (HEADER, ATTESTATION), (HEADER,), (ATTESTATION,), FILES]
)
async def test_files_of_another_entry(tmp_path: Path, names: tuple[str, ...]) -> None:
    """Each is signed, and none is of this entry."""
    directory, notes = tmp_path / "store", Notes()
    async with store(directory) as writer:
        await writer.put(ONE)
        await writer.put(OTHER)
    for name in names:
        shutil.copy2(folder_of(directory, OTHER) / name, folder_of(directory, ONE) / name)
    async with store(directory, notes) as tier:
        assert await tier.file_of(ONE.key) is None
        assert len(notes.rejected) == 1
        assert await check_is_right(tier, OTHER)


async def test_an_entry_that_a_stranger_signed(tmp_path: Path) -> None:
    directory, notes = tmp_path / "store", Notes()
    async with store(directory, by=sealer(THEIRS)) as theirs:
        await theirs.put(sealer(THEIRS).seal(ONE))
    async with store(directory, notes) as tier:
        assert await tier.file_of(ONE.key) is None
        assert notes.rejected == ["stranger"]
        await tier.put(ONE)
        assert await check_is_right(tier, ONE)


async def test_a_key_that_is_no_longer_trusted(tmp_path: Path) -> None:
    directory, notes = tmp_path / "store", Notes()
    changing = Sealer(SEALER.keys, now=lambda: MADE_S)
    async with store(directory, notes, by=changing) as tier:
        await tier.put(ONE)
        assert await tier.file_of(ONE.key)
        changing.use(sealer(THEIRS).keys, 0)
        tier.directory.recheck()
        assert await tier.file_of(ONE.key) is None
        assert notes.rejected == ["stranger"]


async def test_a_file_that_is_replaced_after_its_check(tmp_path: Path) -> None:
    """The caller has the identity of the file that was checked, so it notices."""
    directory, notes = tmp_path / "store", Notes()
    async with store(directory, notes) as tier:
        await tier.put(ONE)
        found = await tier.file_of(ONE.key)
        assert found
        path = Path(found[1].path)
        aside = path.with_name("aside")
        shutil.copy2(path, aside)
        aside.replace(path)  # The same bytes, by somebody else.
        assert not check_file(found[1], ONE)
        again = await tier.file_of(ONE.key)
        assert again
        assert again[1].inode != found[1].inode
        assert check_file(again[1], ONE)


async def test_a_directory_that_others_may_change_is_not_used(tmp_path: Path) -> None:
    directory, notes = tmp_path / "store", Notes()
    async with store(directory, notes) as tier:
        await tier.put(ONE)
        directory.chmod(0o777)
        with pytest.raises(TierUnavailable, match="other users may write"):
            await tier.get(ONE.key)
        directory.chmod(0o750)
        assert await check_is_right(tier, ONE)
        assert notes.rejected == []
