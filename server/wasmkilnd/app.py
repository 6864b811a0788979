"""The composition root: build every part, start them, and end them in order."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import structlog

from wasmkilnd import options
from wasmkilnd.access.guard import Access, AccessGuard
from wasmkilnd.access.tls import Certificates, TlsFiles, server_credentials
from wasmkilnd.cache.embedded import EmbeddedServer, SharedServer
from wasmkilnd.cache.host_store import HostDirectory
from wasmkilnd.cache.redis_servers import AccessUnusable as RedisUnusable
from wasmkilnd.engines.registry import EngineRegistry
from wasmkilnd.lifecycle import engines, preflight, serve_namespaces
from wasmkilnd.lifecycle import reload as reloads
from wasmkilnd.lifecycle.readiness import Readiness
from wasmkilnd.lifecycle.shutdown import Shutdown, until
from wasmkilnd.lifecycle.status_page import status_json
from wasmkilnd.lifecycle.systemd import long_step
from wasmkilnd.model import DrainState, Entrance, Reloadable, Transport
from wasmkilnd.network import SocketAccess
from wasmkilnd.quota import FairShare, Quotas
from wasmkilnd.rpc import server
from wasmkilnd.rpc.admin_service import AdminServicer
from wasmkilnd.rpc.calls import Entry
from wasmkilnd.rpc.messages import Capabilities, stats_response
from wasmkilnd.rpc.module_service import ModuleServicer
from wasmkilnd.rpc.traffic import MESSAGE_OVERHEAD_BYTES, Traffic, message_bytes_for
from wasmkilnd.settings import (
    NONE,
    Address,
    Settings,
    group_id,
    limits_of,
    written,
)
from wasmkilnd.settings import (
    traffic_limits as traffic_limits_of,
)
from wasmkilnd.settings_loader import LoadedSettings
from wasmkilnd.signing.keys import open_keys
from wasmkilnd.signing.sealer import Sealer
from wasmkilnd.telemetry.admin import AddressInUse, AdminServer
from wasmkilnd.telemetry.audit import Audit, CannotAudit, audit_change
from wasmkilnd.telemetry.logs import dropped_lines
from wasmkilnd.telemetry.metrics import Metrics, TlsStatus
from wasmkilnd.telemetry.tracing import open_tracing
from wasmkilnd.tenants import Common, Tenants

# Calls at a time on one connection.
_MAX_STREAMS = 256
_FLUSH_S = 5.0

log = structlog.get_logger("wasmkilnd")


class Daemon:
    """All parts of one daemon."""

    def __init__(self, loaded: LoadedSettings, shutdown: Shutdown) -> None:
        self.settings = Reloadable(loaded.settings)
        self.version = version("wasmkiln")
        self.banner = ""
        self._shutdown = shutdown
        self._metrics = Metrics(self.version, server.METHODS)
        self._readiness = Readiness()
        self._on_stop = AsyncExitStack()
        self._rpc: server.RpcServer | None = None
        self._tenants: Tenants | None = None

    async def start(self) -> None:
        """Build and start every part; serve last, once all else works.

        Raises CannotStart, AccessUnusable, KeysUnusable and TracingUnusable.
        """
        try:
            await self._start(self.settings.current)
        except (AddressInUse, CannotAudit, server.CannotListen, RedisUnusable) as failure:
            raise preflight.CannotStart(str(failure)) from None

    async def _start(self, now: Settings) -> None:
        settings, metrics = self.settings, self._metrics
        readiness, on_stop = self._readiness, self._on_stop
        limits = Reloadable(limits_of(now))
        traffic_limits = Reloadable(traffic_limits_of(now))
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

        def client_cas() -> Certificates:
            return tls.current.client_cas if tls else ()

        access = await asyncio.to_thread(reloads.OpenAccess, settings, audit, client_cas)
        keys = await asyncio.to_thread(open_keys, now)
        sealer = Sealer(keys, self.version, max_age_s=now.value_max_age_s)
        about: dict[str, Any] = {"key_id": keys.own_id, "trusted_keys": len(keys.trusted)}
        log.info("signing artifacts", **about)
        audit.write("start", version=self.version, **about)

        # The engines.
        found = await engines.find_engines(now)
        connections = preflight.connections_per_address(now, len(found))
        serving = engines.Serving(settings, limits, metrics, audit, self._in_the_background)
        await serving.start(found, on_stop)
        served = serving.registry

        # The tiers, and what serves each namespace.
        if why := serve_namespaces.refusal(now, access.policy.current.namespaces):
            raise preflight.CannotStart(why)
        embedded = EmbeddedServer(now.state_dir, now.embedded_redis_bytes)
        url, access_of_redis = now.redis_url.get_secret_value(), options.redis_access(now)
        shared = SharedServer(url, access_of_redis, embedded, timeout_s=now.redis_timeout_s)
        on_stop.push_async_callback(self._unless_hurried, embedded.stop)
        on_stop.push_async_callback(shared.close)
        async with long_step("opening the cache", at_most_s=300.0):
            await shared.start()
            common = Common(
                *(settings, metrics, shared, HostDirectory(options.host_options(now)), served),
                served_engines=partial(engines.served_engines, served),
                held=FairShare(lambda: 2 * limits.current.queue_bytes),
                # So that most workers stay free for callers.
                slots=asyncio.Semaphore(max(1, now.effective_workers // 2)),
                sealer=sealer,
            )
            tenants = self._tenants = Tenants(common, access.policy.current.namespaces)
            on_stop.push_async_callback(tenants.close)
            on_stop.push_async_callback(self._unless_hurried, tenants.flush, _FLUSH_S)
            await tenants.start()

        # The calls.
        quotas = Quotas(lambda: access.policy.current.quotas)
        traffic = Traffic(traffic_limits, message_bytes_for(now.max_module_bytes))

        def stats(namespace: str) -> Any:
            counted, spent = tenants.metrics_of(namespace), quotas.readings(namespace)
            return stats_response(counted, namespace, spent, served.names)

        def capabilities() -> Capabilities:
            return serving.capabilities(self.version, limits.current)

        rpc = server.RpcServer(
            ModuleServicer(tenants.of, stats, capabilities),
            AdminServicer(tenants.of, self.drain),
            Entry(traffic, metrics, access.guard, audit, quotas.of, tracing),
            connections=connections,
            streams=_MAX_STREAMS,
        )
        gauges = metrics.gauges
        gauges.ready = lambda: readiness.now()[0]
        gauges.log_lines_dropped, gauges.quotas = dropped_lines, quotas.by_kind
        gauges.traffic = traffic.usage

        if tls:
            gauges.tls = partial(_tls_status, tls)
            _audit_tls(audit, tls)
        admin_address = ""
        if now.admin_listen != NONE:
            admin = AdminServer(
                now.admin_listen,
                metrics.registry,
                partial(status_json, metrics, readiness, serving, tenants),
                readiness.now,
                access.guard.admit,
                audit,
                (lambda: tls.current.http_context) if tls else None,
                checks_host=checks_host(now),
            )
            admin_address = await admin.start()
            on_stop.push_async_callback(admin.stop)
        self._rpc = rpc
        on_stop.push_async_callback(rpc.stop)
        on_stop.push_async_callback(self._finish, rpc, tenants, served)

        # What changes while it runs.
        self._serving = serving
        self._reloader = reloads.Reloader(
            *(settings, limits, traffic_limits, sealer, tenants, audit, metrics),
            largest_module_bytes=traffic.message_bytes - MESSAGE_OVERHEAD_BYTES,
            refusal=lambda new: options.limits_too_low(new) or engines.refusal(new),
            parts={
                **({"TLS": tls.prepare} if tls else {}),
                "access": access.prepare,
                "namespaces": serve_namespaces.prepare_namespaces(tenants, access),
                "audit": lambda new: audit.prepare(new.audit_file),
                "pins": lambda _: tenants.look_at_pins,
                "engines": serving.prepare,
            },
        )
        self._in_the_background(access.guard.follow_keys())
        self._follow_files(seen, access.guard)
        serving.follow(tenants)

        # What listens.
        group = group_id(now.socket_group)
        sockets = SocketAccess(0o600 if group is None else 0o660, group)
        wanted = _listeners(now, tls)
        bound = await rpc.start(wanted, sockets)
        if path := Address.parse(admin_address).path if admin_address else "":
            server.open_socket(admin_address, Path(path), sockets)
        readiness.started(lambda: served.served, lambda: serving.unserved, tenants.remote_status)
        rpc.set_health(readiness.now()[0])
        # All that is there now stays: a full collection of it would make every caller wait.
        gc.collect()
        gc.freeze()
        gc.enable()
        serves: dict[str, list[str]] = {}
        for listener, address in zip(wanted, bound, strict=True):
            serves.setdefault(listener.setting, []).append(address)
        about_it = now, self.version, serves, admin_address, serving, tenants
        self.banner = _banner(*about_it, asks=access.guard.access.on)
        ids = [engine.id for engine in served.served]
        log.info("ready", addresses=bound, metrics=admin_address, engines=ids)

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
        self._readiness.draining()
        if not (self._rpc and self._tenants):
            return DrainState(0.0, 0, 0)  # It was still starting.
        self._rpc.refuse_calls()
        state = DrainState(self._shutdown.left_s, self._rpc.running_calls, self._tenants.flights)
        if first:
            log.info("draining", **asdict(state))
        return state

    async def stop(self) -> None:
        """End in phases: refuse new calls, finish, give up, flush, close."""
        self.drain()
        await self._on_stop.aclose()
        log.info("stopped")

    async def _finish(
        self, rpc: server.RpcServer, tenants: Tenants, served: EngineRegistry
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
        await served.close()

    def _in_the_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)

        async def end() -> None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        self._on_stop.push_async_callback(end)

    def _follow_files(self, seen: reloads.Stamps, guard: AccessGuard) -> None:
        loop, stop = asyncio.get_running_loop(), threading.Event()
        self._on_stop.callback(stop.set)
        about = (
            lambda: reloads.watched_files(self.settings.current, guard.access),
            seen,
            lambda: asyncio.run_coroutine_threadsafe(self._reloader.refresh(), loop).result(),
            stop,
        )
        threading.Thread(target=reloads.follow, args=about, name="files", daemon=True).start()

    async def _unless_hurried(self, work: Callable[..., Any], *arguments: Any) -> None:
        await until(self._shutdown.hurried, work(*arguments))


def _tls_status(files: TlsFiles) -> TlsStatus:
    """Return when the files expire, for the metrics."""
    current = files.current
    expiry = {"cert": current.not_after.timestamp()}
    if current.client_ca_not_after:
        expiry["client_ca"] = current.client_ca_not_after.timestamp()
    return TlsStatus(expiry, files.failures)


def _audit_tls(audit: Audit, files: TlsFiles) -> None:
    """Write from now on when the certificate or the CAs of callers are replaced."""
    before = files.current

    def tell() -> None:
        nonlocal before
        now = files.current
        if now.chain_pem != before.chain_pem:
            audit_change(audit, "certificate", not_after=now.not_after.isoformat())
        if now.client_ca_pem != before.client_ca_pem:
            audit_change(audit, "client_cas", count=len(now.client_cas))
        before = now

    files.on_change(tell)


def checks_host(settings: Settings) -> bool:
    """Return whether a website could have browsers ask the admin server under its own name.

    TLS names the server, and a port that other machines reach can be asked without a browser.
    """
    address = Address.parse(settings.admin_listen)
    return address.local and not address.path and not settings.tls_cert_file


def _listeners(settings: Settings, tls: TlsFiles | None) -> Sequence[server.Listener]:
    """Return the addresses of gRPC, in the order of the settings."""
    found = []
    for setting in ("listen", "token_listen", "operator_listen"):
        asks = bool(settings.tls_client_ca_file) and setting != "token_listen"
        admin = setting == "operator_listen" or not settings.operator_listen
        for address in getattr(settings, setting):
            at = server.Listener(address, setting, admin)
            if address.startswith("unix:"):
                at = replace(at, entrance=Entrance(Transport.UNIX, address))
            elif tls:
                entrance = Entrance(Transport.MTLS if asks else Transport.TLS)
                credentials = partial(server_credentials, tls, client_certificates=asks)
                at = replace(at, entrance=entrance, credentials=credentials)
            found.append(at)
    return found


def _banner(
    settings: Settings,
    version: str,
    serves: Mapping[str, Sequence[str]],
    admin: str,
    serving: engines.Serving,
    tenants: Tenants,
    *,
    asks: bool,
) -> str:
    """Return the addresses, who may call, engines, tiers, and a command for another terminal."""
    address, trouble = serves["listen"][0], tenants.default.host.trouble
    found = serving.registry
    page = f"http{'s' if settings.tls_cert_file else ''}://{admin}/ in a browser"
    host = f"host store, {written('host_store_bytes', settings.effective_host_store_bytes)}"
    host = host if settings.effective_host_store_bytes else "no host store"
    host = f"host store unusable: {trouble}" if trouble else host
    served = [
        f"{engine.id} ({engine.capabilities.interpreter},"
        f" {engine.pool.size} worker{'s' if engine.pool.size > 1 else ''}"
        f"{', default' if engine.id == found.default else ''})"
        for engine in found.served
    ]
    served = served or ["none works: the daemon serves no call"]
    served += [f"{one.id} is not served: {one.cause}" for one in serving.unserved]
    flag = "" if address == "127.0.0.1:50051" else f"--address {address} "
    rows = {
        "serving": ", ".join(serves["listen"]),
        "tokens": ", ".join(serves.get("token_listen", ())),
        "operator": ", ".join(serves.get("operator_listen", ())),
        "callers": "need an identity" if asks else "everybody may do everything",
        "metrics": admin and f"{admin}/metrics, /healthz, /readyz",
        "status": admin and not admin.startswith("unix:") and page,
        "engines": f"\n{'':11}".join(served),
        "jobs": found.served and serving.isolation.summary,
        "tiers": f"memory, {written('memory_bytes', settings.memory_bytes)}; {host};"
        f" {tenants.server.description}",
        "state": settings.state_dir,
        "try": f"wasmkiln {flag}compile MODULE.wasm -o MODULE.cwasm",
    }
    body = "\n".join(f"  {name:<9}{text}" for name, text in rows.items() if text)
    return f"wasmkilnd {version} is ready\n{body}"
