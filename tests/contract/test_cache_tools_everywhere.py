"""The tools on every kind of Redis, as the user that docs/how-to/redis.md describes."""

from __future__ import annotations

import io

import pytest
from wasmkilnd.cache.redis.connect import connect
from wasmkilnd.cache.redis.guarded import GuardedRedis
from wasmkilnd.cache.redis.tier import RedisTier
from wasmkilnd.cache.redis.value_reader import ValueReader
from wasmkilnd.cache.value.format import MAX_VALUE_BYTES
from wasmkilnd.cache.value.names import KeyNames
from wasmkilnd.maintenance.archive import ArchiveReader, ArchiveWriter
from wasmkilnd.maintenance.inventory import Inventory, Listed
from wasmkilnd.maintenance.orphans import Mentions, OrphanFinder
from wasmkilnd.maintenance.scrub import Finding, Scrub
from wasmkilnd.maintenance.transfer import Import, export
from wasmkilnd.model import Artifact, Module
from wasmkilnd.wire import CHUNK_BYTES

from tests.contract.redis_access import redis_access
from tests.contract.sealing import OURS, sealer
from tests.contract.values import artifact, module
from tests.doubles.notes import Notes
from tests.servers.deployments import KINDS_OF_REDIS, Deployment

SEALER = sealer(OURS)
PREFIX = "wasm:tools:"
NAMES = KeyNames(PREFIX)

VALUES: list[Artifact | Module] = [
    *(module(tag) for tag in range(5)),
    *(SEALER.seal(artifact(tag, 2 * CHUNK_BYTES + tag + 1)) for tag in range(5)),
]


async def listed(link: GuardedRedis) -> list[Listed]:
    return [one async for one in Inventory(link, NAMES, SEALER).values()]


@pytest.mark.parametrize("deployment", KINDS_OF_REDIS, indirect=True, scope="session")
async def test_values_are_listed_verified_and_moved(deployment: Deployment) -> None:
    tier = RedisTier(
        connect(deployment.url, redis_access(deployment.access)),
        SEALER,
        Notes(),
        prefix=PREFIX,
        timeout_s=5,
    )
    link, findings = tier.link, list[Finding]()
    try:
        for one in VALUES:
            await (tier.put(one) if isinstance(one, Artifact) else tier.put_module(one))
        assert len(await listed(link)) == len(VALUES)
        rest = await OrphanFinder(link, NAMES, Mentions(NAMES)).count()
        assert (rest.parts, rest.orphans, rest.unknown) == (10, 0, 0)
        for name in (NAMES.artifact(artifact(0).key), NAMES.module(module(0).sha256)):
            [value] = await link.beginnings([name], [MAX_VALUE_BYTES])
            assert value
            await link.set(name, value[:-1] + bytes([value[-1] ^ 1]), 1000)
        reader = ValueReader(link, NAMES, SEALER)
        scrub = Scrub(
            link,
            NAMES,
            reader,
            Inventory(link, NAMES, SEALER),
            OrphanFinder(link, NAMES, Mentions(NAMES)),
            dry_run=False,
            report_finding=findings.append,
        )
        await scrub.find_orphans()
        await scrub.verify(await scrub.keys(), lambda: None)
        await scrub.sweep_orphans(0)
        assert (scrub.report.good, scrub.report.bad) == (8, {"digest": 2})
        file = io.BytesIO()
        chosen = await listed(link)
        moved = await export(
            chosen,
            reader,
            NAMES,
            ArchiveWriter(file.write, 1_800_000_000, "a test"),
            10 * CHUNK_BYTES,
            lambda name, rejected: None,
            lambda one: None,
        )
        assert (moved.values, moved.refused) == (8, {})
        names = [name async for page in link.scan(NAMES.all_pattern()) for name in page]
        lengths = [MAX_VALUE_BYTES] * len(names)
        before = dict(zip(names, await link.beginnings(names, lengths), strict=True))
        await link.delete(names)
        assert await listed(link) == []
        file.seek(0)
        taking = Import(
            link,
            NAMES,
            SEALER,
            limit_bytes=10 * CHUNK_BYTES,
            ttl_s=1000,
            tell=lambda name, rejected: None,
        )
        await taking.run(ArchiveReader(file), lambda size_bytes: None)
        assert taking.moved.values == 8
        assert dict(zip(names, await link.beginnings(names, lengths), strict=True)) == before
    finally:
        await tier.close()
