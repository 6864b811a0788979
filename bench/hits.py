"""Hits in each tier, by calls whose messages stay bytes, in one process, in turns."""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from statistics import median
from typing import Any

import grpc
import redis
from grpc import aio
from wasmkiln import Client, HostFileUnavailable
from wasmkiln.loading import section_of
from wasmkiln.v1 import types_pb2
from wasmkilnd.access.guard import Access, AccessGuard
from wasmkilnd.access.policy import Policy, Rule
from wasmkilnd.access.tokens import TokenStore
from wasmkilnd.cache.value import open_value
from wasmkilnd.model import DEFAULT_NAMESPACE, PLAINTEXT, CacheKey, Credentials, Role
from wasmkilnd.settings import Settings
from wasmkilnd.signing.keys import read_keys
from wasmkilnd.signing.sealer import Sealer

from bench import lab
from bench.bare import METHODS
from bench.lab import Setting
from bench.rows import Action, Row, compare, figure, in_turns
from tests.servers.certificates import certificates
from tests.servers.object_stores import KINDS_OF_OBJECT_STORES

INLINE_BYTES = 64 * 1024
"""The largest artifact that an answer may hold in its one message."""

_STORED_S = 30.0
_LARGE = 10**6


class Held:
    """An artifact that a daemon's memory holds, connections to it, and a copy of its bytes."""

    def __init__(
        self, stack: ExitStack, given: Setting, module: lab.Module, daemon: lab.Daemon
    ) -> None:
        self.client = stack.enter_context(daemon.client())
        self.stream = lab.RawStream(stack, daemon.address)
        self.module, self.engine = module, given.wasmtime.id
        artifact = self.client.compile(module.path, engine=self.engine)
        self.header, self.size_bytes = artifact.header, len(artifact.bytes)
        self.file = given.folder / f"{module.name}.artifact"
        self.file.write_bytes(artifact.bytes)
        self.what = f"{lab.size_of(self.size_bytes)} artifact"
        self.is_large = self.size_bytes > _LARGE

    def request(self, **more: Any) -> bytes:
        """Return the request for it by digest, in one message where that is possible."""
        return lab.request(self.engine, self.module, inline_limit_bytes=INLINE_BYTES, **more)

    def hit(self) -> None:
        """Call, and take every message."""
        self.stream.drain(self.request())

    def hit_below(self, origin: int, encoding: str = "") -> float:
        """Return the seconds of a hit in a tier below memory."""
        self.client.evict(self.module.sha256, tier="memory")
        asked = self.request(accept_encodings=[encoding] if encoding else [])
        return self.stream.timed(asked, origin, encoding)

    def hit_and_hash(self) -> None:
        """Do what a hit from a file can at best do: send it from memory, once read and hashed."""
        hashlib.sha256(self.file.read_bytes()).digest()
        self.hit()

    def hit_in_memory(self) -> float:
        """Return the seconds of a hit in memory, where another hit may have to bring it first."""
        self.hit()
        return self.stream.timed(self.request(), types_pb2.ORIGIN_MEMORY)


def memory(given: Setting) -> Iterator[Row]:
    """Memory hits beside servers that do nothing but send, and by our client."""
    for module in (given.medium, given.small):
        with ExitStack() as stack:
            held = Held(stack, given, module, given.daemon)
            servers, found = _servers(stack, given, held), defaultdict[str, list[float]](list)
            # On fresh connections, whose flow control may settle at different speeds.
            for _ in range(given.rounds(3)):
                with ExitStack() as sitting:
                    actions: dict[str, Action] = {
                        name: partial(lab.RawStream(sitting, address, way).drain, held.request())
                        for name, (_, address, way) in servers.items()
                    }
                    series = in_turns(actions, given.rounds(300), given.rounds(50))
                for name, seconds in series.items():
                    found[name] += seconds
            yield from _beside_bare("memory hit", held.what, found, 1.08)
            actions = {
                "daemon": held.hit,
                "client": partial(held.client.compile, module.sha256, engine=held.engine),
                "whole": partial(held.stream.whole, held.request()),
            }
            series = in_turns(actions, given.rounds(200), given.rounds(50))
            what, of = f"{held.what}, Client.compile", 1.3 if held.is_large else None
            raw, against = series["daemon"], "the same, joined and hashed"
            yield compare("memory hit", what, series["client"], "the same call, raw", raw, of)
            yield compare("memory hit", what, series["client"], against, series["whole"])


