"""Scheduling: which job gets the next free worker of an engine, and which jobs are refused.

Each engine has one ``Dispatch`` for the workers of its pool. There are three cases for a job that
asks for a worker:

1. A worker is idle: the job starts at once.
2. None is idle, and the queue has room: the job waits. Callers take turns; each has a line of its
   own, so a caller with a thousand modules does not hold up a caller with one. Background work
   (warming the cache) moves only while no caller waits. A job that several callers want stands in
   the line of each.
3. The queue is full: the last job of the longest line is refused with COMPILE_QUEUE_FULL, which
   may be the new one. The refusal tells when to retry.

A job that lost its worker goes before all others, once. Second opinions wait like other jobs, but
occupy at most half of the workers. What becomes of a job that all callers have left is the
setting ``abandoned_compiles``: it is finished, killed, or ended when another job needs its
worker.

- ``dispatch``: idle workers, waiting jobs and running jobs, on one event loop.
- ``fair_queue``: the lines and their turns, bounded by ``queue_length`` and ``queue_bytes``; a
  data structure without clock or event loop.
- ``ticket``: one job's claim to a worker.
- ``estimate``: how long jobs take and waits last, learnt from recent jobs; for RetryInfo, and to
  refuse a call whose deadline would pass in the queue.
"""
