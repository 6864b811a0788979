"""Where modules and artifacts are kept: memory, files of this host, and what daemons share.

**Tiers.** ``memory`` is an LRU of this process, within ``memory_bytes``. ``host_store``
keeps artifacts as files that processes map, and is passed over while its disk hangs.
The shared tier is a Redis, or an embedded Valkey that the daemon runs itself. ``shared_server``
connects to it once; ``open_shared`` opens what each namespace has, or nothing in its place
(``null_tier``).
``tiered`` makes one cache of all, behind ``ports.Cache``: no call fails because a tier fails.

**Reading.** A call looks in memory, then in the writes that wait, the host store and the shared
tier, and keeps in memory what it finds. Calls for the same entry share one look-up, and one call
waits for them no longer than ``redis_timeout_s`` in all (``wait_budget``), apart from moving large
values and waiting while another daemon compiles. For a caller that accepts zstd, pieces stay as
Redis has them, in memory too, until somebody needs the bytes (``decoded``).

**Writing.** Memory at once, the others after the call (``write_behind``), each from a queue of
``write_queue_bytes``. A full queue drops the oldest artifacts, then the oldest modules. While
Redis is down the writes wait; at shutdown the daemon takes up to 5 s to write them.

**Keys and time to live.** ``value.names`` lists all keys, below ``redis_prefix``. An entry lives
for ``cache_ttl_s``, from its last use on with ``cache_ttl_refresh``. The memory tier has no time
to live: it drops the least recently used entries.

**What is verified.** Every value from the shared tier and every entry of the host store, before
anything else reads it: shape, stamp, key, attestation and the digest of each piece. What fails is
deleted, counted and a miss. A value in memory was verified when it came, and again only when a
key loses its trust (``TieredCache.recheck``).

**When to bump a version.** ``fingerprint.CACHE_FORMAT`` is part of every fingerprint and of the
module's key: raise it when stored values change their format, or when artifacts of equal
settings stop being interchangeable. Old and new daemons then share a Redis without reading each
other's values; the old values expire.

**Metrics.** ``observed`` wraps a tier and counts ``tier_lookups`` and ``tier_stores`` with their
durations; ``values_rejected`` counts what did not verify.

**Pins.** ``pinned_tiers`` keeps what is pinned in all tiers; each tier asks ``Pins.is_pinned``
when it makes room or stores. All pins keep half of a tier at most: what is beyond is *let go*, and
makes room as if nobody had pinned it. ``pin_repair`` puts back what one tier lost, and
``pin_file`` keeps the pins in the state directory.

**Rooms.** ``value``: the bytes under a key. ``redis``: talking to a
server, whatever its kind. ``embedded``: the Valkey that the daemon runs. ``fleet``: what daemons
agree on. A further tier implements ``ports.Tier``, passes ``tests/contract/test_tier.py`` and is
put into ``tiered``.
"""