def by_engine(given: Setting) -> Iterator[Row]:
    """Memory hits by the key of what the caller's engine says, beside the same by settings."""
    with ExitStack() as stack:
        held = Held(stack, given, given.small, given.daemon)
        settings = {"consume_fuel": "true"}
        made = held.client.compile(given.small.sha256, engine=held.engine, settings=settings)
        section = section_of(made.bytes)
        key, named = hashlib.sha256(section).digest(), held.request(settings=settings)
        held.client.compile(given.small.sha256, into=section)
        by_key = lab.request("", given.small, inline_limit_bytes=INLINE_BYTES, compatibility=key)
        actions: dict[str, Action] = {
            "key": partial(held.stream.timed, by_key, types_pb2.ORIGIN_MEMORY),
            "settings": partial(held.stream.timed, named, types_pb2.ORIGIN_MEMORY),
        }
        series = in_turns(actions, given.rounds(2000), given.rounds(50))
        against = "by engine and settings", series["settings"]
        what = f"{held.what}, by compatibility key"
        yield compare("memory hit", what, series["key"], *against, 1.02)


def _servers(stack: ExitStack, given: Setting, held: Held) -> dict[str, tuple[int, str, str]]:
    """Return process, address and method of the daemon, and of each way to send bytes alone."""
    bare = lab.program(stack, "bare", str(held.file))
    servers = {"daemon": (given.daemon.pid, given.daemon.address, lab.COMPILE)}
    return servers | {n: (bare.pid, f"127.0.0.1:{bare.said}", way) for n, way in METHODS.items()}


def _beside_bare(
    group: str, what: str, found: Mapping[str, Sequence[float]], goal: float | None
) -> Iterator[Row]:
    """Compare with each way to send bytes alone, the first of which has a goal; say the rest."""
    for number, (name, seconds) in enumerate((n, found[n]) for n in METHODS):
        over = figure(median(found["daemon"]) - median(seconds))
        pair, of = (found["daemon"], name, seconds), None if number else goal
        yield compare(group, what, *pair, of, f"{over} over {name}")


def rates(given: Setting) -> Iterator[Row]:
    """The daemon and a bare server by turns, hits of 20 KB, with one caller and with many."""
    with ExitStack() as stack:
        held = Held(stack, given, given.small, given.daemon)
        servers = _servers(stack, given, held)
        for callers, goal in ((1, 1.2), (8, None), (64, 1.2)):
            found: dict[str, list[tuple[float, float]]] = {name: [] for name in servers}
            for _ in range(given.rounds(4)):
                for name, server in servers.items():
                    calls = _per_hit(*server, held.request(), callers, given.rounds(800))
                    found[name].append(asyncio.run(calls))
            wall, cpu = ({n: [each[at] for each in found[n]] for n in servers} for at in (0, 1))
            group = f"hits of {held.what}, {callers} caller{'s' if callers > 1 else ''}"
            yield from _beside_bare(group, "time per hit", wall, None)
            yield from _beside_bare(group, "CPU time of the server per hit", cpu, goal)


