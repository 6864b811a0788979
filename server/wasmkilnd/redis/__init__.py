"""Redis as daemons use it: the servers, the way to them, and what daemons agree on there.

| file | what it is |
|---|---|
| ``servers`` | each kind of Redis: one server, Sentinel, Cluster, REST |
| ``link`` | commands with a time-out, behind a breaker |
| ``embedded`` | the one server of all namespaces, and the Valkey that daemons run |
| ``fleet`` | who compiles an artifact |
| ``records`` | texts that daemons sign: strikes against modules, lists of pins, counts of uses |
| ``library`` | loads redis-py without what the daemon does not use |

The tier of modules and artifacts in Redis is ``cache.redis_store``; ``wasmkilnd.pins`` and
``wasmkilnd.usage`` keep their records here. Nothing depends on Redis: without it each daemon
serves alone.
"""
