"""What grows with the number of entries, and what a hit costs with many callers.

Parts, each of which yields rows for the table of ``python -m bench``:

- ``operations``: get, put and evict of each tier alone, with 10^3 and 10^6 entries. One process
  (``probe``) holds one tier (``stores``, ``host_files``) with so many ``entries``, small made-up
  artifacts; the processes of one tier take turns, so that other work disturbs all alike.
- ``whole``: daemons with 10^3 and 3·10^4 artifacts in memory, which they got from Redis, one call
  each: the time of a call, and the memory that a daemon has beside what its tier counts.
- ``evict``: AdminService.Evict of one module, with 10^3 and 10^5 values in Redis.
- ``start``: how long a daemon with up to 100,000 artifacts in its host store takes to start.
- ``callers``: hits per second, and CPU time per hit, with 1, 8 and 64 callers (``load``), beside a
  bare grpcio server that sends the same bytes.

Formats: orders and answers of the programs are lines of JSON. Nothing here is kept: folders and
servers are made for a measurement and removed after it.
"""
