"""What is run or believed belongs to this user or root, and nobody else may write to it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from wasmkilnd.files import ownership
from wasmkilnd.files.ownership import NotOurs, check_path, check_tree, make_folder, take_back

OTHERS = 54321
ME = os.geteuid()
as_root = pytest.mark.skipif(ME != 0, reason="only root can give a file away")


@pytest.fixture
def thing(tmp_path: Path) -> Path:
    """A file in a folder in a folder."""
    folder = tmp_path / "above" / "folder"
    folder.mkdir(mode=0o755, parents=True)
    file = folder / "thing"
    file.write_text("x")
    file.chmod(0o644)
    return file


@pytest.fixture(autouse=True)
def groups_are_looked_up_anew() -> Iterator[None]:
    ownership._nobody_else_in.cache_clear()
    yield
    ownership._nobody_else_in.cache_clear()


def remedy_of(refusal: NotOurs) -> str:
    """Return the command that the message has."""
    return str(refusal).split("`")[1]


def test_what_is_ours_is_used(thing: Path) -> None:
    check_path(thing)
    check_tree(thing.parent)
    check_path(thing.parent / "not" / "there" / "yet")
    check_path(thing / "below a file")


@as_root
@pytest.mark.parametrize("step", ["thing", "folder", "above"])
def test_what_belongs_to_somebody_else_is_refused(thing: Path, step: str) -> None:
    path = {"thing": thing, "folder": thing.parent, "above": thing.parent.parent}[step]
    os.chown(path, OTHERS, -1)
    with pytest.raises(NotOurs, match=f"belongs to user {OTHERS}") as refusal:
        check_path(thing)
    if path == thing:
        subprocess.run(remedy_of(refusal.value), shell=True, check=True)
        check_path(thing)
    else:
        assert f"{path} belongs" in str(refusal.value)
        assert "every folder above" in str(refusal.value)


@pytest.mark.parametrize("step", ["thing", "folder", "above"])
@pytest.mark.parametrize("bits", [0o002, 0o022])
def test_what_others_may_write_to_is_refused(thing: Path, step: str, bits: int) -> None:
    path = {"thing": thing, "folder": thing.parent, "above": thing.parent.parent}[step]
    path.chmod(0o755 | bits)
    with pytest.raises(NotOurs, match="other users may write to") as refusal:
        check_path(thing)
    subprocess.run(remedy_of(refusal.value), shell=True, check=True)
    check_path(thing)


@as_root
@pytest.mark.parametrize("to", ["folder", "relative", "absolute", "dangling"])
def test_links_are_followed_to_where_they_lead(thing: Path, tmp_path: Path, to: str) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "thing").write_text("x")
    os.chown(theirs, OTHERS, -1)
    link = thing.parent / "link"
    target = {
        "folder": theirs,
        "relative": Path("../../theirs/thing"),
        "absolute": theirs / "thing",
        "dangling": theirs / "nothing",
    }[to]
    link.symlink_to(target)
    with pytest.raises(NotOurs, match=f"{theirs} belongs to user {OTHERS}"):
        check_path(link / "thing" if to == "folder" else link)
    with pytest.raises(NotOurs):
        check_tree(thing.parent)


def test_a_link_to_itself_has_an_end(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(NotOurs, match="symbolic links form a loop"):
        check_path(tmp_path / "loop")


@as_root
def test_a_sticky_folder_protects_what_is_ours_in_it(thing: Path) -> None:
    """As /tmp does; but not what is somebody else's, and not itself."""
    sticky = thing.parent.parent
    sticky.chmod(0o1777)
    check_path(thing)
    with pytest.raises(NotOurs, match="other users may write to it"):
        check_path(sticky)
    os.chown(thing.parent, OTHERS, -1)
    with pytest.raises(NotOurs, match="belongs to user"):
        check_path(thing)
    link = sticky / "link"
    link.symlink_to("/etc")
    os.lchown(link, OTHERS, -1)
    with pytest.raises(NotOurs, match="belongs to user"):
        check_path(link)


@as_root
def test_what_is_roots_is_fine_for_everybody(thing: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: OTHERS)
    check_tree(thing.parent)


@as_root
def test_a_group_may_write_if_it_is_ours_alone(
    thing: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many systems make files so; but keys are nobody's but the user's."""
    monkeypatch.setattr(os, "getgroups", lambda: [OTHERS])
    os.chown(thing, -1, OTHERS)
    thing.chmod(0o664)
    check_path(thing)
    with pytest.raises(NotOurs, match="other users may write"):
        check_path(thing, private=True)
    monkeypatch.setattr(os, "getgroups", list)
    ownership._nobody_else_in.cache_clear()
    with pytest.raises(NotOurs, match="other users may write"):
        check_path(thing)


@as_root
def test_a_group_with_other_members_may_not_write(thing: Path) -> None:
    """Of the user daemon's group, the user daemon is a member."""
    os.chown(thing, -1, 1)
    thing.chmod(0o664)
    with pytest.raises(NotOurs, match="other users may write"):
        check_path(thing)


def test_a_secret_is_nobody_elses_to_read(thing: Path) -> None:
    with pytest.raises(NotOurs, match="other users may read it") as refusal:
        check_path(thing, secret=True)
    subprocess.run(remedy_of(refusal.value), shell=True, check=True)
    check_path(thing, secret=True)


def test_folders_are_made_for_their_owner_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        make_folder(tmp_path / "a" / "b")
    finally:
        os.umask(before)
    assert [path.stat().st_mode & 0o777 for path in (tmp_path / "a", tmp_path / "a" / "b")] == [
        0o700
    ] * 2
    make_folder(tmp_path / "a" / "b")


@as_root
def test_what_a_group_got_is_taken_back_and_nothing_else(
    thing: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getgroups", lambda: [OTHERS])
    folder = thing.parent
    outside, open_to_all = folder.parent / "outside", folder / "open"
    for path, mode in ((folder, 0o775), (thing, 0o664), (outside, 0o664), (open_to_all, 0o666)):
        path.touch()
        os.chown(path, -1, OTHERS)
        path.chmod(mode)
    (folder / "link").symlink_to(outside)
    assert take_back(folder) == 2
    modes = [path.stat().st_mode & 0o777 for path in (folder, thing, outside, open_to_all)]
    assert modes == [0o755, 0o644, 0o664, 0o666]


@as_root
def test_nothing_is_taken_back_that_somebody_could_have_used(thing: Path) -> None:
    thing.parent.chmod(0o775)
    os.chown(thing.parent, -1, 1)  # Of the user daemon's group, the user daemon is a member.
    assert take_back(thing.parent, private=True) == 0
    os.chown(thing.parent, -1, 0)
    thing.parent.chmod(0o777)
    assert take_back(thing.parent, private=True) == 0
    assert take_back(thing.parent / "nothing") == 0
