"""What the status page is drawn from: /status.json.

``stats`` is the answer of Stats in protobuf's JSON, ``quarantine`` and ``engines`` are what
ListQuarantine and GetCapabilities say, without what may name a path, a command or a module's
contents: the page may be open to everybody on this machine.
"""

from __future__ import annotations

import json
import platform
import time
from dataclasses import asdict

from google.protobuf.json_format import MessageToDict

from wasmkilnd.lifecycle.engines import Serving
from wasmkilnd.lifecycle.readiness import Readiness
from wasmkilnd.model import without_paths
from wasmkilnd.rpc.messages import stats_response
from wasmkilnd.telemetry.metrics import Metrics
from wasmkilnd.tenants import Tenants

_QUARANTINED = 50
"""How many modules in quarantine are named."""


def status_json(
    metrics: Metrics, readiness: Readiness, started: Serving, tenants: Tenants
) -> bytes:
    """Return how the daemon is now."""
    (ready, why), now = readiness.now(), metrics.gauges.read()
    strikes = sorted(tenants.known_in_quarantine(), key=lambda strike: -strike.left_s)
    registry, isolation = started.registry, started.isolation
    stats = MessageToDict(stats_response(metrics), preserving_proto_field_name=True)
    stats["redis_detail"] = without_paths(now.remote.detail)
    told = {
        "host": platform.node(),
        "time_s": time.time(),
        "ready": ready,
        # Causes, which follow, may name a path.
        "state": why.partition(";")[0],
        "stats": stats,
        "served": {origin: count for (origin,), count in metrics.counts["served"].items()},
        "calls": now.traffic.calls,
        "namespaces": len(tenants.opened),
        "redis_off": now.remote.switched_off,
        "host_store": asdict(now.host),
        "tls_failures": now.tls.failures,
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
        "unserved": {one.id: without_paths(one.cause) for one in started.unserved},
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
