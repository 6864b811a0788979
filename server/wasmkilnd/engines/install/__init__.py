"""Install: engines on disk, and how an installed engine comes into service.

``<state_dir>/engines/<name>-<version>/`` is a virtual environment with one engine.
``engine.json`` in it holds name, version and interpreter; the folder is built beside its final
place and renamed, so what is there is complete. A folder without a readable ``engine.json`` is
damaged; installing the engine again replaces it. The environment has no pip: the daemon's own pip
installs into it, and only wheels.

- ``store``: install, list and remove engines, under a file lock. ``KINDS`` lists the engines with
  their packages, the versions of CPython that these have wheels for, and the default version.
- ``wheels``: has pip install an engine's wheels. Those of tested versions are pinned by SHA-256 in
  ``pins/``, for all platforms (``make lock``): a file with another digest is not installed. Other
  versions are installed with a warning, or with the digests that ``--sha256`` names. ``command``
  runs pip and Python, and holds EngineInstallError.
- ``interpreters``: finds a Python for an engine: on PATH, and where pyenv, uv, asdf, mise and
  distributions keep theirs. Each is run before it is believed.
- ``in_use``: tells which engines a running daemon serves, by a lock that it holds.
- ``name_record``: what engines' names stand for, kept over restarts.
- ``fetch_python``: has uv fetch a CPython for an engine, on request.
- ``vetting``: refuses an engine, or an interpreter, whose files another user could change: the
  daemon would run that user's code.
- ``warm_orders``: what to compile for a new engine before names stand for it.
- ``start``: starts the workers of each installed engine, and asks it what it can do.
- ``self_test``: has it compile and run a small module of each kind, on the path of every request.

An engine that fails at any of this is not served, with the reason in the log, in GetCapabilities
and on the banner; it does not stop the others. Raises NotOurs (``ownership``) where another user
could put an engine there.
"""
