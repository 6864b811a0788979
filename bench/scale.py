"""What grows with the number of artifacts: a call, the daemon's memory, an eviction, a start."""

from __future__ import annotations

import asyncio
import hashlib
import random
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import redis
from grpc import aio
from wasmkiln import Client, TrustedKeys
from wasmkiln.shared import entry_path
from wasmkiln.v1 import types_pb2
from wasmkilnd.cache.redis_store import RedisStore
from wasmkilnd.model import Artifact, CompileSpec, EngineIdentity, Kind, nothing_pinned
from wasmkilnd.redis.servers import RedisLink, connect
from wasmkilnd.signing.keys import Keys, PrivateKey
from wasmkilnd.signing.sealer import Sealer
from wasmkilnd.telemetry.metrics import Metrics

from bench import lab
from bench.hits import wait_for_file
from bench.lab import Setting
from bench.rows import Row, compare, figure, in_turns
from tests.frames import to_frames

GOAL = 1.2
SPARE_BYTES = 150_000_000
"""What a daemon may have on top of what its settings let its memory tier hold."""

_TTL_S = 24 * 3600
_TIMEOUT_S = 60.0
_NO_LIMIT = 1 << 40
_BATCH = 500
_CALLS = 100
_CALLERS = 16
_CODE_BYTES = 200


def daemons(given: Setting) -> Iterator[Row]:
    """Hits in memory among few artifacts and among many, by turns; and the memory that they take.

    The artifacts are made up: Redis holds them, signed by a key that the daemons trust. Each
    daemon is asked for all of its own once, and holds them in memory from then on.
    """
    least, most = (10, 100) if given.quick else (1_000, 30_000)
    key = PrivateKey.generate()
    with ExitStack() as stack:
        url = lab.start_redis(stack, given.folder / "redis-many")
        asyncio.run(_fill(given, url, Sealer(Keys(key, TrustedKeys([key.public])), "bench"), most))
        hits, running = {}, {}
        for count in (least, most):
            daemon = lab.Daemon(
                given.state(f"many-{count}"),
                *("--redis-url", url, "--host-store-bytes", "0", "--trusted-keys", key.public.hex),
                # Among so many calls there is one that a busy machine holds up.
                *("--memory-bytes", str(_NO_LIMIT), "--redis-timeout-s", "30"),
            )
            running[count] = stack.enter_context(daemon)
            asyncio.run(_ask_for_all(given, daemon.address, count))
            hits[str(count)] = partial(_hits, given, lab.RawStream(stack, daemon.address), count)
        series = in_turns(hits, given.rounds(12), warm_up=1)
        against = f"among {least:,}"
        what = f"memory hit among {most:,} artifacts"
        pair = (series[str(most)], against, series[str(least)])
        yield compare("call of a daemon", what, *pair, GOAL)
        with running[most].client() as client:
            held = next(tier.bytes for tier in client.stats().tiers if tier.tier == "memory")
        resident, allowed = _resident_bytes(running[most].pid), held + SPARE_BYTES
        ratio = resident / allowed
        yield Row(
            "resident memory",
            f"a daemon with {most:,} artifacts in memory",
            resident,
            f"{figure(held, 'B')} that its tier counts + {figure(SPARE_BYTES, 'B')}",
            allowed,
            ratio,
            (ratio, ratio),
            goal=1.0,
            unit="B",
        )


def _module(number: int) -> lab.Module:
    """Return a module of which there is no more than the digest."""
    return lab.Module("", Path(), hashlib.sha256(b"module %d" % number).hexdigest(), b"")


async def _fill(given: Setting, url: str, sealer: Sealer, count: int) -> None:
    """Store made-up artifacts as a daemon does, for what one compiles if a request says nothing."""
    with given.daemon.client() as client:
        header = client.compile(given.small.path, engine=given.wasmtime.id).header
    engine = header.engine
    spec = CompileSpec(
        EngineIdentity(engine.name, engine.version, engine.core_version, engine.compiler),
        header.target,
        header.cpu,
        dict(header.settings),
        {},
        header.fingerprint,
    )
    store = RedisStore(
        RedisLink(connect(url, timeout_s=_TIMEOUT_S), timeout_s=_TIMEOUT_S),
        "wasm:",
        sealer,
        Metrics("bench"),
        ttl_s=_TTL_S,
        artifact_bytes=lambda: _NO_LIMIT,
        module_bytes=lambda: _NO_LIMIT,
        is_pinned=nothing_pinned,
        reports_usage=True,
    )
    for number in range(count):
        code = hashlib.shake_128(b"code %d" % number).digest(_CODE_BYTES)
        digest, frames = hashlib.sha256(code).hexdigest(), to_frames(code)
        sha256 = _module(number).sha256
        made = Artifact(sha256, Kind.CORE_MODULE, spec, digest, len(code), frames, 0.5)
        await store.put(sealer.seal(made))
    await store.close()
    await store.link.close()


