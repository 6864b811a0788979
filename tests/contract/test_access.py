"""Who is let in: certificates, users, and what they have to be allowed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from structlog.testing import capture_logs
from wasmkilnd.cache.fleet import Fleet, Strikes
from wasmkilnd.errors import TierUnavailable
from wasmkilnd.flights import Allowance, WaitBudget
from wasmkilnd.model import EvictScope, Held, Kind, Strike
from wasmkilnd.usage import Usage
from wasmkilnd.whole_files import SharedFile

from tests.contract.redis_stores import SEALER, Site, site
from tests.contract.values import artifact, module, same
from tests.servers.deployments import KINDS_OF_REDIS, NO_ACCESS, Deployment
from tests.servers.redis_server import KINDS, binary_of, free_ports, redis_server

# Of one module, and more than one command takes.
SMALL = SEALER.seal(artifact(1))
LARGE = SEALER.seal(artifact(2, 2_000_000, of=module(1)))


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with KINDS_OF_REDIS["rediss"](tmp_path_factory.mktemp("tls")) as running:
        yield running


def denials(deployment: Deployment) -> list[object]:
    """Return what the servers refused so far to users whom they let in."""
    found: list[object] = []
    for raw in deployment.raw:
        with raw() as client:
            try:
                found += [each for each in client.acl_log() if each["reason"] != "auth"]
            except redis.ConnectionError:
                continue  # Killed.
    return found


async def why_down(at: Site) -> str:
    """Return why the server lets nobody in, once it was asked."""
    await at.store.start()
    assert not at.link.up
    return at.link.why_down


@pytest.mark.parametrize("deployment", KINDS_OF_REDIS, indirect=True, scope="session")
async def test_the_documented_commands_are_enough_for_all_that_is_asked(
    deployment: Deployment, tmp_path: Path
) -> None:
    async with site(deployment.url, deployment.access) as at:
        store, wasm = at.store, module(1)
        await store.start()
        for each in (wasm, SMALL, LARGE):
            await store.put(each)
        assert same(await store.get(LARGE.key, Allowance()), LARGE)
        assert await store.get(wasm.sha256, Allowance()) == wasm
        assert await store.held([SMALL.key, LARGE.key]) == {SMALL.key, LARGE.key}
        assert await store.kinds_of([SMALL.key]) == {SMALL.key: Kind.CORE_MODULE}
        held = await store.measure([wasm.sha256], keep=True)
        assert held[wasm.sha256] == Held(2, 1, held[wasm.sha256].bytes)
        assert await at.run("TTL", at.name(SMALL)) == -1
        await store.release([wasm.sha256])
        store.used(SMALL.key)
        await at.run("SET", at.name(SMALL), b"spoilt")
        assert await store.get(SMALL.key, Allowance()) is None
        assert not await at.run("EXISTS", at.name(SMALL))
        await store.put(SMALL)

        async def stored(_: object) -> None:
            """It is there."""

        one, two = (
            Fleet(at.link, store.prefix, at.notes, stored, lease_s=60, max_wait_s=lambda: 0.0)
            for _ in range(2)
        )
        key = artifact(3).key
        async with one.claim(key, WaitBudget()) as mine, two.claim(key, WaitBudget()) as other:
            assert await mine.take()
            assert not await other.take()
            mine.failed()
        await one.close()
        await two.close()
        strikes = Strikes(at.link, store.prefix, SEALER)
        await strikes.put(
            Strike(key, "e-1", "COMPILE_TIMEOUT", "long", 3, 600.0), 100, WaitBudget()
        )
        assert [strike.key for strike in await strikes.all()] == [key]
        assert await strikes.remove(key.module_sha256) == [key]
        usage = Usage(SharedFile(tmp_path, "", ""), SEALER, store)
        usage.tally.count(SMALL)
        await usage.save()
        later = Usage(SharedFile(tmp_path, "", ""), SEALER, store)
        later.tally.count(SMALL)
        await later.save()
        assert [*(await later.of_fleet()).counts.values()] == [pytest.approx(2, abs=0.1)]
        gone = await store.evict(EvictScope(module_sha256=wasm.sha256))
        gone += await store.evict(EvictScope())
        assert (gone.artifacts, gone.modules) == (2, 1)
        assert (await at.link.usage()).bytes > 0
    assert denials(deployment) == []


async def test_what_a_server_of_tls_is_asked_for(tls: Deployment) -> None:
    untrusted = "the certificate of Redis is not trusted: "
    for url, access, why in (
        (tls.url, NO_ACCESS, untrusted),
        (tls.url.replace("127.0.0.1", "localhost"), tls.access, f"{untrusted}.*ostname mismatch"),
        (tls.url.replace("rediss", "redis"), NO_ACCESS, ".*Redis"),
    ):
        async with site(url, access) as at:
            assert re.match(why, await why_down(at))
    async with site(f"{tls.url}?ssl_cert_reqs=none") as at:  # As the URL says.
        await at.store.start()
        assert at.link.up


@pytest.mark.parametrize("kind", KINDS)
async def test_a_server_that_quotes_the_password_back_is_not_quoted(
    kind: str, tmp_path: Path
) -> None:
    [port] = free_ports(1)
    renamed = ['rename-command AUTH ""']
    with redis_server(binary_of(kind), tmp_path, port=port, config=renamed), capture_logs() as logs:
        async with site(f"redis://app:hunter2@127.0.0.1:{port}") as at:
            why = await why_down(at)
            with pytest.raises(TierUnavailable) as raised:
                await at.store.put(module(1))
            told = f"{raised.value!r} {logs} {why} {at.store.write_refusal}"
    assert "the user or password" in told
    assert "hunter2" not in told
