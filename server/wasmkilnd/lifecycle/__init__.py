"""The life of a daemon: what it checks, starts, reloads, reports and ends.

``app`` calls the parts of this room in order; ``run`` tells it about signals.

| phase | file | what it does |
|---|---|---|
| start | ``restart_for_tls`` | runs the command again before gRPC is there with another TLS |
| | ``preflight`` | refuses to start where this host or user rules a setting out |
| | ``private_folders`` | takes back what a container platform let a volume's group write to |
| | ``check_config`` | checks the same for ``wasmkilnd config``, and starts nothing |
| | ``long_step`` | asks the service manager for time while a step of the start takes it |
| | ``descriptors`` | divides the file descriptors; raises the soft limit |
| | ``listening`` | where gRPC is served, and with which TLS |
| | ``open_access`` | the guard; reads again the files that say who may do what |
| | ``opening`` | opens keys, tiers and the servers |
| | ``auditing`` | where the audit goes, and its lines about the daemon itself |
| | ``engines`` | installs the first engines, starts and warms them, follows what is installed |
| | ``banner`` | the text for the person at the terminal |
| serve | ``readiness`` | whether the daemon serves calls: /readyz, gRPC health, log |
| | ``malloc_trim`` | returns freed memory to the machine |
| | ``service`` | status and watchdog of the service manager; how reloads end |
| | ``systemd`` | the protocol in which systemd is told |
| | ``progress`` | whether jobs get on, so that the watchdog is answered |
| | ``running`` | a file in the state directory for each daemon: its reloads |
| reload | ``reload`` | applies settings, keys and files that SIGHUP makes the daemon read again |
| | ``watch`` | notices that files have changed, so that they are read without SIGHUP |
| | ``serve_namespaces`` | opens and closes namespaces as the policy names them |
| end | ``shutdown`` | the deadline of calls in progress |

It promises:

- A daemon serves only after every part works, Redis aside. What stops a start is one
  ``CannotStart`` with what to do.
- One engine that does not work stops no other; the daemon is ready while one works. A Redis that
  is down never makes it unready.
- A reload applies all or nothing: it checks settings, keys and certificates first.
- SIGTERM and Drain refuse new calls and give those in progress ``shutdown_grace_s``. A second
  signal ends the daemon at once. Of several deadlines the earliest counts.
- Freed memory returns to the machine within 3 s. By default glibc keeps up to 64 MiB at the end of
  each thread's heap, and all holes. So all threads share one heap, and each block of a MiB and more
  has a mapping of its own. For the holes, a task compares once a second what is resident with what
  is in use, and trims above 16 MiB more than before. Nothing waits for the garbage collector: what
  a call held is free by reference counts, and ``errors.forget_frames`` breaks the cycles that
  tracebacks make.
"""
