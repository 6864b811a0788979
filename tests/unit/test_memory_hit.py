"""A memory hit hashes and verifies nothing: the calls of C functions are counted."""

from __future__ import annotations

import hashlib
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from wasmkiln.v1 import module_service_pb2 as pb
from wasmkiln.v1 import types_pb2
from wasmkilnd.model import EvictScope
from wasmkilnd.rpc.messages import CompileCall
from wasmkilnd.rpc.module_service import ModuleServicer
from wasmkilnd.rpc.traffic import Call

from tests.contract.redis_stores import site
from tests.contract.sealing import sealer
from tests.doubles.context import Context
from tests.servers.redis_server import binary_of, redis_server
from tests.unit.services import CORE, Rig

# hashlib's digests, whatever they are called in which OpenSSL, and cryptography's signatures.
_WORK = ("sha", "md5", "blake", "hash_", "verify", "sign")


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """Count the calls of C functions that hash, sign or verify, in every thread."""
    calls: Counter[str] = Counter()

    def note(frame: FrameType, event: str, function: Any) -> None:
        if event == "c_call":
            name = getattr(function, "__name__", "")
            if any(work in name.lower() for work in _WORK):
                calls[name] += 1

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        yield calls
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


async def test_a_memory_hit_hashes_and_verifies_nothing_and_a_redis_hit_does(
    tmp_path: Path,
) -> None:
    ours = sealer()
    with redis_server(binary_of("valkey"), tmp_path) as running:
        async with site(running.url, signer=ours) as at:
            await _compare(Rig(at.store, ours))


async def _compare(rig: Rig) -> None:
    usual = rig.engines.spec("usual", "", "", {})
    # As the registry of engines does, which computes a fingerprint once.
    rig.engines.spec = lambda *wishes: usual  # type: ignore[method-assign]
    servicer = ModuleServicer(rig.tenant_of, rig.stats, rig.capabilities, rig.uploads)

    async def call(request: pb.CompileRequest) -> tuple[types_pb2.Origin, Counter[str]]:
        with counted() as calls:
            frames = await servicer.compile(
                CompileCall(request.SerializeToString()), Call(Context())
            )
        assert frames.artifact
        assert len(frames.artifact.frames) == 1
        return pb.CompileResponse.FromString(frames.first).header.origin, calls

    origin, work = await call(pb.CompileRequest(module=CORE))
    assert origin == types_pb2.ORIGIN_COMPILED
    assert work.total() > 0
    by_digest = pb.CompileRequest(sha256=hashlib.sha256(CORE).hexdigest())
    await rig.cache.flush(10)
    await rig.memory.evict(EvictScope())
    origin, work = await call(by_digest)
    assert origin == types_pb2.ORIGIN_REDIS
    # The stamp and the attestation; the header and the one frame.
    assert work["verify"] == 2
    assert work["openssl_sha256"] >= 2
    for _ in range(3):
        origin, work = await call(by_digest)
        assert origin == types_pb2.ORIGIN_MEMORY
        assert not work
