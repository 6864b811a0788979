"""Namespaces: what serves the callers of each, so that none reaches what another has.

Isolation is by construction. Each namespace has an object graph of its own, and no object of one
graph holds a reference to one of another. Whoever knows a digest or a fingerprint of another
tenant gets nothing by it. The graphs share what holds no tenant's data: the engines' workers and
their queue, the admission of bytes under way, the connection to Redis, and the memory and disk
that are divided among them.

| file | what it holds |
|---|---|
| ``tenants`` | ``Tenants``: a graph for each namespace, opened as the policy names it |
| ``graph`` | ``OpenTenant``: caches, quarantine, verdicts and services of one namespace |
| ``shares`` | how many bytes of memory and of the host store each namespace has |
| ``recorders`` | counts for the whole daemon, and for the namespace alone |

**Where things are.** The default namespace ("") has the names and paths of a daemon without
namespaces. The keys of another begin with ``<redis_prefix>ns:<namespace>:``; its host store is
``<host_store_dir>/ns/<namespace>/``, a store with an index and a limit of its own. Both names are
part of the format of stored values.

**Promises.** A call gets what its own namespace has uploaded or compiled, and its own namespace's
evictions, quarantine and counters. Flights are not joined across namespaces: two tenants that
compile one module at a time pay for it twice. Whatever one tenant stores, nothing of another is
evicted for it. What remains is what sharing workers means: a busy queue is busy for all, and the
quotas bound how busy one tenant can make it.

Opening a namespace waits for nothing, so that a policy is in force from one step of the event loop
to the next. A namespace that is named no more is closed when its calls have ended; its values stay
in Redis and on the disk until they expire or make room.
"""
