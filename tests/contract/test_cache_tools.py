"""What the tools find in a real server, and what they do to it."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from redis.asyncio import Redis
from wasmkilnd import wire
from wasmkilnd.cache.redis.connect import NO_ACCESS, connect
from wasmkilnd.cache.redis.guarded import GuardedRedis
from wasmkilnd.cache.redis.tier import DEFAULT_TTL_S, RedisTier
from wasmkilnd.cache.redis.value_reader import ValueReader
from wasmkilnd.cache.shared_server import CannotOpenShared, RemoteOptions
from wasmkilnd.cache.value.format import HEADER_OFFSET
from wasmkilnd.cache.value.names import KeyNames, ValueKey
from wasmkilnd.errors import TierUnavailable
from wasmkilnd.maintenance.connect import open_link
from wasmkilnd.maintenance.inventory import Inventory, Listed, Trust
from wasmkilnd.maintenance.orphans import Mentions, OrphanFinder, OtherKeys
from wasmkilnd.maintenance.scrub import Finding, Scrub, Scrubbed
from wasmkilnd.model import Artifact, CacheKey, Module
from wasmkilnd.signing.sealer import Sealer
from wasmkilnd.wire import CHUNK_BYTES

from tests.contract.sealing import OURS, THEIRS, sealer
from tests.contract.values import artifact, module, payload_of
from tests.doubles.notes import Notes
from tests.servers.redis_server import RedisServer, binary_of, redis_server

SEALER, STRANGER = sealer(OURS), sealer(THEIRS)
LARGE_BYTES = 2 * CHUNK_BYTES + 10


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A server that these tests share, each under its own prefix."""
    with redis_server(binary_of("valkey"), tmp_path_factory.mktemp("valkey")) as running:
        yield running


@dataclass
class Shared:
    """A server's keys under one prefix, as a tool sees them and as anybody can change them."""

    url: str
    prefix: str
    raw: Redis
    link: GuardedRedis
    names: KeyNames
    findings: list[Finding] = field(default_factory=list)

    async def put(self, *values: Artifact | Module, signer: Sealer = SEALER) -> None:
        """Store ``values`` as a daemon does that signs with ``signer``'s key."""
        tier = RedisTier(connect(self.url), signer, Notes(), prefix=self.prefix)
        try:
            for one in values:
                await (tier.put(one) if isinstance(one, Artifact) else tier.put_module(one))
        finally:
            await tier.close()

    def name(self, one: Artifact | Module) -> bytes:
        """Return under which name a value is stored."""
        return self.names.value(key_of(one))

    async def parts(self, one: Artifact | Module) -> list[bytes]:
        """Return the names of a value's further pieces."""
        names = [name async for name in self.raw.scan_iter(count=1000)]
        return sorted(name for name in names if self.names.part_at(name) == key_of(one))

    async def edit(self, name: bytes, change: Callable[[bytes], bytes]) -> None:
        """Change what is stored under ``name``."""
        value = await self.raw.get(name)
        assert isinstance(value, bytes)
        await self.raw.set(name, change(value), keepttl=True)

    async def everything(self) -> dict[bytes, bytes]:
        """Return all strings under the prefix."""
        names = [name async for name in self.raw.scan_iter(count=1000)]
        ours = [name for name in names if name.startswith(self.prefix.encode())]
        found = await self.raw.mget(ours) if ours else []
        return {
            name: value for name, value in zip(ours, found, strict=True) if isinstance(value, bytes)
        }

    async def listed(self) -> dict[ValueKey, Listed]:
        """Return what the inventory lists, by key."""
        inventory = Inventory(self.link, self.names, SEALER)
        found = [one async for one in inventory.values()]
        assert len({one.key for one in found}) == len(found)
        return {one.key: one for one in found}

    async def rest(self) -> OtherKeys:
        """Return what there is beside values."""
        mentions = Mentions(self.names)
        async for _ in Inventory(self.link, self.names, SEALER).values(mentions):
            pass
        return await OrphanFinder(self.link, self.names, mentions).count()

    async def scrub(
        self, *, dry_run: bool = False, older_than_s: float = 0, verifier: Sealer = SEALER
    ) -> Scrubbed:
        """Scrub; return the report. ``findings`` has what was told."""
        one = self.scrubber(ValueReader(self.link, self.names, verifier), dry_run=dry_run)
        seen: list[None] = []
        await one.find_orphans()
        keys = await one.keys()
        await one.verify(keys, lambda: seen.append(None))
        assert len(seen) == len(keys)
        await one.sweep_orphans(older_than_s)
        return one.report

    def scrubber(self, reader: ValueReader, *, dry_run: bool = False) -> Scrub:
        """Return a scrub to be run."""
        self.findings.clear()
        return Scrub(
            self.link,
            self.names,
            reader,
            Inventory(self.link, self.names, SEALER),
            OrphanFinder(self.link, self.names, Mentions(self.names)),
            dry_run=dry_run,
            report_finding=self.findings.append,
        )


