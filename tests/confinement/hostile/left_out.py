"""Leave layers out, as if the kernel did not have them: for controls, and old kernels.

It runs in a worker's interpreter, when that imports the hostile engine, just before the worker
confines itself; and it knows the worker's own modules.
"""

import errno
import os
import sys


def leave_out(*names):
    for name in names:
        globals()["_" + name]()


def _part(name):
    return sys.modules["child.isolation." + name]


def _refuse(*_):
    raise OSError(errno.ENOSYS, "left out")


def _do_nothing(*_):
    pass


def _namespaces():
    namespaces = _part("namespaces")
    entered = namespaces.Entered("left out", "left out", "left out")

    def enter(machine, user):
        _part("privileges").become_ordinary(user)
        return entered

    namespaces.enter = enter


def _landlock():
    _part("landlock").abi = _refuse


def _seccomp():
    _part("seccomp").install = _refuse


def _privileges():
    privileges = _part("privileges")
    privileges.become_ordinary = privileges.leave_no_traces = _do_nothing
    privileges.drop_capabilities = _refuse


def _limits():
    _part("confinement")._lower = _do_nothing
    _part("limits").limit = _do_nothing


def _descriptors():
    """Leave a job what its worker has open."""

    def enter_job(self, job_socket, words):
        os.dup2(words, 2)
        return job_socket

    _part("confinement").Confinement.enter_job = enter_job
