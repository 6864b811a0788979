"""Engines: each installed version runs in its own interpreter, and the daemon imports none.

An engine (wasmer, wasmtime) lives in a virtual environment of its own, so several versions are
served side by side. For each, a pool of worker processes has the engine imported. A worker forks
a job for each module; the job is confined, does its one piece of work, and ends.

| part | what it does |
|---|---|
| ``registry`` | what is served and what a request means; compiles, and says what a refusal means |
| ``pool`` | which job gets the next free worker; replaces workers that end |
| ``memory`` | how much memory each job gets |
| ``process`` | one worker process, seen from the daemon |
| ``job`` | what a job is told, and what it tells |
| ``users`` | a user for each worker |
| ``isolation`` | how well a worker has to be confined before it gets a job |
| ``verdict`` | what the end of a job says about the module |
| ``install`` | installs engines: environments, pinned wheels, a CPython that fits |
| ``serving`` | starts an engine's workers, and tests it before it is served |
| ``advisories`` | which engines have a known vulnerability |
| ``fits`` | which code a host's own engine loads, from what that says of itself |
| ``names`` | which engine a name stands for; orders of warm-ups |
| ``child`` | the code that runs inside an engine's interpreter |

Where limits are enforced: the wall clock by the daemon (``process`` kills the job's process
group); CPU time and memory by the kernel (``child.sandbox`` sets them in each job); the queue by
``pool``; the size of an artifact by the job itself, and by ``child.frames`` for a job that lies.

To add an engine: ``child/<name>_engine.py`` with the functions of the protocol
``child.engine.Engine``; its packages and its range of Python versions in ``KINDS`` in
``install.py``, whose order decides which engine is the default. Beside ``model.FAST_SETTINGS`` and
``advisories``, no other code chooses by an engine's name: the daemon asks each engine what it can
do (``child/describe.py``). The messages with which an engine says that a proposal or memory is
missing belong in ``verdict.py``. CONTRIBUTING.md has the whole list.
"""