async def _ask_for_all(given: Setting, address: str, count: int) -> None:
    """Call once for each artifact. Raises lab.BenchError if Redis does not answer."""
    waiting = iter(range(count))
    async with aio.insecure_channel(address) as channel:
        call: Any = channel.unary_stream(lab.COMPILE)

        async def one_after_the_other() -> None:
            for number in waiting:
                answer = [
                    each async for each in call(lab.request(given.wasmtime.id, _module(number)))
                ]
                if lab.header_of(answer[0]).origin != types_pb2.ORIGIN_REDIS:
                    raise lab.BenchError("a made-up artifact did not come from Redis")

        await asyncio.gather(*(one_after_the_other() for _ in range(_CALLERS)))


def _hits(given: Setting, stream: lab.RawStream, count: int) -> float:
    numbers = random.choices(range(count), k=_CALLS)
    asked = [lab.request(given.wasmtime.id, _module(number)) for number in numbers]
    return sum(stream.timed(each, types_pb2.ORIGIN_MEMORY) for each in asked) / _CALLS


def _resident_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in status if line.startswith("VmRSS:"))


def evict(given: Setting) -> Iterator[Row]:
    """Evict a module from memory and from a Redis that holds few others, or many."""
    least, most = (10, 100) if given.quick else (1_000, 100_000)
    with ExitStack() as stack:
        actions = {}
        for count in (least, most):
            url = lab.start_redis(stack, given.folder / f"redis-evict-{count}")
            flags = ("--redis-url", url, "--host-store-bytes", "0")
            daemon = stack.enter_context(lab.Daemon(given.state(f"evict-{count}"), *flags))
            client = stack.enter_context(daemon.client())
            client.compile(given.small.path, engine=given.wasmtime.id)
            lab.come_to_rest(client)
            with redis.Redis.from_url(url) as direct:
                _copy_values(direct, given.small.sha256, count)
            actions[str(count)] = partial(_evict, given, client)
        series = in_turns(actions, given.rounds(20), warm_up=1)
    what, against = f"among {most:,} values in Redis", f"among {least:,}"
    pair = (series[str(most)], against, series[str(least)])
    yield compare("eviction of one module", what, *pair, GOAL)


def _evict(given: Setting, client: Client) -> float:
    client.compile(given.small.path, engine=given.wasmtime.id)
    lab.come_to_rest(client)
    began = time.perf_counter()
    gone = client.evict(given.small.sha256)
    seconds = time.perf_counter() - began
    if gone.artifacts != 2:
        raise lab.BenchError("memory and Redis did not both hold what was to be evicted")
    return seconds


def _copy_values(direct: Any, sha256: str, count: int) -> None:
    """Store ``count`` small values of made-up modules, under names as the daemon's for one."""
    names = list(direct.scan_iter(match=f"*{sha256}*", count=1000))
    sets = {name: direct.smembers(name) for name in names if direct.type(name) == b"set"}
    modules = count // (len(names) - len(sets))
    for start in range(0, modules, _BATCH):
        pipeline = direct.pipeline(transaction=False)
        for number in range(start, min(start + _BATCH, modules)):
            for name in names:
                named = name.replace(sha256.encode(), _module(number).sha256.encode())
                if name in sets:
                    pipeline.sadd(named, *sets[name])
                else:
                    pipeline.set(named, b"small", ex=_TTL_S)
        pipeline.execute()


def starts(given: Setting) -> Iterator[Row]:
    """A daemon's start until it serves, with a full host store and with an empty one."""
    count = 100 if given.quick else 100_000
    stores = {name: given.folder / f"store-{name}" for name in ("full", "empty")}
    state = given.state("starts")
    flags = ("--redis-url", "none", "--host-store-dir")
    with lab.Daemon(state, *flags, str(stores["full"])) as daemon, daemon.client() as client:
        header = client.compile(given.small.path, engine=given.wasmtime.id).header
        model = wait_for_file(client, given.small.sha256, given.wasmtime.id).parent
    for number in range(count):
        entry = entry_path(stores["full"], header.fingerprint, _module(number).sha256)
        shutil.copytree(model, entry)

    def start(store: Path) -> float:
        began = time.perf_counter()
        with lab.Daemon(state, *flags, str(store)):
            return time.perf_counter() - began

    actions = {name: partial(start, store) for name, store in stores.items()}
    series = in_turns(actions, given.rounds(4), warm_up=1)
    what = f"with {count:,} artifacts in its host store"
    pair = (series["full"], "with none", series["empty"])
    yield compare("start of a daemon", what, *pair, GOAL)
