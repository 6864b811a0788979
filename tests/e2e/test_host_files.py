"""Files of the host store that were damaged, swapped or replaced, and disks that are full."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from wasmkiln import Artifact, Client, WasmkilnError
from wasmkiln.shared import ARTIFACT, entry_path

from tests.e2e import wasm
from tests.e2e.daemon import ONE_ENGINE, Daemon, fresh_state
from tests.e2e.processes import eventually
from tests.e2e.programs import WASMKILND, Installed
from tests.e2e.signing_keys import KeyDirectory
from tests.e2e.stored_values import flipped, rejected
from tests.e2e.test_daemon import wasmkilnd
from tests.e2e.test_host_store import COMPILED, HOST_STORE, NO_REDIS, asked_for_file

MODULE, OTHER = wasm.adder(1), wasm.adder(2)
HEADER, ATTESTATION = "artifact.json", "artifact.dsse.json"
NOBODY = 65534
NAMESPACE = ("unshare", "--user", "--map-root-user", "--mount")


@dataclass
class Site:
    """A daemon with a host store, and the entry of one module in it."""

    daemon: Daemon
    client: Client
    good: Artifact
    entry: Path
    other: Path
    """The entry of another module."""
    stranger: Path
    """What a daemon with other keys wrote for the same module."""

    def rejected(self, cause: str = "") -> int:
        """Return how many entries the daemon rejected, for one cause or for any."""
        counts = rejected(self.daemon)
        return counts.get(cause, 0) if cause else sum(counts.values())

    def served(self) -> int:
        """Ask for bytes when memory has nothing; return their origin. They are always right."""
        self.client.evict(everything=True, tier="memory")
        found = self.client.compile(MODULE)
        assert found.bytes == self.good.bytes
        return found.header.origin

    def mended(self) -> None:
        """Wait until the entry is whole and good again."""

        def good() -> bool:
            header, _ = asked_for_file(self.daemon, MODULE)
            return header.host_file.path == str(self.entry / ARTIFACT)

        eventually(good, "no file is told again")
        assert (self.entry / ARTIFACT).read_bytes() == self.good.bytes
        found = [file.lstat() for file in self.entry.iterdir()]
        assert {(each.st_nlink, each.st_uid, each.st_mode & 0o777) for each in found} == {
            (1, os.geteuid(), 0o640)
        }
        assert self.served() == HOST_STORE


@pytest.fixture(scope="module")
def site(engines: Installed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("host")
    stranger = fresh_state(folder / "stranger", own_keys=True, engines=ONE_ENGINE)
    with Daemon(stranger, NO_REDIS) as daemon, daemon.client(host_store_dir="none") as client:
        client.compile(MODULE)
    state = fresh_state(folder / "state", own_keys=True, engines=ONE_ENGINE)
    with ExitStack() as stack:
        daemon = stack.enter_context(Daemon(state, NO_REDIS))
        trusted = KeyDirectory.of(state).public.hex
        client = stack.enter_context(daemon.client(host_store_dir="none", trusted_keys=trusted))
        good, other = client.compile(MODULE), client.compile(OTHER)

        def entry(state: Path, of: Artifact) -> Path:
            where = of.header.fingerprint, of.header.module_sha256
            return entry_path(state / "host_store", *where)

        one = Site(
            *(daemon, client, good, entry(state, good), entry(state, other)),
            entry(stranger, good),
        )
        eventually(one.other.exists, "the entry is not written")
        eventually(one.entry.exists, "the entry is not written")
        yield one


def changed(name: str, change: Callable[[bytes], bytes]) -> Callable[[Site], None]:
    """Return what writes other bytes into a file, where it lies."""

    def harm(site: Site) -> None:
        file = site.entry / name
        file.write_bytes(change(file.read_bytes()))

    return harm


def replaced(name: str, put: Callable[[Site, Path], object]) -> Callable[[Site], None]:
    """Return what removes a file, and puts something else in its place."""

    def harm(site: Site) -> None:
        (site.entry / name).unlink()
        put(site, site.entry / name)

    return harm


def aside(site: Site, file: Path) -> Path:
    """Return a good copy of a file outside of the store."""
    away = site.daemon.state_dir / "aside"
    shutil.copy2(site.other / file.name, away)
    return away


FILES = (ARTIFACT, HEADER, ATTESTATION)
HARM: dict[str, Callable[[Site], None]] = {
    **{f"flipped-{name}": changed(name, lambda it: flipped(it, len(it) // 2)) for name in FILES},
    **{f"first-bit-{name}": changed(name, lambda it: flipped(it, 0)) for name in FILES},
    **{f"last-bit-{name}": changed(name, lambda it: flipped(it, -1)) for name in FILES},
    **{f"short-{name}": changed(name, lambda it: it[:-1]) for name in FILES},
    **{f"long-{name}": changed(name, lambda it: it + b"\0") for name in FILES},
    **{f"empty-{name}": changed(name, lambda _: b"") for name in FILES},
    **{
        f"of-another-{name}": replaced(
            name, lambda site, file: shutil.copy(site.other / file.name, file)
        )
        for name in FILES
    },
}
FOREIGN: dict[str, Callable[[Site], None]] = {
    "link": replaced(ARTIFACT, lambda site, file: file.symlink_to(aside(site, file))),
    "second-name": lambda site: os.link(
        site.entry / ARTIFACT, site.daemon.state_dir / f"name-{os.urandom(4).hex()}"
    ),
    "pipe": replaced(ARTIFACT, lambda _, file: os.mkfifo(file)),
    "folder": replaced(ARTIFACT, lambda _, file: file.mkdir()),
    "open": lambda site: (site.entry / ARTIFACT).chmod(0o666),
    "open-folder": lambda site: site.entry.chmod(0o777),
}


@pytest.mark.parametrize("how", HARM)
def test_a_file_that_was_changed_is_never_served(site: Site, how: str) -> None:
    before = site.rejected()
    HARM[how](site)
    assert site.served() == COMPILED
    assert site.rejected() == before + 1
    site.mended()


@pytest.mark.parametrize("how", FOREIGN)
def test_a_file_that_others_may_change_is_never_served(site: Site, how: str) -> None:
    before = site.rejected("foreign")
    FOREIGN[how](site)
    assert site.served() == COMPILED
    assert site.rejected("foreign") == before + 1
    site.mended()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
@pytest.mark.parametrize("name", [ARTIFACT, HEADER, "."])
def test_a_file_of_another_user_is_never_served(site: Site, name: str) -> None:
    before = site.rejected("foreign")
    os.chown(site.entry / name, NOBODY, -1)
    assert site.served() == COMPILED
    assert site.rejected("foreign") == before + 1
    site.mended()


def test_the_entry_of_a_stranger_or_of_another_module_is_never_served(site: Site) -> None:
    for foreign, cause in ((site.stranger, "stranger"), (site.other, "")):
        before = site.rejected(cause)
        shutil.rmtree(site.entry)
        shutil.copytree(foreign, site.entry)
        assert site.served() == COMPILED
        assert site.rejected(cause) == before + 1
        site.mended()


def test_what_is_gone_is_a_miss_and_comes_back(site: Site) -> None:
    before = site.rejected()
    shutil.rmtree(site.entry)
    assert site.served() == COMPILED
    site.mended()
    shutil.rmtree(site.entry.parents[1])
    assert site.served() == COMPILED
    site.client.evict(everything=True, tier="memory")
    assert site.client.compile(OTHER).header.origin == COMPILED
    eventually(site.other.exists, "the entry is not written")
    assert site.rejected() == before
    site.mended()


def test_a_caller_is_told_no_file_that_was_changed(site: Site) -> None:
    for how in ("flipped-artifact", "last-bit-artifact", "of-another-artifact.json"):
        HARM[how](site)
        site.client.evict(everything=True, tier="memory")
        header, payload = asked_for_file(site.daemon, MODULE)
        assert header.origin == COMPILED
        told = Path(header.host_file.path).read_bytes() if header.host_file.path else payload
        assert told == site.good.bytes
        site.mended()


def test_a_mapped_file_stays_as_it_was(site: Site) -> None:
    with (site.entry / ARTIFACT).open("rb") as mapped:
        site.client.compile(MODULE, skip_cache_lookup=True)
        site.client.evict(everything=True)
        assert not site.entry.exists()
        assert mapped.read() == site.good.bytes
    assert site.served() == COMPILED
    site.mended()


def scrubbed(state: Path) -> subprocess.CompletedProcess[str]:
    return wasmkilnd("cache", "scrub", "--tier", "host_store", "--state-dir", str(state))


def test_a_daemon_that_is_killed_while_it_writes_leaves_nothing_wrong(
    engines: Installed, tmp_path: Path
) -> None:
    state = fresh_state(tmp_path / "state", engines=ONE_ENGINE)
    modules = [wasm.with_data(100_000, tag) for tag in range(40)]
    made: dict[bytes, bytes] = {}
    with Daemon(state, NO_REDIS) as daemon, daemon.client(max_attempts=1) as client:

        def compiled(module: bytes) -> None:
            try:
                made[module] = client.compile(module).bytes
            except WasmkilnError:
                return  # The daemon is gone.

        with ThreadPoolExecutor(4) as callers:
            calls = [callers.submit(compiled, module) for module in modules]
            stores = "tier_stores_total"
            eventually(
                lambda: daemon.metric(stores, outcome="ok", tier="host_store") >= 3,
                "the host store is not written",
            )
            daemon.kill()
        for call in calls:
            call.result()
    done = scrubbed(state)
    assert done.returncode == 0, done.stdout + done.stderr
    with Daemon(state, NO_REDIS) as daemon, daemon.client(host_store_dir="none") as client:
        origins = []
        for module, code in made.items():
            found = client.compile(module)
            assert found.bytes == code
            origins.append(found.header.origin)
        assert origins.count(HOST_STORE) >= 3
        assert daemon.metric("values_rejected_total", cause="digest", tier="host_store") == 0


def test_daemons_that_write_into_one_store_keep_its_limit_together(
    engines: Installed, tmp_path: Path
) -> None:
    limit_bytes, store = 1 << 20, tmp_path / "store"
    flags = (*NO_REDIS, "--host-store-dir", str(store), "--host-store-bytes", str(limit_bytes))

    def used_bytes() -> int:
        return sum(file.stat().st_blocks * 512 for file in store.glob("*/*/*/*"))

    with ExitStack() as stack:
        states = [fresh_state(tmp_path / name, engines=ONE_ENGINE) for name in ("a", "b")]
        daemons = [stack.enter_context(Daemon(state, flags)) for state in states]
        clients = [stack.enter_context(daemon.client(host_store_dir="none")) for daemon in daemons]
        for tag in range(12):
            for number, client in enumerate(clients):
                client.compile(wasm.with_data(80_000, 2 * tag + number))
        eventually(
            lambda: not any(each.metric("host_store_pending_writes") for each in daemons),
            "writes wait for ever",
        )
        eventually(lambda: used_bytes() <= limit_bytes, "the store outgrows its limit")
        assert used_bytes() > limit_bytes // 4
        # What was written last is there.
        clients[1].evict(everything=True, tier="memory")
        assert clients[1].compile(wasm.with_data(80_000, 23)).header.origin == HOST_STORE


def test_a_full_disk_costs_no_call(engines: Installed, tmp_path: Path) -> None:
    tried = subprocess.run([*NAMESPACE, "true"], check=False, capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"no namespace of its own for a file system: {tried.stderr.strip()}")
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = f'mount -t tmpfs -o size=2m,mode=0700 disk "{disk}" && exec "$@"'
    command = (*NAMESPACE, "sh", "-c", mounted, "sh", WASMKILND)
    flags = (*NO_REDIS, "--host-store-dir", str(disk / "store"), "--host-store-bytes", "1GiB")
    state = fresh_state(tmp_path / "state", engines=ONE_ENGINE)
    with (
        Daemon(state, flags, command=command) as daemon,
        daemon.client(host_store_dir="none") as client,
    ):
        made = [client.compile(wasm.with_data(300_000, tag)) for tag in range(10)]
        eventually(
            lambda: daemon.metric("tier_stores_total", outcome="error", tier="host_store"),
            "no write fails",
        )
        eventually(lambda: not daemon.metric("host_store_pending_writes"), "a write waits")
        assert daemon.metric("host_store_dropped_writes_total") >= 1
        assert daemon.metric("tier_stores_total", outcome="ok", tier="host_store") >= 3
        client.evict(everything=True, tier="memory")
        for tag, artifact in enumerate(made):
            assert client.compile(wasm.with_data(300_000, tag)).bytes == artifact.bytes
        assert daemon.log.count("No space left on device") >= 1
        # There is room again, and it is used at once.
        client.evict(everything=True)
        client.compile(wasm.adder(1))
        eventually(lambda: not daemon.metric("host_store_pending_writes"), "a write waits")
        client.evict(everything=True, tier="memory")
        assert client.compile(wasm.adder(1)).header.origin == HOST_STORE


def test_after_all_of_this_the_store_is_good(site: Site) -> None:
    done = scrubbed(site.daemon.state_dir)
    assert done.returncode == 0, done.stdout + done.stderr