@pytest.fixture
async def shared(valkey: RedisServer, request: pytest.FixtureRequest) -> AsyncIterator[Shared]:
    """Keys of this test's own, with a prefix full of what a pattern must not read as one."""
    prefix = f"[{abs(hash(request.node.nodeid))}]*?:"
    raw, link = Redis.from_url(valkey.url), GuardedRedis(connect(valkey.url))
    yield Shared(valkey.url, prefix, raw, link, KeyNames(prefix))
    await link.close()
    await raw.aclose()


def key_of(one: Artifact | Module) -> ValueKey:
    if isinstance(one, Artifact):
        return ValueKey(one.module_sha256, one.spec.fingerprint)
    return ValueKey(one.sha256)


def sealed(tag: int, size_bytes: int = 100, engine: str = "wasmtime") -> Artifact:
    return SEALER.seal(artifact(tag, size_bytes, engine))


async def test_a_value_is_listed_as_its_head_describes_it(shared: Shared) -> None:
    one = artifact(1, LARGE_BYTES)
    spec = replace(one.spec, settings={"fuel": "true"}, changed_settings={"fuel": "true"})
    one, wasm = SEALER.seal(replace(one, spec=spec)), module(2, CHUNK_BYTES + 5)
    await shared.put(one, wasm)
    listed = await shared.listed()
    everything = await shared.everything()
    of_artifact, of_module = listed[key_of(one)], listed[key_of(wasm)]
    assert len(listed) == 2
    assert (of_artifact.raw_bytes, of_module.raw_bytes) == (LARGE_BYTES, CHUNK_BYTES + 5)
    assert of_artifact.stored_bytes + of_module.stored_bytes == sum(map(len, everything.values()))
    assert of_artifact.engine == "wasmtime-1.0"
    assert of_artifact.changed_settings == (("fuel", "true"),)
    assert of_artifact.finished_on == "2023-11-14T22:13:20Z"
    assert (of_module.engine, of_module.finished_on) == ("", "")
    for each in (of_artifact, of_module):
        assert each.rejected is None
        assert (each.trust, each.signer) == (Trust.TRUSTED, OURS.public.id)
        assert DEFAULT_TTL_S - 60 < each.ttl_s <= DEFAULT_TTL_S


async def test_heads_of_any_length_are_read_and_whole_values_are_not(shared: Shared) -> None:
    externs = artifact().imports * 2000
    long = [SEALER.seal(replace(artifact(tag), imports=externs[: tag * 400])) for tag in range(6)]
    await shared.put(*long)
    listed = await shared.listed()
    assert {one.key for one in listed.values() if not one.rejected} == set(map(key_of, long))


async def test_who_signed_what_is_told(shared: Shared) -> None:
    good, strange, forged = (sealed(tag) for tag in range(3))
    await shared.put(good, forged)
    await shared.put(strange, signer=STRANGER)

    def sign_anew(value: bytes) -> bytes:
        at = HEADER_OFFSET - 64
        return value[:at] + bytes(64) + value[HEADER_OFFSET:]

    await shared.edit(shared.name(forged), sign_anew)
    listed = await shared.listed()
    assert {key: one.trust for key, one in listed.items()} == {
        key_of(good): Trust.TRUSTED,
        key_of(strange): Trust.STRANGER,
        key_of(forged): Trust.FORGED,
    }
    assert listed[key_of(strange)].signer == THEIRS.public.id


async def test_a_stranger_s_words_are_taken_for_words_only(shared: Shared) -> None:
    odd: list[object] = [7, None, ["x"], {}, "\ud800"]
    for tag, finished_on in enumerate(odd):
        one = STRANGER.seal(artifact(tag))
        envelope = json.loads(one.attestation)
        said = json.loads(base64.b64decode(envelope["payload"]))
        said["predicate"]["runDetails"]["metadata"]["finishedOn"] = finished_on
        envelope["payload"] = base64.b64encode(json.dumps(said).encode()).decode()
        forged = replace(one, attestation=json.dumps(envelope).encode())
        await shared.put(forged, signer=STRANGER)
    listed = (await shared.listed()).values()
    assert sorted(one.finished_on for one in listed) == ["", "", "", "", "\ud800"]
    assert all(one.trust is Trust.STRANGER for one in listed)


