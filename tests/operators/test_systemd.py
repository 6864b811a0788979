"""The unit under a real systemd: the documented steps, reloads, the journal and the watchdog."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest

from tests.e2e.processes import eventually
from tests.e2e.programs import ROOT, installed_engines
from tests.operators.booted import Booted, checkout, program, why_not
from tests.operators.conftest import Needs
from tests.operators.toolchains import TOOLS

STATE = "/var/lib/wasmkiln"
UNIT = "wasmkilnd"
CONFIG = "/etc/wasmkiln/wasmkilnd.toml"
AUDIT = "/var/log/wasmkiln/audit.jsonl"


@pytest.fixture(scope="module")
def machine(needs: Needs) -> Iterator[Booted]:
    """A system with the daemon under /opt, its user, its unit and one engine."""
    TOOLS.demand("systemd")
    if why := why_not():
        TOOLS.give_up(f"cannot boot systemd: {why}")
    [wasmtime] = [each for each in installed_engines() if "50.0" in each.id]
    if str(wasmtime.interpreter.resolve()).startswith(("/root/", "/home/")):
        TOOLS.give_up("cannot serve from a service: the engine's Python is in a home directory")
    with Booted({**checkout(), wasmtime.path: "/opt/engine"}) as booted:
        booted.write("/opt/wasmkiln/bin/wasmkilnd", program("wasmkilnd"), "0755")
        # As deploy/README.md says.
        booted.run(
            *("useradd", "--system", "--home-dir", STATE, "--shell", "/usr/sbin/nologin"),
            "wasmkiln",
        )
        booted.run("install", "-d", "-o", "wasmkiln", "-g", "wasmkiln", "-m", "0700", STATE)
        booted.run("install", "-d", "-o", "wasmkiln", "-m", "0700", f"{STATE}/engines")
        booted.run("cp", "-r", "-P", "/opt/engine", f"{STATE}/engines/{wasmtime.id}")
        booted.run("chown", "-R", "wasmkiln:wasmkiln", f"{STATE}/engines")
        booted.write(f"/etc/systemd/system/{UNIT}.service", unit())
        booted.write(
            f"/etc/systemd/system/{UNIT}.service.d/test.conf", "[Service]\nWatchdogSec=9\n"
        )
        booted.write(
            "/etc/wasmkiln/wasmkilnd.env",
            f"WASMKILN_CONFIG={CONFIG}\nWASMKILN_REDIS_URL=none\nWASMKILN_WORKERS=1\n"
            f"WASMKILN_AUDIT_FILE={AUDIT}\n",
        )
        booted.write(CONFIG, "")
        become = ("runuser", "-u", "wasmkiln", "--")
        words = ("keys", "generate", "--state-dir", STATE)
        booted.run(*become, "/opt/wasmkiln/bin/wasmkilnd", *words)
        booted.run("systemctl", "daemon-reload")
        started = booted.run("systemctl", "start", UNIT, check=False)
        assert started.returncode == 0, [each["MESSAGE"] for each in journal(booted)]
        yield booted
        booted.run("systemctl", "stop", UNIT)
        assert shown(booted, "Result") == "success"


def unit() -> str:
    return (ROOT / "deploy" / "wasmkilnd.service").read_text()


def shown(machine: Booted, what: str) -> str:
    return machine.run("systemctl", "show", "--value", "-p", what, UNIT).stdout.strip()


def journal(machine: Booted, *words: str) -> list[dict[str, str]]:
    said = machine.run("journalctl", "-o", "json", "-u", UNIT, *words, check=False).stdout
    return [json.loads(line) for line in said.splitlines()]


def test_it_has_started_with_the_key_that_was_made(machine: Booted) -> None:
    """And systemd has nothing to say about the unit."""
    file = f"/etc/systemd/system/{UNIT}.service"
    assert machine.run("systemd-analyze", "verify", "--man=no", file).stderr == ""
    assert shown(machine, "ActiveState") == "active"
    assert shown(machine, "StatusText").startswith("ready; 1 engine, 0 entries in memory")
    assert machine.run("find", STATE, "-not", "-user", "wasmkiln").stdout == ""
    # Jobs, which give way, give way to the daemon alone: its group competes as one.
    assert shown(machine, "CPUWeight") == "100"


def test_the_daemon_is_given_a_group_for_its_jobs(machine: Booted) -> None:
    """It uses it where groups of version 2 have the controller of memory."""
    own = machine.run("cat", f"/proc/{shown(machine, 'MainPID')}/cgroup").stdout
    assert own.endswith(f"/{UNIT}.service/daemon\n")
    here = machine.run("cat", "/sys/fs/cgroup/cgroup.controllers").stdout
    words = f"jobs have {'a' if 'memory' in here.split() else 'no'} control group"
    assert any(words in each["MESSAGE"] for each in journal(machine))


def test_the_audit_has_a_directory_of_its_own(machine: Booted) -> None:
    [first, *_] = machine.run("cat", AUDIT).stdout.splitlines()
    assert json.loads(first)["event"] == "start"
    assert machine.run("stat", "-c", "%U %a", AUDIT).stdout == "wasmkiln 600\n"
    assert machine.run("stat", "-c", "%U %a", AUDIT.rpartition("/")[0]).stdout == "wasmkiln 750\n"


def test_the_journal_has_priorities_and_lines_of_json_alone(machine: Booted) -> None:
    lines = [each for each in journal(machine) if each["_SYSTEMD_UNIT"] == f"{UNIT}.service"]
    assert {json.loads(each["MESSAGE"])["level"]: each["PRIORITY"] for each in lines}["info"] == "6"
    assert all(each["PRIORITY"] != "6" for each in journal(machine, "-p", "warning"))


def test_the_commands_of_the_documentation(machine: Booted) -> None:
    """Those that docs/how-to/deploy.md gives for a service that runs."""
    page = (ROOT / "docs" / "how-to" / "deploy.md").read_text()
    blocks = re.findall(r"^```sh\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2
    said = [machine.run("sh", "-e", "-c", block).stdout for block in blocks]
    assert 'Status: "ready; 1 engine' in said[0]
    assert "is made: daemons sign with it after a reload" in said[1]
    assert machine.run("find", STATE, "-not", "-user", "wasmkiln").stdout == ""


def test_systemctl_reload_fails_where_the_daemon_cannot_use_what_it_reads(
    machine: Booted,
) -> None:
    machine.write(CONFIG, "compile_timeout_s = 20\n")
    machine.run("systemctl", "reload", UNIT)
    machine.write(CONFIG, "compile_timeout_s = 'soon'\n")
    assert machine.run("systemctl", "reload", UNIT, check=False).returncode == 1
    assert shown(machine, "ActiveState") == "active"
    assert shown(machine, "StatusText").startswith("the last reload failed: ")
    errors = [each["MESSAGE"] for each in journal(machine, "-p", "err")]
    assert any("goes on with what it had" in each for each in errors)
    machine.write(CONFIG, "")
    machine.run("systemctl", "reload", UNIT)
    assert shown(machine, "StatusText").startswith("ready; ")


def test_a_daemon_that_hangs_is_started_again(machine: Booted) -> None:
    before = shown(machine, "MainPID")
    machine.run("kill", "-STOP", before)
    eventually(lambda: shown(machine, "NRestarts") == "1", "the watchdog does not bite", 120)
    eventually(lambda: shown(machine, "ActiveState") == "active", "it does not start", 120)
    assert shown(machine, "MainPID") not in ("0", before)
    assert any("Fatal Python error: Aborted" in each["MESSAGE"] for each in journal(machine))
