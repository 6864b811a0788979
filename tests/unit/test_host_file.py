"""A Compile call that accepts a file of the host store: when it is told one, and which."""

from __future__ import annotations

from dataclasses import replace

import pytest
from wasmkilnd.compile import Request
from wasmkilnd.model import EvictScope, Origin

from tests.doubles.tiers import HostFiles
from tests.unit.services import CORE, Rig


@pytest.fixture
def host() -> HostFiles:
    return HostFiles()


@pytest.fixture
def rig(host: HostFiles) -> Rig:
    return Rig(host=host)


async def test_the_caller_that_compiles_is_told_the_file(rig: Rig) -> None:
    served = await rig.compiler.compile(Request(wasm=CORE, accept_host_file=True))
    assert served.origin is Origin.COMPILED
    assert served.host_file
    assert served.host_file.path == f"/{served.artifact.module_sha256}"


async def test_the_host_store_is_asked_before_memory(rig: Rig) -> None:
    first = await rig.compiler.compile(Request(wasm=CORE))
    again = await rig.compiler.compile(Request(wasm=CORE, accept_host_file=True))
    assert (first.host_file, again.origin) == (None, Origin.HOST_STORE)
    assert again.host_file
    assert again.artifact.frames == ()
    assert rig.engines.compiles == 1


async def test_a_caller_that_does_not_accept_one_is_told_none(rig: Rig) -> None:
    await rig.compiler.compile(Request(wasm=CORE))
    await rig.cache.evict(EvictScope(), "memory")
    await rig.cache.flush(5)
    served = await rig.compiler.compile(Request(wasm=CORE))
    assert (served.origin, served.host_file) == (Origin.HOST_STORE, None)
    assert served.artifact.frames


async def test_without_a_file_the_caller_gets_bytes(rig: Rig, host: HostFiles) -> None:
    host.down = True
    for origin in (Origin.COMPILED, Origin.MEMORY):
        served = await rig.compiler.compile(Request(wasm=CORE, accept_host_file=True))
        assert (served.origin, served.host_file) == (origin, None)
        assert served.artifact.frames


async def test_memory_fills_a_host_store_that_lost_its_file(rig: Rig) -> None:
    await rig.compiler.compile(Request(wasm=CORE))
    await rig.cache.evict(EvictScope(), "host_store")
    served = await rig.compiler.compile(Request(wasm=CORE, accept_host_file=True))
    assert served.origin is Origin.MEMORY
    assert served.host_file
    again = await rig.compiler.compile(Request(wasm=CORE, accept_host_file=True))
    assert again.origin is Origin.HOST_STORE


async def test_no_caller_is_told_the_file_of_other_bytes(rig: Rig, host: HostFiles) -> None:
    first = await rig.compiler.compile(Request(wasm=CORE))
    await rig.cache.flush(5)
    await host.put(replace(first.artifact, sha256="5" * 64))
    host.refuse_writes = True
    again = Request(wasm=CORE, skip_cache_lookup=True, accept_host_file=True)
    served = await rig.compiler.compile(again)
    assert (served.origin, served.host_file) == (Origin.COMPILED, None)
