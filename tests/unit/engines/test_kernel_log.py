"""What the kernel's log tells of a job that was killed for a system call."""

from __future__ import annotations

import os
import signal
import socket

import pytest
from wasmkilnd.engines.child.isolation import kernel, privileges, seccomp
from wasmkilnd.engines.workers import kernel_log

RECORD = (
    b"5,901,684612375,-;audit: type=1326 audit(1795627212.932:212): auid=4294967295 uid=2034118"
    b' gid=2034118 ses=4294967295 pid=%d comm="python" exe="/usr/bin/python3.13" sig=31'
    b" arch=c000003e syscall=%d compat=0 ip=0x7fb003c8f3f7 code=0x80000000\n"
)


@pytest.mark.parametrize(
    ("records", "found"),
    [
        ([], None),
        ([b"6,1,2,-;systemd[1]: type=1326 pid=77 sig=31\n"], None),
        ([RECORD % (77, 41)], 41),
        ([RECORD % (177, 41)], None),
        ([RECORD % (77, 41), RECORD % (78, 57), RECORD % (77, 59)], 59),
    ],
)
def test_the_last_record_of_a_process_counts(records: list[bytes], found: int | None) -> None:
    log, kernels = socket.socketpair(type=socket.SOCK_SEQPACKET)
    with log, kernels:
        log.setblocking(False)
        for record in records:
            kernels.send(record)
        assert kernel_log._last_call_of(77, log.fileno()) == found


def test_the_call_is_named_where_the_kernel_tells() -> None:
    machine = kernel.machine()
    if not machine:
        pytest.skip("no filter for this machine")
    pid = os.fork()
    if pid == 0:
        privileges.forbid_new_ones()
        seccomp.install(seccomp.for_process(seccomp.job_program(machine), os.getpid()), machine)
        socket.socket()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGSYS
    assert kernel_log.refused_call(pid) in ("socket", "")  # Of a crowd of records some are dropped.
