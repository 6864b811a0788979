"""The life of a daemon: build every part, start them, handle signals, end in order."""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import math
import signal
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, replace
from functools import partial
from importlib.metadata import version
from typing import Any

import structlog

from wasmkilnd import options
from wasmkilnd.access.guard import Access, AccessGuard, open_fleet, read_access
from wasmkilnd.access.tls import TlsFiles, TlsMaterial, server_credentials
from wasmkilnd.cache.host_store import HostDirectory
from wasmkilnd.errors import server_draining
from wasmkilnd.lifecycle import engines, preflight
from wasmkilnd.lifecycle import reload as reloads
from wasmkilnd.lifecycle.readiness import Readiness, status_json
from wasmkilnd.lifecycle.systemd import Service, long_step, notify
from wasmkilnd.model import DrainState, Entrance, Reloadable, Transport
from wasmkilnd.quota import Quotas
from wasmkilnd.redis.embedded import EmbeddedServer, SharedServer
from wasmkilnd.rpc import admin_service, calls, http, messages, module_service, server
from wasmkilnd.rpc.traffic import MESSAGE_OVERHEAD_BYTES, Traffic, message_bytes_for
from wasmkilnd.rpc.upload import Uploads
from wasmkilnd.settings import GRPC, NONE, Settings, group_id, written
from wasmkilnd.settings_loader import LoadedSettings
from wasmkilnd.signing.keys import open_keys
from wasmkilnd.signing.sealer import Sealer
from wasmkilnd.telemetry import logs
from wasmkilnd.telemetry.admin import LIMIT, AdminServer
from wasmkilnd.telemetry.audit import Audit
from wasmkilnd.telemetry.metrics import Metrics
from wasmkilnd.telemetry.tracing import open_tracing
from wasmkilnd.tenants import Tenants, why_not
from wasmkilnd.waits.flights import Background, FairShare
from wasmkilnd.web import Door

# Calls at a time on one connection.
_MAX_STREAMS = 256
_FLUSH_S = 5.0
# How long a start waits at the end for the keys of JSON Web Tokens.
_KEYS_S = 1.0
# How often a daemon that drains looks for calls that run.
_LOOK_S = 0.02
# How long the banner waits for somebody who reads it.
_SHOW_S = 2.0

log = structlog.get_logger("wasmkilnd")


class Shutdown:
    """The end of a daemon, asked for by a signal or by Drain; its deadline only comes nearer.

    ``final`` is set when no call runs any more or the grace for them is over: until then, a Drain
    ``can_be_undone``. ``overdue`` is set when the grace is over, ``hurried`` when the daemon shall
    wait for nothing any more. For one event loop, which has to run already.
    """

    def __init__(self) -> None:
        self.asked, self.overdue, self.hurried = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.final, self.can_be_undone = asyncio.Event(), False
        self._loop = asyncio.get_running_loop()
        self._deadline = self._loop.call_at(math.inf, self.overdue.set)

    @property
    def left_s(self) -> float:
        """Seconds until the daemon gives up calls in progress; infinite before ``ask``."""
        return max(0.0, self._deadline.when() - self._loop.time())

    def ask(self, grace_s: float) -> None:
        """End the daemon, and give calls in progress ``grace_s`` at most.

        Of several deadlines the earliest counts.
        """
        self.asked.set()
        self._set(min(self._deadline.when(), self._loop.time() + grace_s))

    def undo(self) -> None:
        """Take back what was asked for."""
        self.asked.clear()
        self.overdue.clear()
        self._set(math.inf)

    def _set(self, deadline: float) -> None:
        self._deadline.cancel()
        self._deadline = self._loop.call_at(deadline, self.overdue.set)

    def hurry(self) -> None:
        """End the daemon without waiting for anything."""
        self.ask(0.0)
        self.overdue.set()
        self.hurried.set()


async def until(event: asyncio.Event, work: Coroutine[Any, Any, Any]) -> bool:
    """Do ``work`` until ``event`` happens; return whether the work was finished by then.

    Raises what ``work`` raises.
    """
    working, waiting = asyncio.create_task(work), asyncio.create_task(event.wait())
    try:
        await asyncio.wait((working, waiting), return_when=asyncio.FIRST_COMPLETED)
        if done := working.done():
            working.result()
        return done
    finally:
        working.cancel()
        waiting.cancel()
        await asyncio.gather(working, waiting, return_exceptions=True)


