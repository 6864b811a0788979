"""A Compile call that accepts a file of the host store gets bytes where it can be told none.

What it is told otherwise is in tests/e2e/test_host_store.py, tests/unit/cache/test_cache.py.
"""

from __future__ import annotations

from wasmkilnd.compile import Request
from wasmkilnd.model import EvictScope, Origin

from tests.doubles.tiers import HostFiles
from tests.unit.services import CORE, Rig


async def test_a_caller_is_told_a_file_only_where_it_accepts_one_and_there_is_one() -> None:
    host = HostFiles()
    rig = Rig(host=host)
    wants = Request(wasm=CORE, accept_host_file=True)
    host.down = True
    for origin in (Origin.COMPILED, Origin.MEMORY):
        served = await rig.compiler.compile(wants)
        assert (served.origin, served.host_file) == (origin, None)
        assert served.artifact.frames
    host.down = False
    for origin in (Origin.MEMORY, Origin.HOST_STORE):  # Memory fills a store that lost its file.
        served = await rig.compiler.compile(wants)
        assert served.origin is origin
        assert served.host_file
        assert served.host_file.path == f"/{served.artifact.module_sha256}"
        assert served.artifact.frames == ()
    await rig.cache.evict(EvictScope(), "memory")
    served = await rig.compiler.compile(Request(wasm=CORE))
    assert (served.origin, served.host_file) == (Origin.HOST_STORE, None)
    assert served.artifact.frames
    assert rig.engines.compiles == 1
    wants = Request(wasm=CORE, accept_host_file=True)
    without = await Rig().compiler.compile(wants)
    assert (without.origin, without.host_file) == (Origin.COMPILED, None)
