"""Child: the code that runs inside an engine's own interpreter, CPython 3.9 or newer.

It imports the standard library and its one engine, and nothing of the daemon's: an engine's
environment has no other package, and wasmer's interpreter is older than the daemon's. The daemon
starts ``job.main``.

- ``job``: a worker imports the engine, confines itself, tries to break out, and reports READY.
  Then it forks a job for each RUN frame. It stays single-threaded, since only then is forking
  safe, and never sees a module. A job is a process for one order; it is sealed before it reads
  the first byte of a module.
- ``sandbox``: what confines a worker and its jobs, with their limits; ``seccomp`` has the system
  calls that they may make.
- ``frames``: the format of both sockets, with the most that a frame may hold.
- ``engine``: the protocol that each engine implements; ``wasmer_engine`` and ``wasmtime_engine``
  are the engines.
- ``describe``: asks an engine what it can do, by trying: each target, CPU level, setting and
  proposal in a process of its own, since engines abort for what they lack; and whether it works.
  ``cpu`` has the levels of CPU features, ``section`` reads what wasmtime says of itself.

The daemon's side of the same sockets is ``engines.process``. A new field in a frame needs both
sides; they are always of the same release, so frames have no version.

To add an engine: see ``engine``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator


def rows(table: str) -> Iterator[list[str]]:
    """Return the words of each line of a table beside this file; what follows a # is for people."""
    with open(os.path.join(__path__[0], table), encoding="ascii") as file:
        for line in file:
            if words := line.partition("#")[0].split():
                yield words