async def test_what_cannot_be_read_is_listed_with_the_cause(shared: Shared) -> None:
    good, cut, swapped, version, other = (sealed(tag) for tag in range(5))
    await shared.put(good, cut, swapped, version)
    await shared.edit(shared.name(cut), lambda value: value[:50])
    await shared.raw.copy(shared.name(good).decode(), shared.name(swapped).decode(), replace=True)
    await shared.edit(shared.name(version), lambda value: value[:4] + b"\x03" + value[5:])
    await shared.raw.lpush(shared.name(other).decode(), "x")
    listed = await shared.listed()
    causes = {
        key: one.rejected.cause.value if one.rejected else None for key, one in listed.items()
    }
    assert causes == {
        key_of(good): None,
        key_of(cut): "truncated",
        key_of(swapped): "wrong_key",
        key_of(version): "version",
        key_of(other): "format",
    }
    assert listed[key_of(cut)].stored_bytes == 50


async def test_what_lies_beside_values_is_counted(shared: Shared) -> None:
    kept, lost, newer = (sealed(tag, LARGE_BYTES) for tag in range(3))
    await shared.put(kept, lost, newer)
    await shared.raw.delete(shared.name(lost))
    # What a value in a later format mentions cannot be told, so none of it is an orphan.
    await shared.edit(shared.name(newer), lambda value: value[:4] + b"\x03" + value[5:])
    await shared.raw.set(shared.names.lease(CacheKey("a" * 64, "b" * 64)), "me")
    for name in ("", "compiled:x", "something"):
        await shared.raw.set(f"{shared.prefix}{name}", "x")
    await shared.raw.set(f"x{shared.prefix}else", "x")
    rest = await shared.rest()
    assert (rest.parts, rest.orphans, rest.leases, rest.unknown) == (6, 2, 1, 3)
    assert rest.orphan_bytes == CHUNK_BYTES + 10
    assert rest.part_bytes == 3 * (CHUNK_BYTES + 10)


async def test_thousands_of_values_are_listed_each_once(shared: Shared) -> None:
    one = sealed(1)
    await shared.put(one)
    value = await shared.raw.get(shared.name(one))
    assert isinstance(value, bytes)
    await shared.raw.delete(shared.name(one))
    keys = [ValueKey(f"{number:064x}", "f" * 64) for number in range(2500)]
    async with shared.raw.pipeline(transaction=False) as pipeline:
        for key in keys:
            pipeline.set(shared.names.value(key), value)
        await pipeline.execute()
    listed = await shared.listed()
    assert set(listed) == set(keys)
    assert all(one.rejected and one.rejected.cause.value == "wrong_key" for one in listed.values())
    assert all(one.ttl_s == -1 for one in listed.values())


async def test_a_good_cache_is_left_as_it_is(shared: Shared) -> None:
    await shared.put(sealed(1), sealed(2, LARGE_BYTES), module(3), module(4, LARGE_BYTES))
    before = await shared.everything()
    report = await shared.scrub()
    assert (report.artifacts, report.modules, report.good) == (2, 2, 4)
    assert not report.bad
    assert report.orphans == report.young_orphans == report.gone == 0
    assert shared.findings == []
    assert await shared.everything() == before


def other_code(one: Artifact) -> Artifact:
    """An artifact that says to be ``one``, with code of another."""
    code = b"!" + payload_of(one.frames)[1:]
    return replace(one, frames=wire.to_frames(code))


DAMAGE: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "emptied": ("truncated", lambda value: b""),
    "cut": ("truncated", lambda value: value[:-1]),
    "cut in the head": ("truncated", lambda value: value[:60]),
    "grown": ("format", lambda value: value + b"x"),
    "a bit of a piece": ("digest", lambda value: value[:-1] + bytes([value[-1] ^ 1])),
    "a bit of the head": ("digest", lambda value: value[:300] + b"!" + value[301:]),
    "somebody else's": ("format", lambda value: b"hello"),
}


