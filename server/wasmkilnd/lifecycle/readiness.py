"""Whether the daemon serves calls, and if not, why: for /readyz, gRPC health, log and watchdog.

Also /status.json, which the status page is drawn from: ``stats`` is the answer of Stats in
protobuf's JSON, ``quarantine`` and ``engines`` are what ListQuarantine and GetCapabilities say,
without what may name a path, a command or a module's contents: the page may be open to everybody on
this machine.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import starmap

import structlog
from google.protobuf.json_format import MessageToDict

from wasmkilnd.lifecycle.engines import Serving
from wasmkilnd.model import RemoteStatus, for_callers
from wasmkilnd.rpc.messages import job, stats_response
from wasmkilnd.telemetry.metrics import Metrics
from wasmkilnd.tenants import Tenants

log = structlog.get_logger("wasmkilnd")

# A worker that has not started after a minute is given up, and its jobs learn the cause.
STUCK_S = 150.0
# How many modules in quarantine, and jobs, the status page names.
_QUARANTINED = _JOBS = 50


class Readiness:
    """Follows the engines: the daemon serves calls while at least one of them works.

    A shared tier that is down makes no call fail: it is mentioned, and the daemon stays ready. For
    one event loop.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._serving: Serving | None = None
        self._shared: Callable[[], Sequence[RemoteStatus]]
        self._phase = "starting"
        self._clock, self._got_on_s, self._reported = clock, clock(), True

    def started(self, serving: Serving, shared: Callable[[], Sequence[RemoteStatus]]) -> None:
        """Let the engines decide from now on, unless the daemon already drains.

        ``shared`` returns how Redis and the object store are, and what is wrong, if anything.
        """
        self._serving, self._shared = serving, shared
        if self._phase == "starting":
            self._phase = ""
        self._reported, _ = self.now()

    def draining(self, yes: bool) -> None:
        """Be not ready, whatever the engines do, until this is taken back."""
        self._phase = "draining" if yes else ""

    def now(self) -> tuple[bool, str]:
        """Return whether the daemon serves calls, and a sentence on what is wrong, if anything."""
        if self._phase or not self._serving:
            return False, self._phase
        engines, unserved = self._serving.registry.served, self._serving.unserved
        wrong = [f"{one.id} is not served: {for_callers(one.cause)}" for one in unserved]
        idle = {engine.id: engine.pool.why_no_worker for engine in engines}
        wrong += [f"{name} has no worker: {for_callers(why)}" for name, why in idle.items() if why]
        ready = len(wrong) < len(engines) + len(unserved)
        for what, tier in zip(("Redis", "the object store"), self._shared(), strict=True):
            if tier.detail and not tier.switched_off:
                wrong.append(for_callers(tier.detail, f"{what} is down"))
        return ready, "; ".join(["ready" if ready else "no engine works", *wrong])

    def look(self, report: Callable[[bool], None]) -> bool:
        """Report a change since the last look, and return whether the daemon gets on.

        While jobs wait, workers are busy, or the engine says why it has none, or other engines'
        jobs have all memory. Where none of that holds for minutes, what hands out workers has died,
        and only a restart helps.
        """
        ready, why = self.now()
        if ready != self._reported and not self._phase:
            self._reported = ready
            if ready:
                log.info("serving again", detail=why)
            else:
                log.error("not serving", cause=why)
            report(ready)
        pools = [each.pool for each in self._serving.registry.served] if self._serving else []
        waiting = [each for each in pools if each.waiting]
        if all(each.busy or each.why_no_worker or each.awaits_memory for each in waiting):
            self._got_on_s = self._clock()
        return self._clock() - self._got_on_s < STUCK_S


def status_json(
    metrics: Metrics, readiness: Readiness, started: Serving, tenants: Tenants, open_fleet: str
) -> bytes:
    """Return how the daemon is now."""
    (ready, why), now = readiness.now(), metrics.gauges.read()
    # Those that run first.
    jobs = sorted(tenants.jobs(""), key=lambda each: each[2].worker is None)
    strikes = sorted(tenants.known_in_quarantine(), key=lambda strike: -strike.left_s)
    registry, isolation = started.registry, started.isolation
    shared = {"redis": now.remote, "object_store": now.objects, "host_store": now.host}
    stats = MessageToDict(stats_response(metrics), preserving_proto_field_name=True)
    stats["redis_detail"] = for_callers(now.remote.detail, "")
    stats["object_store_detail"] = for_callers(now.objects.detail, "")
    told = {
        "host": platform.node(),
        "time_s": time.time(),
        "ready": ready,
        # Causes, which follow, may name a path.
        "state": why.partition(";")[0],
        "open_fleet": open_fleet,
        "stats": stats,
        "served": {origin: count for (origin,), count in metrics.counts["served"].items()},
        "calls": now.traffic.calls,
        "namespaces": len(tenants.opened),
        "shared": {
            tier: {**asdict(each), "off": each.switched_off, "detail": for_callers(each.detail, "")}
            for tier, each in shared.items()
        },
        "tls_failures": now.tls_failures,
        "failed_reloads": [
            what for (what,), good in metrics.counts["last_reload_successful"].items() if not good
        ],
        "expected_wait_s": max((each.expected_wait_s for each in now.engines.values()), default=0),
        "isolation": {"required": isolation.required, "summary": isolation.summary},
        "engines": [
            {
                "id": engine.id,
                "default": engine.id == registry.default,
                "confined": isolation.of(engine.id).holds,
                "gaps": {gap.name: gap.state.value for gap in isolation.of(engine.id).gaps},
                "advisories": [row.text for row in started.advisories.current.of(engine)],
            }
            for engine in registry.served
        ],
        "unserved": {one.id: for_callers(one.cause, "") for one in started.unserved},
        "jobs": [
            # Who calls is for operators.
            {**MessageToDict(each, preserving_proto_field_name=True), "callers": len(each.callers)}
            for each in starmap(job, jobs[:_JOBS])
        ],
        "more_jobs": len(jobs[_JOBS:]),
        "quarantine": [
            {
                "module": strike.key.module_sha256,
                "engine": strike.engine_id,
                "reason": strike.reason,
                "strikes": strike.count,
                "left_s": strike.left_s,
            }
            for strike in strikes[:_QUARANTINED]
        ],
        "recent": [each._asdict() for each in list(metrics.recent)],
    }
    return json.dumps(told, separators=(",", ":")).encode()
