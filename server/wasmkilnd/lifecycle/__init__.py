"""The life of a daemon: what it checks, starts, reloads, reports and ends.

``app`` calls the parts of this room in order.

| phase | file | what it does |
|---|---|---|
| start | ``preflight`` | memory and descriptors; refuses what this host or user rules out |
| | ``check_config`` | checks the same for ``wasmkilnd config``, and starts nothing |
| | ``engines`` | installs the first engines, starts and warms them, follows what is installed |
| serve | ``readiness`` | whether the daemon serves calls, and gets on; /status.json |
| | ``systemd`` | what the service manager hears; how reloads end |
| | ``running`` | a file in the state directory for each daemon: its reloads |
| reload | ``reload`` | reads settings, keys, access and files again, each part by itself |

It promises:

- A daemon serves only after every part works, Redis aside. What stops a start is one
  ``CannotStart`` with what to do.
- One engine that does not work stops no other; the daemon is ready while one works. A Redis that
  is down never makes it unready.
- A reload takes over each part that can be used: one that cannot be used stays as it was, is named,
  and makes the reload fail. A SIGHUP that comes while the daemon starts waits until it serves.
- SIGTERM and Drain refuse new calls and give those in progress ``shutdown_grace_s``. A second
  signal ends the daemon at once. Of several deadlines the earliest counts.
- Freed memory returns to the machine within 6 s (``preflight``). Nothing waits for the garbage
  collector: what a call held is free by reference counts, and ``errors.forget_frames`` breaks the
  cycles that tracebacks make.
"""