@pytest.mark.parametrize("what", DAMAGE)
@pytest.mark.parametrize("of", ["artifact", "module"])
async def test_a_damaged_value_is_found_and_deleted(shared: Shared, what: str, of: str) -> None:
    cause, damage = DAMAGE[what]
    good, bad = (sealed(1), sealed(2)) if of == "artifact" else (module(1), module(2))
    await shared.put(good, bad)
    await shared.edit(shared.name(bad), damage)
    dry = await shared.scrub(dry_run=True)
    assert (dry.bad, dry.deleted) == ({cause: 1}, 0)
    assert await shared.raw.exists(shared.name(bad))
    report = await shared.scrub()
    assert (report.good, report.bad, report.deleted) == (1, {cause: 1}, 1)
    [finding] = shared.findings
    assert (finding.name, finding.cause, finding.deleted) == (shared.name(bad), cause, True)
    assert set(await shared.everything()) == {shared.name(good)}


@pytest.mark.parametrize(
    ("cause", "damage"),
    [
        ("incomplete", None),
        ("truncated", lambda piece: piece[:-1]),
        ("format", lambda piece: piece + b"x"),
        ("digest", lambda piece: piece[:-1] + bytes([piece[-1] ^ 1])),
    ],
)
async def test_a_damaged_piece_is_found_and_goes_with_its_value(
    shared: Shared, cause: str, damage: Callable[[bytes], bytes] | None
) -> None:
    good, bad = sealed(1, LARGE_BYTES), sealed(2, LARGE_BYTES)
    await shared.put(good, bad)
    [_, part] = await shared.parts(bad)
    if damage:
        await shared.edit(part, damage)
    else:
        await shared.raw.delete(part)
    assert (await shared.scrub()).bad == {cause: 1}
    assert await shared.parts(bad) == []
    assert set(await shared.everything()) == {shared.name(good), *await shared.parts(good)}


async def test_each_way_to_sign_something_wrong_is_found(shared: Shared) -> None:
    good = sealed(0)
    await shared.put(good)
    by_stranger = sealed(1)
    await shared.put(by_stranger, signer=STRANGER)
    # Stored by a key that is trusted, and attested by one that is not, or for other bytes.
    attested_by_stranger = STRANGER.seal(artifact(2))
    not_attested = artifact(3)
    borrowed = replace(artifact(4), attestation=sealed(5).attestation)
    code_of_another = other_code(sealed(6))
    await shared.put(attested_by_stranger, not_attested, borrowed, code_of_another)
    wrong_kind = module(7)
    await shared.put(replace(wrong_kind, sha256="7" * 64))
    report = await shared.scrub()
    assert report.good == 1
    assert report.bad == {"stranger": 2, "unsigned": 1, "mismatch": 2, "wrong_key": 1}
    assert set(await shared.everything()) == {shared.name(good)}


async def test_a_key_of_another_type_is_found_beside_good_ones(shared: Shared) -> None:
    good, bad, part_bad = sealed(1), sealed(2), sealed(3, LARGE_BYTES)
    await shared.put(good, part_bad)
    await shared.raw.lpush(shared.name(bad).decode(), "x")
    [part, _] = await shared.parts(part_bad)
    await shared.raw.delete(part)
    await shared.raw.hset(part.decode(), "a", "b")
    report = await shared.scrub()
    assert (report.good, report.bad) == (1, {"format": 2})
    assert any("not a string" in finding.why for finding in shared.findings)
    assert set(await shared.everything()) == {shared.name(good)}


async def test_values_in_another_format_are_left_alone_and_counted(shared: Shared) -> None:
    one, wasm, good = sealed(1, LARGE_BYTES), module(2), sealed(3)
    await shared.put(one, wasm, good)
    for each in (one, wasm):
        await shared.edit(shared.name(each), lambda value: value[:4] + b"\x03" + value[5:])
    later = [f"{shared.prefix}{name}" for name in (f"module:{{{'a' * 64}}}v9",)]
    later.append(f"{shared.prefix}part:{{{'a' * 64}}}:modulev9:{'b' * 64}")
    for name in later:
        await shared.raw.set(name, "who knows")
    before = await shared.everything()
    report = await shared.scrub(older_than_s=-1e9)
    assert (report.good, report.other_format, report.bad.total()) == (1, 3, 0)
    assert await shared.everything() == before
    rest = await shared.rest()
    assert (rest.other_format, rest.unknown, rest.orphans) == (2, 0, 0)


async def test_with_the_wrong_keys_nothing_is_deleted(shared: Shared) -> None:
    await shared.put(sealed(1), sealed(2), module(3))
    damaged = sealed(4)
    await shared.put(damaged)
    await shared.edit(shared.name(damaged), lambda value: value[:60])
    report = await shared.scrub(verifier=STRANGER)
    # Damage in the head is seen without a key; all else may be good to others.
    assert report.bad == {"stranger": 3, "truncated": 1}
    assert report.deleted == 1
    assert len(await shared.everything()) == 3


