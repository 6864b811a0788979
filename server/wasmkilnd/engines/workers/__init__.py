"""Workers: the daemon's side of the processes that compile.

A worker is a long-lived process with one engine imported (its own code is ``engines.child``). For
each order it forks a job, which is confined, reads the module from a socket of its own, sends the
result, and ends. No worker ever holds a module, so nothing of one caller's module is left when
the next one comes. One compile, from top to bottom:

- ``pool`` decides which job gets the next free worker, and runs it. A job that
  loses its worker runs once more on another; after the second loss it is COMPILER_CRASHED.
- ``process`` gives the job to its worker, enforces the wall clock, and waits for the end. Past
  the time limit it kills the job's process group; the worker goes on.
- ``job_protocol`` sends the order, packs the artifact as it arrives, and receives the result. A
  job that breaks the protocol is killed. Nothing that a job sends is trusted: frames are bounded,
  each type may come once and in order.
- ``job_orders`` builds the orders: compile, validate, call, describe, nothing.

Around it:

- ``spawn`` starts a worker process with an environment that has nothing of the daemon's.
- ``keeper`` replaces workers that end, with a delay that doubles while they die young.
- ``isolation`` admits a worker only if its confinement holds as the setting ``isolation``
  demands; the worker tried to break out before its first job, and reports how that went.
- ``job_users`` finds a user for each worker that no other process has, if the daemon is root.

A worker is never reused after something unexpected: it is killed and replaced.
"""
