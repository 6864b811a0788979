"""Leave layers out, as if the kernel did not have them: for controls, and old kernels.

It runs in a worker's interpreter, when that imports the hostile engine, just before the worker
confines itself; and it knows the worker's own modules.
"""

import errno
import os
import sys


def leave_out(*names):
    for name in names:
        globals()["_" + name](sys.modules["child.sandbox"])


def _refuse(*_):
    raise OSError(errno.ENOSYS, "left out")


def _do_nothing(*_):
    pass


def _namespaces(sandbox):
    def become(self, user):
        sandbox._become(user)
        _refuse()

    sandbox.Sandbox._namespaces = become


def _landlock(sandbox):
    sandbox.Sandbox._landlock = _refuse


def _seccomp(sandbox):
    sandbox.Sandbox._seccomp = _refuse


def _privileges(sandbox):
    sandbox.Sandbox._privileges = _refuse
    sandbox._become = _do_nothing


def _limits(sandbox):
    sandbox.Sandbox._limits = _refuse
    sandbox.limit = _do_nothing


def _descriptors(sandbox):
    """Leave a job what its worker has open."""

    def enter_job(self, job_socket, words):
        os.dup2(words, 2)
        return job_socket

    sandbox.Sandbox.enter_job = enter_job