async def test_orphans_go_unless_a_daemon_is_at_work_on_them(shared: Shared) -> None:
    kept, lost, late = (sealed(number, LARGE_BYTES) for number in (1, 2, 3))
    await shared.put(kept, lost, late)
    await shared.raw.delete(shared.name(lost))
    head = (await shared.everything())[shared.name(late)]
    await shared.raw.delete(shared.name(late))
    # As if they had been written long ago, or by a daemon that gives a shorter life.
    for part in (*await shared.parts(lost), *await shared.parts(late)):
        await shared.raw.expire(part, 1000)
    report = await shared.scrub(dry_run=True)
    assert (report.orphans, report.young_orphans) == (4, 0)
    assert len(await shared.parts(lost)) == len(await shared.parts(late)) == 2

    scrub = shared.scrubber(ValueReader(shared.link, shared.names, SEALER))
    await scrub.find_orphans()
    await shared.raw.set(shared.name(late), head)  # A value comes after its pieces.
    [old, anew] = await shared.parts(lost)
    await asyncio.sleep(3)
    await shared.raw.expire(anew, 1000)  # And a piece may be written once more.
    await scrub.sweep_orphans(3)
    assert (scrub.report.orphans, scrub.report.young_orphans, scrub.report.deleted) == (1, 1, 0)
    assert await shared.parts(lost) == [anew]
    assert len(await shared.parts(kept)) == len(await shared.parts(late)) == 2
    assert old not in await shared.everything()
    # Nothing is waited for where there is nothing to wait for.
    await shared.raw.delete(anew)
    await asyncio.wait_for(shared.scrub(older_than_s=600), 60)


async def test_what_took_the_place_of_a_bad_value_stays(shared: Shared) -> None:
    good, bad = sealed(0, LARGE_BYTES), sealed(1, LARGE_BYTES)
    await shared.put(good, bad)
    name = shared.name(bad)
    stored = (await shared.everything())[name]
    # Damage at the end, and the same module stored anew, begin alike.
    await shared.edit(name, lambda value: value[:-1] + bytes([value[-1] ^ 1]))
    judge = shared.link.delete_if

    async def replaced_first(key: bytes, value: bytes, others: Sequence[bytes]) -> bool:
        await shared.raw.set(name, stored)
        return await judge(key, value, others)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(shared.link, "delete_if", replaced_first)
        report = await shared.scrub()
    assert (report.bad.total(), report.deleted) == (1, 0)
    assert await shared.raw.get(name) == stored
    assert len(await shared.parts(bad)) == 2
    assert (await shared.scrub()).good == 2


async def test_a_piece_whose_value_comes_late_is_no_orphan(shared: Shared) -> None:
    one = sealed(1, LARGE_BYTES)
    await shared.put(one)
    finder = OrphanFinder(shared.link, shared.names, Mentions(shared.names))
    assert [orphan async for page in finder.orphans() for orphan in page] == []


async def test_a_value_that_is_replaced_during_the_scrub_is_judged_anew(shared: Shared) -> None:
    good, bad = sealed(0), sealed(1, LARGE_BYTES)
    await shared.put(good, bad)
    await shared.edit(shared.name(bad), lambda value: value[:-1])

    class Mending(ValueReader):
        """Has a daemon store the value anew right after it was found bad."""

        async def check(self, key: ValueKey) -> object:  # type: ignore[override]
            try:
                return await super().check(key)
            except Exception:
                await shared.put(bad)
                raise

    one = shared.scrubber(Mending(shared.link, shared.names, SEALER))
    await one.verify(await one.keys(), lambda: None)
    assert (one.report.good, one.report.bad.total()) == (2, 0)


async def test_what_goes_during_the_scrub_is_nothing_bad(shared: Shared) -> None:
    one = sealed(1)
    await shared.put(one)
    scrub = shared.scrubber(ValueReader(shared.link, shared.names, SEALER))
    keys = await scrub.keys()
    await shared.raw.delete(shared.name(one))
    await scrub.verify(keys, lambda: None)
    assert (scrub.report.gone, scrub.report.bad.total()) == (1, 0)


