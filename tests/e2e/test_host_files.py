"""Files of the host store that were damaged, swapped or replaced, and a disk that is full."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from wasmkiln import Artifact, Client
from wasmkiln.shared import ARTIFACT, ATTESTATION, HEADER, entry_path

from tests.e2e import wasm
from tests.e2e.daemon import ONE_ENGINE, Daemon, fresh_state
from tests.e2e.processes import eventually
from tests.e2e.programs import WASMKILND, Installed
from tests.e2e.signing_keys import KeyDirectory
from tests.e2e.stored_values import flipped, rejected
from tests.e2e.test_cache import COMPILED, HOST_STORE
from tests.e2e.test_daemon import wasmkilnd
from tests.e2e.test_host_store import NO_REDIS, asked_for_file

FILES = (ARTIFACT, HEADER, ATTESTATION)
NOBODY = 65534
NAMESPACE = ("unshare", "--user", "--map-root-user", "--mount")
OTHER = wasm.adder(0)


@dataclass(frozen=True)
class Entry:
    """The entry of a module, and what somebody may put in its place."""

    folder: Path
    other: Path
    """The entry of another module."""
    stranger: Path
    """What a daemon with other keys wrote for the same module."""
    aside: Path
    """A folder outside of the store."""


Harm = Callable[[Entry], object]


def changed(name: str, change: Callable[[bytes], bytes]) -> Harm:
    """Return what writes other bytes into a file, where it lies."""

    def harm(entry: Entry) -> None:
        file = entry.folder / name
        file.write_bytes(change(file.read_bytes()))

    return harm


def replaced(name: str, put: Callable[[Path, Entry], object]) -> Harm:
    """Return what takes a file away, and may put something else in its place."""

    def harm(entry: Entry) -> None:
        file = entry.folder / name
        file.replace(entry.aside / name)
        put(file, entry)

    return harm


def taken_from(*names: str) -> Harm:
    """Return what puts files of the other entry, which are signed, into this one."""
    return lambda entry: [shutil.copy2(entry.other / name, entry.folder / name) for name in names]


def in_its_place(folder: Callable[[Entry], Path]) -> Harm:
    def harm(entry: Entry) -> None:
        shutil.rmtree(entry.folder)
        shutil.copytree(folder(entry), entry.folder)

    return harm


def behind_a_link(entry: Entry) -> None:
    away = entry.aside / entry.folder.name
    shutil.rmtree(away, ignore_errors=True)
    entry.folder.rename(away)
    entry.folder.symlink_to(away)


def a_file(entry: Entry) -> None:
    shutil.rmtree(entry.folder)
    entry.folder.write_text("in its place")


HARM: dict[str, Harm] = {
    **{f"flipped {name}": changed(name, lambda it: flipped(it, len(it) // 2)) for name in FILES},
    **{f"first bit of {name}": changed(name, lambda it: flipped(it, 0)) for name in FILES},
    **{f"last bit of {name}": changed(name, lambda it: flipped(it, -1)) for name in FILES},
    **{f"short {name}": changed(name, lambda it: it[:-1]) for name in FILES},
    **{f"long {name}": changed(name, lambda it: it + b"\n") for name in FILES},
    **{f"empty {name}": changed(name, lambda _: b"") for name in FILES},
    **{f"no {name}": replaced(name, lambda *_: None) for name in FILES},
    **{f"another's {name}": taken_from(name) for name in FILES},
    "another's header and attestation": taken_from(HEADER, ATTESTATION),
    "another's entry": in_its_place(lambda entry: entry.other),
    "a stranger's entry": in_its_place(lambda entry: entry.stranger),
}
FOREIGN: dict[str, Harm] = {
    **{
        f"link at {name}": replaced(
            name, lambda file, entry: file.symlink_to(entry.aside / file.name)
        )
        for name in FILES
    },
    **{
        f"second name of {name}": lambda entry, name=name: os.link(  # type: ignore[misc]
            entry.folder / name, entry.aside / os.urandom(4).hex()
        )
        for name in FILES
    },
    **{f"pipe at {name}": replaced(name, lambda file, _: os.mkfifo(file)) for name in FILES},
    **{f"folder at {name}": replaced(name, lambda file, _: file.mkdir()) for name in FILES},
    **{
        f"{mode:o} of {name}": lambda entry, name=name, mode=mode: (entry.folder / name).chmod(mode)  # type: ignore[misc]
        for name, mode in (*((name, 0o660) for name in FILES), (ARTIFACT, 0o602), (".", 0o770))
    },
    "link to the entry": behind_a_link,
    "file for the entry": a_file,
}
if os.geteuid() == 0:  # Who else could give a file away?
    FOREIGN |= {
        f"owner of {name}": lambda entry, name=name: os.chown(entry.folder / name, NOBODY, -1)  # type: ignore[misc]
        for name in (*FILES, ".")
    }
MODULES = {how: wasm.adder(1 + tag) for tag, how in enumerate([*HARM, *FOREIGN])}


@dataclass(frozen=True)
class Site:
    """The state directory of a daemon, and what belongs into its host store."""

    state: Path
    good: Mapping[bytes, Artifact]
    stranger: Path

    def entry(self, module: bytes) -> Entry:
        def of(state: Path, module: bytes) -> Path:
            header = self.good[module].header
            return entry_path(state / "host_store", header.fingerprint, header.module_sha256)

        aside = self.state / "aside" / wasm.digest(module)
        aside.mkdir(parents=True, exist_ok=True)
        return Entry(
            of(self.state, module), of(self.state, OTHER), of(self.stranger, module), aside
        )

    def harm_all(self) -> None:
        for how, harm in (HARM | FOREIGN).items():
            harm(self.entry(MODULES[how]))

    def check_none_is_used(self, daemon: Daemon, *, file: bool) -> None:
        """Ask for each harmed entry when memory has nothing; see that all are good again."""
        with daemon.client(host_store_dir="none") as client:
            client.evict(all=True, tier="memory")
            for how, module in MODULES.items():
                before = rejected(daemon)
                origin, found = asked(daemon, client, module, file=file)
                assert (origin, found == self.good[module].bytes) == (COMPILED, True), how
                causes = {
                    cause for cause, count in rejected(daemon).items() if count != before.get(cause)
                }
                assert len(causes) == 1, how
                assert (causes == {"foreign"}) == (how in FOREIGN), (how, causes)
                assert sum(rejected(daemon).values()) == sum(before.values()) + 1, how
            for how, module in MODULES.items():
                self.check_mended(daemon, client, module, how)

    def check_mended(self, daemon: Daemon, client: Client, module: bytes, how: str) -> None:
        """Wait until an entry is whole and good again."""
        folder = self.entry(module).folder

        def good() -> bool:
            header, _ = asked_for_file(daemon, module)
            return header.host_file.path == str(folder / ARTIFACT)

        eventually(good, f"no file is told again: {how}")
        assert (folder / ARTIFACT).read_bytes() == self.good[module].bytes
        found = [file.lstat() for file in folder.iterdir()]
        modes = {(each.st_nlink, each.st_uid, each.st_mode & 0o777) for each in found}
        assert modes == {(1, os.geteuid(), 0o640)}, how
        client.evict(wasm.digest(module), tier="memory")
        again = client.compile(module)
        assert (again.header.origin, again.bytes) == (HOST_STORE, self.good[module].bytes), how


def asked(daemon: Daemon, client: Client, module: bytes, *, file: bool) -> tuple[int, bytes]:
    """Return the origin and the bytes that a caller gets, in a file if there is one."""
    if not file:
        found = client.compile(module)
        return found.header.origin, found.bytes
    header, payload = asked_for_file(daemon, module)
    told = header.host_file.path
    return header.origin, Path(told).read_bytes() if told else payload


@pytest.fixture(scope="module")
def site(engines: Installed, tmp_path_factory: pytest.TempPathFactory) -> Site:
    folder = tmp_path_factory.mktemp("host")
    states = [
        fresh_state(folder / name, own_keys=True, engines=ONE_ENGINE)
        for name in ("own", "stranger")
    ]
    good: dict[bytes, Artifact] = {}
    for state in reversed(states):
        with Daemon(state, NO_REDIS) as daemon, daemon.client(host_store_dir="none") as client:
            good = {each: client.compile(each) for each in (OTHER, *MODULES.values())}
    return Site(states[0], good, states[1])


def test_no_entry_that_was_changed_is_used(site: Site) -> None:
    """Neither by the daemon that has checked or written it before, nor by a new one."""
    for file in (False, True):
        site.harm_all()
        with Daemon(site.state, NO_REDIS) as daemon:
            site.check_none_is_used(daemon, file=file)
            site.harm_all()
            site.check_none_is_used(daemon, file=not file)


@pytest.fixture(scope="module")
def kiln(site: Site) -> Iterator[tuple[Daemon, Client]]:
    """A daemon that finds these files, and a client that trusts its key alone."""
    trusted = KeyDirectory.of(site.state).public.hex
    with (
        Daemon(site.state, NO_REDIS) as daemon,
        daemon.client(host_store_dir="none", trusted_keys=trusted) as client,
    ):
        yield daemon, client


MODULE = next(iter(MODULES.values()))


def served(kiln: tuple[Daemon, Client], site: Site) -> object:
    """Ask for bytes when memory has nothing; return their origin. They are always right."""
    kiln[1].evict(all=True, tier="memory")
    found = kiln[1].compile(MODULE)
    assert found.bytes == site.good[MODULE].bytes
    return found.header.origin


@pytest.mark.parametrize("above", [1, 2])
def test_a_folder_above_that_is_a_link_or_that_others_may_change(
    kiln: tuple[Daemon, Client], site: Site, above: int
) -> None:
    folder = site.entry(MODULE).folder.parents[above - 1]
    away = site.state / f"away-{above}"
    for link in (False, True):
        before = rejected(kiln[0]).get("foreign", 0)
        if link:
            folder.rename(away)
            folder.symlink_to(away)
        else:
            folder.chmod(0o770)
        assert served(kiln, site) == COMPILED
        assert rejected(kiln[0])["foreign"] == before + 1
        site.check_mended(*kiln, MODULE, str(folder))
        assert not folder.is_symlink()
    assert list(away.rglob(ARTIFACT))  # Nothing behind the link was touched.


@pytest.mark.parametrize("above", [0, 1, 2])
def test_a_write_replaces_what_is_in_its_way(
    kiln: tuple[Daemon, Client], site: Site, tmp_path: Path, above: int
) -> None:
    folder = [site.entry(MODULE).folder, *site.entry(MODULE).folder.parents][above]
    for plant in (
        lambda: folder.symlink_to(tmp_path),
        lambda: folder.write_text("a file"),
        lambda: (folder / "sub" / "sub").mkdir(parents=True),
    ):
        kiln[1].evict(all=True)
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        plant()
        assert kiln[1].compile(MODULE).header.origin == COMPILED
        site.check_mended(*kiln, MODULE, str(folder))
        assert list(tmp_path.iterdir()) == []


def test_what_is_gone_replaced_or_mapped(kiln: tuple[Daemon, Client], site: Site) -> None:
    daemon, client = kiln
    folder, store = site.entry(MODULE).folder, site.state / "host_store"
    served(kiln, site)
    site.check_mended(*kiln, MODULE, "before")
    before = rejected(daemon)
    for gone in (folder, folder.parents[1], store):
        shutil.rmtree(gone)
        assert served(kiln, site) == COMPILED
        site.check_mended(*kiln, MODULE, "gone")
    store.chmod(0o777)
    assert served(kiln, site) == COMPILED
    store.chmod(0o750)
    site.check_mended(*kiln, MODULE, "closed again")
    # The same bytes, by somebody else, after the check: who was told the file can notice.
    told, _ = asked_for_file(daemon, MODULE)
    shutil.copy2(folder / ARTIFACT, folder / "aside")
    (folder / "aside").replace(folder / ARTIFACT)
    again, _ = asked_for_file(daemon, MODULE)
    assert told.host_file.inode != again.host_file.inode == (folder / ARTIFACT).stat().st_ino
    assert rejected(daemon) == before
    with (folder / ARTIFACT).open("rb") as mapped:
        client.compile(MODULE, skip_cache_lookup=True)
        client.evict(all=True)
        assert not folder.exists()
        assert mapped.read() == site.good[MODULE].bytes
    assert served(kiln, site) == COMPILED
    site.check_mended(*kiln, MODULE, "evicted")
    # After all of this the store is good.
    done = wasmkilnd("cache", "scrub", "--tier", "host_store", "--state-dir", str(site.state))
    assert done.returncode == 0, done.stdout + done.stderr


def after_mounting(mounts: str) -> tuple[str, ...]:
    """Return the command of a daemon that sees what shell lines have mounted, and nobody else."""
    tried = subprocess.run([*NAMESPACE, "true"], check=False, capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"no namespace of its own for a file system: {tried.stderr.strip()}")
    return (*NAMESPACE, "sh", "-c", f'{mounts} && exec "$@"', "sh", WASMKILND)


def test_a_full_disk_costs_no_call(engines: Installed, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    command = after_mounting(f'mount -t tmpfs -o size=2m,mode=0700 disk "{disk}"')
    flags = (*NO_REDIS, "--host-store-dir", str(disk / "store"), "--host-store-bytes", "1GiB")
    state = fresh_state(tmp_path / "state", engines=ONE_ENGINE)
    with ExitStack() as stack:
        daemon = stack.enter_context(Daemon(state, flags, command=command))
        client = stack.enter_context(daemon.client(host_store_dir="none"))

        def written() -> None:
            eventually(lambda: not daemon.metric("host_store_pending_writes"), "a write waits")

        made = [client.compile(wasm.with_data(300_000, tag)) for tag in range(10)]
        eventually(
            lambda: daemon.metric("tier_stores_total", outcome="error", tier="host_store"),
            "no write fails",
        )
        written()
        assert daemon.metric("host_store_dropped_writes_total") >= 1
        assert daemon.metric("tier_stores_total", outcome="ok", tier="host_store") >= 3
        client.evict(all=True, tier="memory")
        for tag, artifact in enumerate(made):
            assert client.compile(wasm.with_data(300_000, tag)).bytes == artifact.bytes
        assert "No space left on device" in daemon.log
        assert 0 < daemon.log.count('"cannot write the host store"') < 4
        # There is room again, and it is used at once.
        client.evict(all=True)
        client.compile(wasm.adder(1))
        written()
        client.evict(all=True, tier="memory")
        assert client.compile(wasm.adder(1)).header.origin == HOST_STORE


@pytest.mark.parametrize("how", ["read-only", "no byte is free"])
def test_a_store_that_takes_nothing_from_the_start_costs_no_call(
    engines: Installed, tmp_path: Path, how: str
) -> None:
    state = fresh_state(tmp_path / "state", engines=ONE_ENGINE)
    store, modules = state / "host_store", [wasm.adder(tag) for tag in range(3)]
    with Daemon(state, NO_REDIS) as daemon, daemon.client(host_store_dir="none") as client:
        made = [client.compile(module) for module in modules]
    header = made[0].header
    damaged = entry_path(store, header.fingerprint, header.module_sha256) / ARTIFACT
    damaged.write_bytes(flipped(damaged.read_bytes(), 0))
    mounts = {
        "read-only": f'mount --bind "{store}" "{store}" && mount -o remount,bind,ro "{store}"',
        "no byte is free": f'mount -t tmpfs -o size=64k,mode=0700 disk "{store}"'
        f' && {{ head -c 99999 /dev/zero > "{store}/filler" 2> /dev/null || true; }}',
    }
    command = after_mounting(mounts[how])
    origins = [COMPILED, *[HOST_STORE if how == "read-only" else COMPILED] * 2]
    with (
        Daemon(state, NO_REDIS, command=command) as daemon,
        daemon.client(host_store_dir="none") as client,
    ):
        for _ in range(2):
            found = [client.compile(module) for module in modules]
            assert [each.header.origin for each in found] == origins
            assert [each.bytes for each in found] == [each.bytes for each in made]
            client.evict(all=True, tier="memory")
        assert client.compile(wasm.adder(9)).header.origin == COMPILED
        assert client.health() == "SERVING"
        gone = client.evict(wasm.digest(modules[1]))
        assert list(gone.unreachable_tiers) == (["host_store"] if how == "read-only" else [])
        told = [line for line in daemon.log_lines if "the host store" in line]
        of_each = "a cache write was dropped", "takes none of its size"
        assert len([line for line in told if not any(each in line for each in of_each)]) < 4
        assert "Traceback" not in daemon.log
    # Once it takes writes again, what was damaged is replaced.
    with Daemon(state, NO_REDIS) as daemon, daemon.client(host_store_dir="none") as client:
        assert client.compile(modules[0]).header.origin == COMPILED
        eventually(lambda: not daemon.metric("host_store_pending_writes"), "a write waits")
        client.evict(all=True, tier="memory")
        again = client.compile(modules[0])
        assert (again.header.origin, again.bytes) == (HOST_STORE, made[0].bytes)
