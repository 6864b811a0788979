"""The filters of both machines, asked as the kernel asks them."""

from __future__ import annotations

import errno
import re
import struct
from collections.abc import Sequence
from pathlib import Path

import pytest
from wasmkilnd.engines.child import seccomp

MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}
I386 = 0x40000003
PID = 4711

KILL, ALLOW = 0x80000000, 0x7FFF0000
EPERM, ENOSYS = 0x50000 | errno.EPERM, 0x50000 | errno.ENOSYS

THREAD = 0x3D0F00  # glibc's pthread_create
VFORK = 0x4111


def ask(program: bytes, machine: int, number: int, arguments: Sequence[int] = ()) -> int:
    """Run classic BPF on a system call; return what the filter answers."""
    padded = [*arguments, *[0] * (6 - len(arguments))]
    data = struct.pack("=IIQ6Q", number, machine, 0, *padded)
    code = list(struct.iter_unpack("=HBBI", program))
    accumulator = at = 0
    while True:
        operation, if_true, if_false, value = code[at]
        at += 1
        if operation == 0x20:
            [accumulator] = struct.unpack_from("=I", data, value)
        elif operation == 0x06:
            return int(value)
        else:
            true = {
                0x15: accumulator == value,
                0x35: accumulator >= value,
                0x45: bool(accumulator & value),
            }[operation]
            at += if_true if true else if_false


def job(machine: str, name: str, *arguments: int) -> int:
    program = seccomp.job_program(machine, PID)
    return ask(program, MACHINES[machine], seccomp.number(name, machine), arguments)


def worker(machine: str, name: str, *arguments: int) -> int:
    program = seccomp.worker_program(machine)
    return ask(program, MACHINES[machine], seccomp.number(name, machine), arguments)


@pytest.mark.parametrize("machine", MACHINES)
class TestEachMachine:
    def test_what_compiling_needs_is_allowed(self, machine: str) -> None:
        for name in seccomp.JOB_MAY:
            if seccomp.number(name, machine) >= 0:
                assert job(machine, name) == ALLOW, name

    def test_what_no_compiler_does_is_deadly(self, machine: str) -> None:
        for name in seccomp.JOB_DIES_OF:
            if seccomp.number(name, machine) >= 0:
                assert job(machine, name) == KILL, name

    def test_everything_else_is_refused(self, machine: str) -> None:
        named = {seccomp.number(name, machine) for name in seccomp.NUMBERS}
        program = seccomp.job_program(machine, PID)
        for number in range(600):
            if number not in named:
                assert ask(program, MACHINES[machine], number) == EPERM

    def test_threads_start_and_processes_do_not(self, machine: str) -> None:
        assert job(machine, "clone", THREAD) == ALLOW
        assert job(machine, "clone", THREAD | 0x400000) == ALLOW  # musl's
        for flags in (17, VFORK, THREAD & ~0x10000, THREAD | 0x10000000, THREAD | 0x20000):
            assert job(machine, "clone", flags) == KILL
        assert job(machine, "clone3") == ENOSYS

    def test_it_signals_only_itself(self, machine: str) -> None:
        assert job(machine, "tgkill", PID, PID, 6) == ALLOW
        assert job(machine, "tgkill", PID + 1, PID + 1, 6) == KILL

    def test_it_reads_its_own_limits_and_sets_none(self, machine: str) -> None:
        assert job(machine, "prlimit64", 0, 7, 0, 1) == ALLOW
        for arguments in ((0, 7, 1, 0), (0, 7, 1 << 32, 0), (1, 7, 0, 1)):
            assert job(machine, "prlimit64", *arguments) == EPERM

    def test_it_sends_to_its_peer_and_no_address(self, machine: str) -> None:
        assert job(machine, "sendto", 3, 1, 1, 0, 0, 0) == ALLOW
        assert job(machine, "sendto", 3, 1, 1, 0, 1, 16) == EPERM
        assert job(machine, "sendto", 3, 1, 1, 0, 1 << 32, 16) == EPERM

    def test_it_names_threads_and_memory_and_changes_nothing_else(self, machine: str) -> None:
        assert job(machine, "prctl", 15) == ALLOW
        assert job(machine, "prctl", 0x53564D41) == ALLOW
        for option in (1, 4, 8, 22, 38):
            assert job(machine, "prctl", option) == EPERM

    def test_another_architecture_is_deadly(self, machine: str) -> None:
        other = next(code for name, code in MACHINES.items() if name != machine)
        for program in (seccomp.job_program(machine, PID), seccomp.worker_program(machine)):
            assert ask(program, other, 0) == KILL
            assert ask(program, I386, 1) == KILL

    def test_a_worker_starts_jobs_and_nothing_else(self, machine: str) -> None:
        assert worker(machine, "clone", 0x01200011) == ALLOW  # os.fork
        for new in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
            assert worker(machine, "clone", new | 17) == EPERM
        assert worker(machine, "clone3") == ENOSYS
        assert worker(machine, "setpriority", 0, 0, 5) == ALLOW  # A job that is not sealed yet.
        for which, who in ((1, 0), (2, 0), (0, 1)):
            assert worker(machine, "setpriority", which, who, 5) == EPERM
        for name in seccomp.JOB_DIES_OF:
            if seccomp.number(name, machine) >= 0:
                assert worker(machine, name) == EPERM, name

    def test_a_program_fits_the_kernel(self, machine: str) -> None:
        for program in (seccomp.job_program(machine, PID), seccomp.worker_program(machine)):
            assert len(program) // 8 < 4096

    def test_the_numbers_are_the_kernels(self, machine: str) -> None:
        header = HEADERS[machine]
        if not header.exists():
            pytest.skip("the kernel's headers are not installed")
        found = {
            name: int(number)
            for name, number in re.findall(
                r"#define __NR(?:3264)?_(\w+)\s+(\d+)", header.read_text()
            )
        }
        for name in seccomp.NUMBERS:
            if name in found:  # Older headers know fewer.
                assert seccomp.number(name, machine) == found[name], name
        unknown = [name for name in seccomp.JOB_MAY if name not in found]
        assert machine == "aarch64" or not unknown


def test_the_other_numbers_of_x86_64_are_deadly() -> None:
    program = seccomp.job_program("x86_64", PID)
    assert ask(program, MACHINES["x86_64"], 0x40000000 + 1) == KILL