async def test_a_scrub_beside_a_daemon_that_stores_finds_nothing(shared: Shared) -> None:
    values = [sealed(tag, LARGE_BYTES) for tag in range(8)]
    await shared.put(*values)
    storing = asyncio.create_task(shared.put(*values, *values))
    reports = []
    while not storing.done():
        reports.append(await shared.scrub(older_than_s=0))
    await storing
    reports.append(await shared.scrub(older_than_s=0))
    assert all(not report.bad for report in reports)
    assert all(report.artifacts == 8 for report in reports)


async def test_huge_keys_under_our_names_are_not_read_whole(shared: Shared) -> None:
    one = sealed(1)
    await shared.put(sealed(2))
    await shared.raw.setrange(shared.name(one).decode(), 100 * 1024**2, "x")
    reader = ValueReader(shared.link, shared.names, SEALER)
    scrub = shared.scrubber(reader)
    await scrub.verify(await scrub.keys(), lambda: None)
    assert scrub.report.bad == {"format": 1}
    assert reader.bytes_read < 16 * 1024**2


async def test_an_outage_is_an_outage_and_no_finding(tmp_path: Path) -> None:
    with redis_server(binary_of("valkey"), tmp_path) as running:
        link = GuardedRedis(connect(running.url), timeout_s=2.0)
        raw, names = Redis.from_url(running.url), KeyNames("wasm:")
        shared = Shared(running.url, "wasm:", raw, link, names)
        await shared.put(*(sealed(tag) for tag in range(20)))
        scrub = shared.scrubber(ValueReader(link, names, SEALER))
        keys = await scrub.keys()
        running.process.kill()
        running.process.wait()
        with pytest.raises(TierUnavailable):
            await scrub.verify(keys, lambda: None)
        with pytest.raises(TierUnavailable):
            await shared.listed()
        assert not scrub.report.bad
        await raw.aclose()
        await link.close()


async def test_a_user_who_may_little_is_enough(shared: Shared) -> None:
    allowed = "+set +unlink +exists +getrange +strlen +scan +ttl +eval"
    await shared.raw.execute_command(  # type: ignore[no-untyped-call]
        "ACL", "SETUSER", "tool", "on", ">secret", "~*", "-@all", *allowed.split()
    )
    await shared.put(sealed(1, LARGE_BYTES), sealed(2), module(3))
    await shared.edit(shared.name(sealed(2)), lambda value: value[:-1])
    await shared.raw.lpush(shared.name(sealed(4)).decode(), "x")
    url = shared.url.replace("unix://", "unix://tool:secret@")
    link = GuardedRedis(connect(url))
    poor = replace(shared, link=link, findings=[])
    assert len(await poor.listed()) == 4
    assert (await poor.rest()).parts == 2
    report = await poor.scrub()
    assert (report.good, report.deleted) == (2, 2)
    await link.close()


def options(url: str, state_dir: Path) -> RemoteOptions:
    return RemoteOptions(
        url=url,
        access=NO_ACCESS,
        state_dir=state_dir,
        embedded_limit_bytes=64 * 1024**2,
        prefix="wasm:",
        ttl_s=1000,
        ttl_refresh=False,
        timeout_s=1.0,
        retry_max_s=1.0,
        lease_s=0.0,
        fleet_wait_s=lambda: 0.0,
        artifact_bytes=lambda: 1000,
        module_bytes=lambda: 1000,
        write_queue_bytes=lambda: 1000,
    )


async def test_where_no_server_answers_one_sentence_says_so(tmp_path: Path) -> None:
    for url, words in (
        ("none", "WASMKILN_REDIS_URL is none"),
        (f"unix://:secret@{tmp_path}/nobody.sock", "cannot reach Redis"),
        ("", "no daemon has run with the state directory"),
    ):
        with pytest.raises(CannotOpenShared, match=words) as refusal:
            async with open_link(options(url, tmp_path)):
                raise AssertionError
        assert "secret" not in str(refusal.value)
    assert not (tmp_path / "redis").exists()


async def test_the_embedded_server_is_run_for_as_long_as_it_is_needed(tmp_path: Path) -> None:
    once = options("", tmp_path)
    async with open_link(once, make=True) as link:
        await link.set(b"wasm:x", b"y", 100)
        async with open_link(once) as beside:
            assert await beside.beginnings([b"wasm:x"], [9]) == [b"y"]
        assert await link.beginnings([b"wasm:x"], [9]) == [b"y"]
    assert not (tmp_path / "redis" / "valkey.sock").exists()
    async with open_link(once) as link:
        assert await link.beginnings([b"wasm:x"], [9]) == [b"y"]
