"""Leave layers out, as if the kernel did not have them: for controls, and old kernels.

``left-out.json`` in the virtual environment names them. It is read when a worker imports
this engine, just before it confines itself.
"""

import errno
import json
import os
import sys


def apply():
    try:
        with open(os.path.join(sys.prefix, "left-out.json")) as file:
            names = json.load(file)
    except FileNotFoundError:
        return
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
