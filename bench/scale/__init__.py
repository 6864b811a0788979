"""What grows with the number of entries, and what a hit costs with many callers.

Parts, each of which yields rows for the table of ``python -m bench``:

- ``operations``: get, put and evict of each tier alone, with 10^3 to 10^6 entries. One process
  (``probe``) holds one tier with so many ``entries``, small made-up artifacts; the processes of
  one tier take turns, so that other work on the machine disturbs all alike.
- ``filled``: whole daemons with 10^3 and 10^6 artifacts in memory: the time of a call, and the
  memory that the daemon has beside what the settings let it fill.
- ``start``: how long a daemon with 100,000 artifacts in its host store takes to start.
- ``callers``: hits per second, and CPU time per hit, with 1, 8 and 64 callers, beside a bare
  grpcio server that sends the same bytes.

Formats: orders and answers of the programs are lines of JSON. Nothing here is kept: folders and
servers are made for a measurement and removed after it.

How far it goes: ``--only scale`` measures all; a whole run leaves the sizes between least and
most out; ``--quick`` stops at 10^4.
"""