class Daemon:
    """All parts of one daemon."""

    def __init__(self, loaded: LoadedSettings, shutdown: Shutdown) -> None:
        self.settings = Reloadable(loaded.settings)
        self.version = version("wasmkiln")
        self.banner = ""
        self._shutdown = shutdown
        over_http = http.METHODS if loaded.settings.http_listen else ()
        self._metrics = Metrics(self.version, (*server.METHODS, *over_http))
        self._readiness = Readiness()
        self._on_stop = AsyncExitStack()
        self._rpc: server.RpcServer | None = None
        self._tenants: Tenants | None = None

    async def start(self) -> None:
        """Build and start every part; serve last, once all else works.

        Raises CannotStart, and what its parts raise of this package: sentences for people.
        """
        now = self.settings.current
        settings, metrics = self.settings, self._metrics
        readiness, on_stop, background = self._readiness, self._on_stop, Background()
        on_stop.push_async_callback(background.stop)
        limits = Reloadable(now.limits)
        preflight.check_host(now)
        # Without the keys of JSON Web Tokens, which the policy names: they are read once more.
        seen = reloads.stamps_of(reloads.watched_files(now, Access()))

        # Who may do what, and what is written about it.
        audit = Audit(lambda count: metrics.count("audit_lost", by=count))
        (await asyncio.to_thread(audit.prepare, now.audit_file))()
        on_stop.callback(audit.close)
        if tracing := await asyncio.to_thread(open_tracing, self.version):
            on_stop.push_async_callback(asyncio.to_thread, tracing.close)
        tls = await asyncio.to_thread(TlsFiles, now) if now.tls_cert_file else None

        access, _ = await asyncio.to_thread(read_access, now)
        guard = AccessGuard(access, lambda: tls.current.client_cas if tls else ())
        fetching = background.begin(guard.fetch_keys())
        keys = await asyncio.to_thread(open_keys, now)
        sealer = Sealer(keys, self.version, max_age_s=now.value_max_age_s)
        about: dict[str, Any] = {"key_id": keys.own_id, "trusted_keys": len(keys.trusted)}
        log.info("signing artifacts", **about)
        audit.write("start", version=self.version, **about)

        # The engines.
        found = await engines.find_engines(now)
        connections = preflight.connections_per_address(now, len(found))
        serving = engines.Serving(settings, limits, metrics, audit, background.begin)
        await serving.start(found, on_stop)
        served = serving.registry

        # The tiers, and what serves each namespace.
        namespaces = access.policy.namespaces
        if why := why_not(namespaces):
            raise preflight.CannotStart(why)
        embedded = EmbeddedServer(now.state_dir, now.embedded_redis_bytes)
        url, access_of_redis = now.redis_url.get_secret_value(), options.redis_access(now)
        shared = SharedServer(url, access_of_redis, embedded, timeout_s=now.redis_timeout_s)
        on_stop.push_async_callback(self._unless_hurried, embedded.stop)
        on_stop.push_async_callback(shared.close)
        if bucket := await asyncio.to_thread(options.open_bucket, now):
            on_stop.push_async_callback(bucket.close)
        long_step("opening the cache", at_most_s=300.0)
        await asyncio.gather(shared.start(), *([bucket.start()] if bucket else []))
        host = HostDirectory(options.host_options(now))
        tenants = self._tenants = Tenants(
            *(settings, metrics, shared, bucket, host, served, namespaces),
            served_engines=partial(engines.served_engines, served),
            in_progress=FairShare(lambda: 2 * limits.current.queue_bytes),
            # So that most workers stay free for callers.
            slots=asyncio.Semaphore(max(1, now.effective_workers // 2)),
            sealer=sealer,
            module_bytes=lambda: max(
                settings.current.max_module_bytes, guard.access.policy.module_bytes
            ),
        )
        on_stop.push_async_callback(tenants.close)
        on_stop.push_async_callback(self._unless_hurried, tenants.flush, _FLUSH_S)
        await tenants.start()

        # The calls.
        quotas = Quotas(lambda: guard.access.policy.quotas)
        traffic = Traffic(settings, message_bytes_for(now.max_module_bytes))

        def stats(namespace: str) -> Any:
            counted, spent = tenants.of(namespace).compiler.metrics, quotas.readings(namespace)
            return messages.stats_response(counted, namespace, spent, served.names)

        uploads = Uploads(settings, traffic)
        entry = calls.Entry(traffic, metrics, guard, audit, quotas.of, tracing)
        rpc = server.RpcServer(
            module_service.ModuleServicer(
                tenants.of, stats, partial(serving.capabilities, self.version), uploads
            ),
            admin_service.AdminServicer(tenants.of, tenants.jobs, self.drain, self.undo_drain),
            entry,
            connections=connections,
            streams=_MAX_STREAMS,
        )
        gauges = metrics.gauges
        gauges.ready = lambda: readiness.now()[0]
        gauges.log_lines_dropped, gauges.quotas = logs.dropped_lines, quotas.by_kind
        gauges.jwt_keys_fetched = lambda: guard.keys_fetched
        gauges.traffic = traffic.usage
        gauges.uploads = lambda: uploads.counts.total
        gauges.upload_bytes = lambda: uploads.sizes.total

        if tls:
            gauges.tls_not_after_s = lambda: {
                file: ends.timestamp() for file, ends in tls.current.not_after.items()
            }
            gauges.tls_failures = lambda: tls.failures
            tls.on_change = partial(_audit_tls, audit)
        group = group_id(now.socket_group)
        http_tls = (lambda: tls.current.http_context) if tls else None
        doors = [
            Door(address, connections, "http_listen", http_tls, group)
            for address in now.http_listen
        ]
        artifacts = http.HttpServer(tenants.of, entry, doors)
        admin_address = ""
        if now.admin_listen != NONE:
            admin = AdminServer(
                Door(now.admin_listen, LIMIT, "admin_listen", http_tls, group),
                metrics.registry,
                lambda: status_json(
                    *(metrics, readiness, serving, tenants),
                    open_fleet(settings.current, guard.access),
                ),
                readiness.now,
                guard.admit,
                audit,
            )
            on_stop.push_async_callback(admin.stop)
            admin_address = await admin.start()
        self._rpc = rpc
        on_stop.push_async_callback(rpc.stop)
        on_stop.push_async_callback(artifacts.stop)
        on_stop.push_async_callback(self._finish, rpc, tenants, serving)
        on_stop.push_async_callback(background.stop)  # First: nothing changes while it ends.

        # What changes while it runs.
        self._serving = serving
        self._reloader = reloads.Reloader(
            *(settings, limits, guard, sealer, tenants, audit, metrics),
            largest_module_bytes=traffic.message_bytes - MESSAGE_OVERHEAD_BYTES,
            refusal=lambda new: preflight.limits_too_low(new) or engines.refusal(new),
            files={
                **({"TLS": tls.prepare} if tls else {}),
                "access": partial(reloads.prepare_access, guard, tenants, audit),
                "audit": lambda new: audit.prepare(new.audit_file),
                "pins": lambda _: tenants.look_at_pins,
            },
            parts={
                "engines": serving.prepare,
                "Redis": lambda new: shared.prepare_reconnect(options.redis_access(new)),
            },
        )
        background.begin(guard.follow_keys())
        background.begin(self._end_without_calls(rpc))
        background.begin(
            reloads.follow(
                lambda: reloads.watched_files(settings.current, guard.access),
                seen,
                self._reloader.refresh,
            )
        )
        serving.follow(tenants)

        # What listens. Most issuers have answered long since; for another nobody waits.
        await asyncio.wait([fetching], timeout=_KEYS_S)
        wanted = _listeners(now, tls)
        bound = await rpc.start(wanted, group)
        files = await artifacts.start()
        readiness.started(serving, tenants.shared)
        rpc.set_health(readiness.now()[0])
        # All that is there now stays: a full collection of it would make every caller wait.
        gc.collect()
        gc.freeze()
        gc.enable()
        serves: dict[str, list[str]] = {listener.setting: [] for listener in wanted}
        for listener, address in zip(wanted, bound, strict=True):
            serves[listener.setting].append(address)
        serves["http"] = [f"{at}/v1" for at in files]
        if advice := open_fleet(now, guard.access):
            log.warning("no identities in a fleet", advice=advice)
        self.banner = self._banner(serves, admin_address, tenants, guard.access)
        ids = [engine.id for engine in served.served]
        log.info("ready", addresses=[*bound, *files], metrics=admin_address, engines=ids)

    async def reload(self, read: Callable[[], LoadedSettings]) -> reloads.ReloadResult:
        """Apply the configuration that ``read`` returns, as far as a running daemon can."""
        result = await self._reloader.reload(read)
        if not result.settings_refused:  # The names of engines are among them.
            await self._serving.look()
        return result

    def status(self) -> str:
        """Return in a sentence how the daemon is."""
        return f"{self._readiness.now()[1]}; {self._metrics.figures()}"

    def look(self) -> bool:
        """Do what has to be done every few seconds; return whether the daemon gets on."""
        preflight.trim_memory()
        return self._readiness.look(self._rpc.set_health if self._rpc else lambda _: None)

    def drain(self, grace_s: float | None = None) -> DrainState:
        """Refuse new calls from now on; return what the daemon still waits for.

        Calls in progress have ``grace_s`` to finish; None for the setting.
        """
        first = not self._shutdown.asked.is_set()
        self._shutdown.ask(self.settings.current.shutdown_grace_s if grace_s is None else grace_s)
        self._readiness.draining(True)
        if not (self._rpc and self._tenants):
            return DrainState(0.0, 0, 0)  # It was still starting.
        self._rpc.refuse_calls()
        state = DrainState(self._shutdown.left_s, self._rpc.running_calls, self._tenants.flights)
        if first:
            log.info("draining", **asdict(state))
        return state

    def undo_drain(self) -> bool:
        """Accept calls again; return whether it drained. Raises SERVER_DRAINING if it ends now."""
        if self._shutdown.final.is_set() or not (self._shutdown.can_be_undone and self._rpc):
            raise server_draining()
        if drained := self._shutdown.asked.is_set():
            self._shutdown.undo()
            self._readiness.draining(False)
            self._rpc.accept_calls(self._readiness.now()[0])
            log.info("drain undone")
        return drained

    async def _end_without_calls(self, rpc: server.RpcServer) -> None:
        """End the daemon for good when it is to end, and waits for no call."""
        shutdown = self._shutdown
        while not shutdown.final.is_set():
            await shutdown.asked.wait()
            if shutdown.asked.is_set() and not (rpc.running_calls and shutdown.left_s):
                shutdown.final.set()
            await asyncio.sleep(_LOOK_S)

    async def stop(self) -> None:
        """End in phases: refuse new calls, finish, give up, flush, close."""
        self.drain()
        await self._on_stop.aclose()
        log.info("stopped")

    async def _finish(
        self, rpc: server.RpcServer, tenants: Tenants, serving: engines.Serving
    ) -> None:
        async def finished() -> None:
            await rpc.idle()
            await tenants.settle()

        await tenants.end_behind()
        if not await until(self._shutdown.overdue, finished()):
            left = {"calls": rpc.running_calls, "flights": tenants.flights}
            log.warning("grace is over: giving up calls", **left)
            await tenants.settle(0)
        # While connections are open, so that callers who wait for a worker learn why they fail.
        await serving.registry.close()

    async def _unless_hurried(self, work: Callable[..., Any], *arguments: Any) -> None:
        await until(self._shutdown.hurried, work(*arguments))

    def _banner(
        self, serves: Mapping[str, Sequence[str]], admin: str, tenants: Tenants, access: Access
    ) -> str:
        """Return the addresses, who may call, engines, tiers, and a command for another shell."""
        settings, serving = self.settings.current, self._serving
        address, trouble = serves["listen"][0], tenants.default.host.trouble
        page = f"http{'s' if settings.tls_cert_file else ''}://{admin}/ in a browser"
        size = settings.effective_host_store_bytes
        host = f"host store, {written('host_store_bytes', size)}" if size else "no host store"
        host = f"host store unusable: {trouble}" if trouble else host
        objects = f"; {tenants.bucket.description}" if tenants.bucket else ""
        served = [
            f"{engine.id} ({engine.capabilities.interpreter},"
            f" {engine.pool.size} worker{'s' if engine.pool.size > 1 else ''}"
            f"{', default' if engine.id == serving.registry.default else ''})"
            for engine in serving.registry.served
        ] or ["none works: the daemon serves no call"]
        served += [f"{one.id} is not served: {one.cause}" for one in serving.unserved]
        flag = "" if address == "127.0.0.1:50051" else f"--address {address} "
        memory = written("memory_bytes", settings.memory_bytes)
        names = {"listen": "serving", "token_listen": "tokens", "operator_listen": "operator"}
        rows = {
            **{names.get(each, each): ", ".join(there) for each, there in serves.items()},
            "callers": "need an identity" if access.on else "everybody may do everything",
            "warning": open_fleet(settings, access),
            "metrics": admin and f"{admin}/metrics, /healthz, /readyz",
            "status": admin and not admin.startswith("unix:") and page,
            "engines": f"\n{'':11}".join(served),
            "jobs": serving.registry.served and serving.isolation.summary,
            "tiers": f"memory, {memory}; {host}; {tenants.server.description}{objects}",
            "state": settings.state_dir,
            "try": f"wasmkiln {flag}compile MODULE.wasm -o MODULE.cwasm",
        }
        body = "\n".join(f"  {name:<9}{text}" for name, text in rows.items() if text)
        return f"wasmkilnd {self.version} is ready\n{body}"


def _audit_tls(audit: Audit, before: TlsMaterial, now: TlsMaterial) -> None:
    """Write whether the certificate or the CAs of callers were replaced."""
    if now.chain_pem != before.chain_pem:
        audit.write("change", what="certificate", not_after=now.not_after["cert"].isoformat())
    if now.client_ca_pem != before.client_ca_pem:
        audit.write("change", what="client_cas", count=len(now.client_cas))


def _listeners(settings: Settings, tls: TlsFiles | None) -> Sequence[server.Listener]:
    """Return the addresses of gRPC, in the order of the settings."""
    found = []
    for setting, address in settings.addresses:
        asks = bool(settings.tls_client_ca_file) and setting != "token_listen"
        admin = setting == "operator_listen" or not settings.operator_listen
        at = server.Listener(str(address), setting, admin)
        if address.path:
            at = replace(at, entrance=Entrance(Transport.UNIX, at.address))
        elif tls:
            entrance = Entrance(Transport.MTLS if asks else Transport.TLS)
            credentials = partial(server_credentials, tls, client_certificates=asks)
            at = replace(at, entrance=entrance, credentials=credentials)
        found += [at] if setting in GRPC else []
    return found


# From the first signal that counts to the last.


async def run(loaded: LoadedSettings, read: Callable[[], LoadedSettings]) -> None:
    """Serve until SIGTERM, SIGINT or Drain, then drain and end.

    ``read`` returns the configuration at each SIGHUP. Raises as ``Daemon.start``.
    """
    preflight.configure_malloc()
    with logs.standard_error(loaded.settings.log_format, loaded.settings.log_level):
        # On a fatal signal, Python prints its stack here and nowhere else.
        faulthandler.enable(file=2)
        await _live(loaded, read)


async def _live(loaded: LoadedSettings, read: Callable[[], LoadedSettings]) -> None:
    shutdown, hung_up = Shutdown(), asyncio.Event()
    daemon = Daemon(loaded, shutdown)
    service = Service(loaded.settings.state_dir, daemon.status, daemon.look)
    stops = 0

    def stop(name: str) -> None:
        nonlocal stops
        stops += 1
        # Drain does not count as a first signal: a container's supervisor sends SIGTERM right
        # after the hook that called Drain, and does not mean to hurry the daemon.
        if stops == 1:
            log.info("stopping", signal=name)
            daemon.drain()
            shutdown.can_be_undone = False
        else:
            log.info("stopping at once", signal=name)
            shutdown.hurry()

    async def reload_at_each_hang_up() -> None:
        while True:
            await hung_up.wait()
            hung_up.clear()
            await service.reload(lambda: daemon.reload(read))

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number.name)
    loop.add_signal_handler(signal.SIGHUP, hung_up.set)
    # Since ``entry``, one that came has waited: the daemon reloads once it has started.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGHUP])
    try:
        if await until(shutdown.asked, daemon.start()):
            shutdown.can_be_undone = not stops
            if is_banner_wanted(loaded.settings):
                await asyncio.to_thread(_show, daemon.banner)
            await service.begin()
            await until(shutdown.final, reload_at_each_hang_up())
    finally:
        notify("STOPPING=1", "STATUS=draining")
        await daemon.stop()
        await service.end()
        # The event loop removes its handlers as it closes, before the interpreter ends: a signal
        # that comes in between would kill a daemon that has stopped cleanly.
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_IGN)


def is_banner_wanted(settings: Settings) -> bool:
    """Return whether somebody reads the banner: not a program that reads JSON."""
    return bool(sys.stdout and (sys.stdout.isatty() or settings.log_format == "text"))


def _show(text: str) -> None:
    """Print the banner; give up after 2 s if nobody reads it."""
    if sys.stdout:  # the daemon may have been started without one
        writer = logs.Writer(sys.stdout.fileno())
        writer.put(lambda _: text, {})
        writer.end(_SHOW_S)
