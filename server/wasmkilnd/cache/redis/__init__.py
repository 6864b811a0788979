"""The shared tier on Redis: talk to a server of any kind, and store values that are verified.

Nothing that the server returns is trusted. Values are verified before use, replies are bounded
before they are parsed, and the error texts of a server never reach a log or a caller.

| layer | files |
|---|---|
| the tier behind ``ports.Tier`` | ``tier``; ``lookups``, ``rejections``, ``ttl_refresh`` |
| values | ``value_reader``, ``value_writer``: the only code that reads and writes them |
| many keys by their heads | ``scan``; ``sweep`` (eviction, kinds of modules) |
| marks of evictions | ``mark_store`` |
| pins | ``pins``: the lists that daemons share, and values without a time to live |
| commands, time-outs | ``guarded`` (``GuardedRedis``), ``breaker``, ``errors`` |
| kinds of servers | ``server`` (one server), ``sentinel``, ``cluster`` (``cluster_nodes``, |
| | ``cluster_map``, ``concurrency``), ``upstash_rest`` |
| connections | ``connect`` (from a URL to a server), ``replies`` (limits on what arrives) |

**Reading a value** takes one round trip for the head, the first piece and the marks, then one
for each eight further pieces, while the previous ones are unpacked. For a caller that accepts
zstd, pieces are checked and not unpacked: they become the artifact's frames. **Writing** stores the
further pieces first and the value last, so no reader finds a value without its pieces. Pieces
live an hour longer than their value.

**When the server fails.** Every command has a time-out, ``redis_timeout_s``. A write, whose steps
each have that time-out, has 10 s in all. A refused connection, garbage, or a time-out, unless
another command was answered in its last half, opens the breaker: from then on calls fail at once
with TierUnavailable, and a task asks the server again, after 0.25 s at first and every 10 s at
last. A key of another type raises WrongType; one dead node of a cluster raises PartUnavailable.
Both are TierUnavailable, and neither opens the breaker. A server that refuses writes (full,
read-only) stays in use for reads, and readiness and Stats report the refusal.

**Keys and formats** belong to ``cache.value``. Other clients may use the same server: only keys
of the shapes in ``value.names`` are ever deleted.

**A new kind of server** implements ``server.RedisServer``, is chosen in ``connect`` by the URL,
and is added to ``tests/servers/deployments.py``, whose suites then run against it.
"""

from wasmkilnd.cache.redis import library as library
