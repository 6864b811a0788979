"""Isolation: what keeps a module that takes over its compiler from doing harm.

The layers are independent: each is put up as far as the kernel allows, tried at once by something
that it should stop, and reported as enforced, partial or missing. The daemon decides whether that
is enough (``engines.workers.isolation``). In the order of putting them up:

| layer | what a job lacks | file |
|---|---|---|
| namespaces | the network, other processes, IPC (most anew for each job) | ``namespaces`` |
| root | files: its root is an empty folder, read-only | ``namespaces`` |
| landlock | opening files, TCP, signals to others | ``landlock`` |
| privileges | capabilities, set-user-id programs, core dumps, the user root | ``privileges`` |
| limits | more than 32 descriptors, threads, files, locked memory | ``confinement`` |
| seccomp | system calls that compiling does not need | ``seccomp``, ``syscalls`` |

``confinement`` puts them up in the worker, whose jobs inherit them, and adds to each job what
must be its own. ``seal()`` installs the job's filter; after it, a call that no compiler makes
kills the job, and any other that is not listed is refused with EPERM. The file ``limits`` is not
the layer of that name: it sets memory (RLIMIT_AS) and CPU time (RLIMIT_CPU) in each job, from the
job's order, and reads what an ended job used; ``priority`` lowers the job's priority, which no
sealed job can change. Before its first job, ``probe`` has
a test job try to break out: connect, read, write, fork, execute, signal, trace; what succeeds is a
hole, and the daemon is told. ``kernel`` makes the system calls that the standard library has no
function for.

No path is allowed and so none is configured: what an engine needs of its environment it has read
before the worker is confined. To allow a system call, add it to JOB_MAY in ``syscalls``, and say
in the commit which engine needs it, observed how.
"""
