"""What the daemons on one Redis agree on: who compiles an artifact, and which modules are harmful.

Redis decides here, but nothing depends on it: when it does not answer, or when a value has no
valid stamp, a daemon goes on alone. At worst an artifact is compiled twice, or each daemon
learns for itself that a module breaks its compiler.

| file | what |
|---|---|
| ``claim`` | one flight's claim to compile an artifact: take, wait for others, end |
| ``null_fleet`` | what a daemon has instead of a fleet |
| ``lease_store`` | the leases in Redis: look, take, renew, release |
| ``lease_commands`` | the Redis commands and scripts on a lease's key |
| ``lease`` | the value of a lease: holder, heartbeat, state, stamp |
| ``holders`` | which holders are alive, and which leases are old or copied |
| ``strike_store`` | strikes against modules in Redis, and which of them were released |
| ``strike_record`` | the value of a strike: stamp and JSON |

**Leases** (``lease:{<module>}:<fingerprint>``, TTL ``compile_lease_s``, renewed three times as
often). A daemon takes the lease when a worker is free. Others wait, look every 10 to 250 ms, and
fetch the artifact once it is stored. A call waits for four holders at most, leaves the compile to
others four times at most, and all of that within ``compile_timeout_s + compile_lease_s``; then it
compiles. Jobs that still wait for a worker look 50 times a second at most, all together. A lease
without a valid stamp, without renewals, or older than a call waits is replaced. The clocks of
daemons may differ by a minute; beyond that, leases save less and nothing else breaks.

**Strikes** (``strike:{<module>}:<fingerprint>``, TTL the quarantine and a day). ``quarantine.py``
decides what they mean. A released strike leaves a mark (``value.marks``), so a copy of its record
that someone writes back has no effect.

**Formats.** A lease and a strike carry no version: v0.1.0 reads and writes the same keys, and
what it cannot read it ignores or replaces. Add a field only where v0.1.0 skips it, as
``strike_record`` and ``lease`` describe; ``tests/formats`` holds samples of both versions.

**Metrics.** ``fleet_turns``, by outcome: ``taken``, ``seized``, ``made``, ``failed``, ``late``,
``alone`` (``claim.Outcome``). Settings: ``compile_lease_s`` (0 turns leases off), ``quarantine_s``.
"""
