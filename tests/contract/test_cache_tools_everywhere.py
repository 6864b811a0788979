"""`wasmkilnd cache` on every kind of Redis, as the user that docs/how-to/redis.md describes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from wasmkilnd.cache.redis_store import RedisStore
from wasmkilnd.model import Artifact, Module
from wasmkilnd.wire import CHUNK_BYTES

from tests.contract.cache_command import SEALER, Command, removed
from tests.contract.redis_stores import TTL_S, site
from tests.contract.values import artifact, module
from tests.servers.deployments import KINDS_OF_REDIS, Deployment

PREFIX = "wasm:tools:"

VALUES: list[Artifact | Module] = [
    *(module(tag) for tag in range(5)),
    *(SEALER.seal(artifact(tag, 2 * CHUNK_BYTES + tag + 1)) for tag in range(4)),
    SEALER.seal(artifact(4, 1000)),
]


def on_it(deployment: Deployment, work: Callable[[RedisStore], Awaitable[Any]]) -> Any:
    """Run ``work`` with a daemon's own access to the server."""

    async def run() -> Any:
        async with site(deployment.url, deployment.access, prefix=PREFIX) as at:
            return await work(at.store)

    return asyncio.run(run())


async def put_all(store: RedisStore) -> None:
    for each in VALUES:
        await store.put(each)


async def damage_two(store: RedisStore) -> None:
    for name in map(store.name_of, (VALUES[0].sha256, VALUES[-1].key)):
        [value] = await store.link.run(("GETRANGE", name, 0, -1), timeout_s=20)
        # In two parts, as no write of a daemon has a megabyte.
        damaged = bytes([value[0] ^ 1]) + value[1:]
        first, rest = damaged[:CHUNK_BYTES], damaged[CHUNK_BYTES:]
        await store.link.run(("SET", name, first, "EX", 9000), ("APPEND", name, rest))


async def everything(store: RedisStore) -> dict[bytes, Any]:
    keys = [key async for page in store.pages() for key in page]
    names = list(map(store.name_of, keys))
    found = await store.link.run(*(("GETRANGE", name, 0, -1) for name in names), timeout_s=20)
    return dict(zip(names, found, strict=True))


# aiohttp ends TLS after its session is closed, and each command here has a loop of its own.
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("deployment", KINDS_OF_REDIS, indirect=True, scope="session")
def test_values_are_listed_verified_moved_and_removed(
    deployment: Deployment, kept_as_it_was: None, tmp_path: Path
) -> None:
    cache = Command("", tmp_path / "state")
    del cache.environ["WASMKILN_REDIS_URL"]
    cache.environ |= deployment.access.environment(deployment.url)
    cache.environ["WASMKILN_REDIS_PREFIX"] = PREFIX
    on_it(deployment, put_all)
    rows = cache.rows()
    assert len(rows) == len(VALUES)
    assert {row["trust"] for row in rows} == {"trusted"}
    assert all(TTL_S - 60 < row["expires_in_s"] <= TTL_S for row in rows)
    on_it(deployment, damage_two)
    findings, summary = cache.scrub()
    assert {each["cause"] for each in findings.values()} == {"digest"}
    assert (summary["artifacts"], summary["modules"], summary["deleted"]) == (4, 4, 2)
    before = on_it(deployment, everything)
    assert len(before) == 8
    folder = tmp_path / "warm"
    folder.mkdir()
    url = folder.as_uri()
    assert json.loads(cache.good("export", "--json", url).stdout)["exported"]["refused"] == {}
    gone = removed(cache.good("rm", "--all", "--yes", "--json"))
    assert (gone["artifacts"], gone["modules"]) == (4, 4)
    assert cache.rows() == []
    assert "imported: artifacts=4, modules=4, " in cache.good("import", url).stdout
    assert on_it(deployment, everything) == before
    assert removed(cache.good("rm", "--engine", "wasmtime-1.0", "--json"))["artifacts"] == 4
    digest = module(1).sha256
    assert removed(cache.good("rm", "--module", digest, "--json"))["modules"] == 1
