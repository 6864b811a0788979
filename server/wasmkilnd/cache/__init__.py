"""Where modules and artifacts are kept: memory, files of this host, and what daemons share.

``cache`` is all that services see: the tiers of one namespace as one, and what is written after a
call. No call fails because a tier fails. ``tenants.py`` builds one for each namespace.

| file | what it is |
|---|---|
| ``memory`` | an LRU of this process, within ``memory_bytes``, and what decodes it |
| ``host_store`` | files that processes of this host map; passed over while its disk hangs |
| ``redis_store`` | artifacts and modules in the Redis that daemons share; lists all keys |
| ``writes`` | what is written to the tiers below memory, after the call |
| ``value`` | the bytes under a key, and how they are checked |
| ``object_store`` | the same in a bucket, or in a directory that hosts share |
| ``shared_tier`` | what the tiers that daemons share have in common |

The way to Redis, and what else daemons keep there, is ``wasmkilnd.redis``.
``wasmkilnd.pins`` says what no tier evicts, ``wasmkilnd.usage`` how often each artifact is served.

**Waiting.** A call waits for all tiers below memory no longer than ``redis_timeout_s`` together,
and ``object_store_timeout_s`` more if there is such a store (``waiting.WaitBudget``), apart from
moving large values and waiting while another daemon compiles. Calls for the same entry share one
look-up.

**Trust.** Every value that daemons share and every entry of the host store is verified before
anything else reads it. What fails is counted and a miss. Damaged values and those of revoked
keys are deleted. A value in memory was verified
when it came, and again only when a key loses its trust (``Cache.recheck``).
"""
