"""Redis as daemons use it: the way to the servers, and what daemons agree on there.

| file | what it is |
|---|---|
| ``servers`` | each kind of Redis: one server, Sentinel, Cluster, REST; the link to it |
| ``embedded`` | the one server of all namespaces, and the Valkey that daemons run |
| ``fleet`` | who compiles an artifact |
| ``records`` | texts that daemons sign: strikes against modules, lists of pins, counts of uses |

The tier of modules and artifacts in Redis is ``cache.redis_store``; ``wasmkilnd.pins`` and
``wasmkilnd.usage`` keep their records here. Nothing depends on Redis: without it each daemon
serves alone.

redis-py is loaded here, without OpenTelemetry. Wherever that is installed, redis-py loads it for
metrics of its own, which the daemon does not use: a quarter of all that the start of the daemon
loads, whether or not traces are on.
"""

import sys

_is_known = "opentelemetry" in sys.modules
# None keeps Python from importing it.
sys.modules.setdefault("opentelemetry", None)  # type: ignore[arg-type]

import redis.asyncio  # noqa: E402, F401

if not _is_known:
    del sys.modules["opentelemetry"]