async def _per_hit(
    pid: int, address: str, method: str, asked: bytes, callers: int, calls: int
) -> tuple[float, float]:
    """Call from several connections; return the seconds per call, and the server's CPU time."""
    channels = [
        aio.insecure_channel(address, (("grpc.use_local_subchannel_pool", 1),))
        for _ in range(callers)
    ]

    async def repeat(channel: aio.Channel, count: int) -> None:
        call: Any = channel.unary_stream(method)
        for _ in range(count):
            async for _ in call(asked):
                pass

    await asyncio.gather(*(repeat(channel, 1) for channel in channels))
    each = max(1, calls // callers)
    before, began = _cpu_ns(pid), time.perf_counter()
    await asyncio.gather(*(repeat(channel, each) for channel in channels))
    seconds = time.perf_counter() - began
    cpu = (_cpu_ns(pid) - before) / 1e9
    for channel in channels:
        await channel.close()
    return seconds / each / callers, cpu / each / callers


def _cpu_ns(pid: int) -> int:
    # The clock of another process, as clock_getcpuclockid(3) names it, which Python does not have.
    return time.clock_gettime_ns(~pid << 3 | 2)


def access(given: Setting) -> Iterator[Row]:
    """What it costs to ask who calls: daemons that do, beside one that does not."""
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    # Two daemons of one kind differ by some percent too, so there are several of each.
    for sitting in range(given.rounds(3)):
        with ExitStack() as stack:
            sites = _sites(given, given.folder / f"access-{sitting}", stack)
            for module in (given.small, given.medium):
                actions = {}
                for kind, (daemon, how) in sites.items():
                    stream = lab.RawStream(stack, daemon.address, **how)
                    asked = lab.request(given.wasmtime.id, module, inline_limit_bytes=INLINE_BYTES)
                    stream.drain(lab.request(given.wasmtime.id, module, upload=True))
                    stream.timed(asked, types_pb2.ORIGIN_MEMORY)
                    actions[kind] = partial(stream.drain, asked)
                series = in_turns(actions, given.rounds(150), given.rounds(50))
                for kind, seconds in series.items():
                    found[module.name][kind] += seconds
    for name, series in found.items():
        against = series.pop("neither")
        for kind, seconds in series.items():
            yield compare(f"memory hit, {name} artifact", kind, seconds, "neither", against)
    alone = [_guard_s() for _ in range(30)]
    whole = found[given.small.name]["the policy alone"]
    what = "the guard alone, by a policy"
    yield compare("memory hit, small artifact", what, alone, "the whole call", whole, 0.02)


def _sites(
    given: Setting, folder: Path, stack: ExitStack
) -> dict[str, tuple[lab.Daemon, dict[str, Any]]]:
    """Start the daemons, and return how each is called."""
    policy, tls = folder / "policy.toml", certificates(folder / "tls")
    policy.write_text('[[rule]]\nidentity = "anonymous"\nroles = ["compile"]\n')
    tls.key_file.chmod(0o600)
    tls_flags = ["--tls-cert-file", str(tls.cert_file), "--tls-key-file", str(tls.key_file)]
    trusted = grpc.ssl_channel_credentials(tls.ca_file.read_bytes())
    kinds: dict[str, tuple[list[str], bool, dict[str, Any]]] = {
        "neither": ([], False, {}),
        "neither, in another daemon: the noise": ([], False, {}),
        "the policy alone": (["--policy-file", str(policy)], False, {}),
        "a token": ([], True, {}),
        "TLS and a token": (tls_flags, True, {"trusted": trusted}),
    }
    sites: dict[str, tuple[lab.Daemon, dict[str, Any]]] = {}
    # In a new order each time: what starts first is not always the same.
    for kind in random.sample(list(kinds), len(kinds)):
        flags, with_token, how = kinds[kind]
        state = given.state(f"{folder.name}/{len(sites)}")
        if with_token:
            tokens = TokenStore(Settings(state_dir=state).effective_tokens_file)
            token, _ = tokens.add("bench", [Role.COMPILE], DEFAULT_NAMESPACE, None)
            how["metadata"] = [("authorization", f"Bearer {token}")]
        daemon = stack.enter_context(lab.Daemon(state, "--redis-url", "none", *flags))
        sites[kind] = (daemon, how)
    return sites


def _guard_s() -> float:
    """Return how long the guard takes for a call that it has seen before."""
    everybody = Rule(identity=("anonymous",), roles=(Role.COMPILE, Role.READ))
    guard, calls = AccessGuard(Access(Policy((everybody,)), on=True)), 1000
    started = time.perf_counter()
    for _ in range(calls):
        guard.admit(lab.COMPILE, PLAINTEXT, Credentials)
    return (time.perf_counter() - started) / calls


def host_store(given: Setting) -> Iterator[Row]:
    """Hits in the host store, the bytes of a file and its path, beside hits in memory."""
    for module in (given.medium, given.small):
        with ExitStack() as stack:
            held = Held(stack, given, module, given.daemon)
            wait_for_file(held.client, module.sha256, held.engine)
            lab.come_to_rest(held.client)
            origin, path = types_pb2.ORIGIN_HOST_STORE, held.request(accept_host_file=True)
            actions: dict[str, Action] = {
                "bytes": partial(held.hit_below, origin),
                "path": partial(held.stream.timed, path, origin),
                "memory": held.hit_in_memory,
                "floor": held.hit_and_hash,
            }
            series = in_turns(actions, given.rounds(150), warm_up=5)
        goals = {"bytes": 1.5, "path": None} if held.is_large else {"bytes": 1.4, "path": 1.2}
        for what, goal in goals.items():
            title, hit = f"{held.what}, its {what}", series["memory"]
            yield compare("host store hit", title, series[what], "memory hit", hit, goal)
        floor = "memory hit, and its file read and hashed", series["floor"]
        yield compare("host store hit", f"{held.what}, its bytes", series["bytes"], *floor)


def wait_for_file(client: Client, sha256: str, engine: str) -> Path:
    """Return the artifact's path, once the daemon has written it behind its reply."""
    until = time.monotonic() + _STORED_S
    while True:
        try:
            return Path(client.host_file(sha256, engine=engine))
        except HostFileUnavailable as failure:
            if time.monotonic() > until:
                raise lab.BenchError(str(failure)) from None
            time.sleep(0.1)


def over_http(given: Setting) -> Iterator[Row]:
    """Hits over HTTP, from memory and from a file, beside aiohttp's own answer with the file."""
    with ExitStack() as stack:
        flags = ("--redis-url", "none", "--http-listen", "127.0.0.1:0")
        tiers = {"memory": (), "a file": ("--memory-bytes", "0")}
        daemons = {
            tier: stack.enter_context(lab.Daemon(given.state(f"http-{len(more)}"), *flags, *more))
            for tier, more in tiers.items()
        }
        for module, *goals in ((given.medium, 1.2, 1.1), (given.small, None, 1.2)):
            actions: dict[str, Action] = {}
            for tier, daemon in daemons.items():
                held = Held(stack, given, module, daemon)
                wait_for_file(held.client, module.sha256, held.engine)
                lab.come_to_rest(held.client)
                path = f"/v1/artifacts/{module.sha256}/{held.header.fingerprint}"
                actions[tier] = _Fetching(stack, daemon.addresses[-1], path).seconds
            bare = lab.program(stack, "files", str(held.file))
            actions["aiohttp"] = plain = _Fetching(stack, f"127.0.0.1:{bare.said}", "/").seconds
            actions["floor"] = partial(_hash_and, plain, held.file)
            series = in_turns(actions, given.rounds(300), given.rounds(30))
            against = "aiohttp's own answer with the file", series["aiohttp"]
            for tier, goal in zip(daemons, goals, strict=True):
                yield compare("HTTP hit", f"{held.what}, from {tier}", series[tier], *against, goal)
            floor = "the same, read and hashed first", series["floor"]
            yield compare("HTTP hit", f"{held.what}, from a file", series["a file"], *floor)


def _hash_and(fetch: Callable[[], float], file: Path) -> float:
    began = time.perf_counter()
    hashlib.sha256(file.read_bytes()).digest()
    return time.perf_counter() - began + fetch()


class _Fetching:
    """A connection on which one path is fetched again and again."""

    def __init__(self, stack: ExitStack, address: str, path: str) -> None:
        self._connection, self._path = HTTPConnection(address, timeout=60), path
        stack.callback(self._connection.close)

    def seconds(self) -> float:
        """Return how long it takes to fetch it."""
        began = time.perf_counter()
        self._connection.request("GET", self._path)
        answer = self._connection.getresponse()
        answer.read()
        seconds = time.perf_counter() - began
        if answer.status != 200:
            raise lab.BenchError(f"{self._path} was answered with {answer.status}")
        return seconds


def in_redis(given: Setting) -> Iterator[Row]:
    """Hits in Redis: beside memory hits, beside reading the bytes alone, and what checks cost."""
    with ExitStack() as stack:
        url = lab.start_redis(stack, given.folder / "redis-hits")
        state = given.state("redis-hits-state")
        # Without a host store, which would answer first.
        flags = ("--redis-url", url, "--host-store-bytes", "0")
        daemon = stack.enter_context(lab.Daemon(state, *flags))
        direct = stack.enter_context(redis.Redis.from_url(url))
        sealer = Sealer(read_keys(Settings(state_dir=state)))
        for module, goal in ((given.medium, 2.0), (given.small, 1.6)):
            held = Held(stack, given, module, daemon)
            lab.come_to_rest(held.client)
            yield from _redis_rows(given, held, direct, sealer, goal)


def _redis_rows(
    given: Setting, held: Held, direct: Any, sealer: Sealer, goal: float
) -> Iterator[Row]:
    sha256 = held.module.sha256
    key = CacheKey(sha256, held.header.fingerprint, held.engine)
    [name] = direct.scan_iter(match=f"*compiled:*{sha256}*", count=1000)
    value = memoryview(direct.get(name))

    def check() -> None:
        """Do what the daemon does before it believes the value: the stamp, and every digest."""
        opened = open_value(value, key, sealer)
        for index, each in enumerate(opened.frames):
            opened.check(index, value[each.offset : each.offset + each.stored_bytes])

    def floor() -> None:
        """Do what a hit in Redis can at best do, one after the other."""
        stored = memoryview(direct.get(name))
        opened = open_value(stored, key, sealer)
        for index, each in enumerate(opened.frames):
            opened.ready(index, stored[each.offset : each.offset + each.stored_bytes])
        held.hit()

    actions: dict[str, Action] = {
        "floor": floor,
        "redis": partial(held.hit_below, types_pb2.ORIGIN_REDIS),
        "packed": partial(held.hit_below, types_pb2.ORIGIN_REDIS, "zstd"),
        "memory": held.hit_in_memory,
        "get": partial(direct.get, name),
        "check": check,
    }
    series = in_turns(actions, given.rounds(150), warm_up=5)
    group, what, hit, in_memory = "Redis hit", held.what, series["redis"], series["memory"]
    packed_goal, checks_goal = (1.4, 0.25) if held.is_large else (None, None)
    yield compare(group, what, hit, "memory hit", in_memory, goal)
    against = "memory hit, GET, checked and unpacked"
    yield compare(group, what, hit, against, series["floor"])
    packed = f"{what}, zstd accepted"
    yield compare(group, packed, series["packed"], "memory hit", in_memory, packed_goal)
    against = f"redis-py GET of the {lab.size_of(len(value))} stored (hiredis)"
    yield compare(group, what, hit, against, series["get"])
    checks = f"{what}: its checks alone"
    yield compare(group, checks, series["check"], "the whole call", hit, checks_goal)


def in_object_store(given: Setting) -> Iterator[Row]:
    """Hits in an object store beside a GET from the same server."""
    with ExitStack() as stack:
        store = stack.enter_context(KINDS_OF_OBJECT_STORES["seaweedfs"](given.folder / "objects"))
        flags = ("--redis-url", "none", "--host-store-bytes", "0")
        state = given.state("objects-state")
        daemon = stack.enter_context(lab.Daemon(state, *flags, environ=store.environment))
        for module in (given.medium, given.small):
            held = Held(stack, given, module, daemon)
            lab.come_to_rest(held.client)
            store.put({"plain": held.file.read_bytes()})
            actions: dict[str, Action] = {
                "objects": partial(held.hit_below, types_pb2.ORIGIN_OBJECT_STORE),
                "plain": partial(store.get, "plain"),
            }
            series = in_turns(actions, given.rounds(100), warm_up=5)
            against = f"obstore GET of {lab.size_of(held.size_bytes)}, SeaweedFS"
            pair = (series["objects"], against, series["plain"])
            yield compare("object store hit", held.what, *pair, 1.5 if held.is_large else 2.0)
