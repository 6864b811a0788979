"""All that 0.6.0 could be told, told to the program under test.

What a release reads comes from the release itself, and what the program under test reads from that:
the test compares sets, and holds whichever settings come and go. Each setting of the release is one
still, or is refused with a sentence that says what to do. Quotas that went are named in
tests/unit/access/test_policy_file.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.daemon import fresh_state
from tests.e2e.programs import WASMKILND, Installed, run
from tests.e2e.releases import Release, release

# The first that asks for the release may have to build it.
pytestmark = pytest.mark.timeout(900)

ENGINE = "wasmtime-50.0.1"
GONE = re.compile(r"(\w+) in (?:file .+?|the \w+(?: \w+)?) is no longer a setting: (.+)")
AT_RANDOM = ("--listen", "127.0.0.1:0", "--admin-listen", "none", "--redis-url", "none")

# What an operator of the release may have set, as far as it can be set on any machine.
CHOSEN: dict[str, Any] = {
    "listen": ["127.0.0.1:0"],
    "admin_listen": "127.0.0.1:0",
    "admin_names": ["kiln.example.org"],
    "socket_mode": "0660",
    "audit_file_bytes": "1MiB",
    "audit_files": 3,
    "value_max_age_s": "30d",
    "redis_timeout_s": 2,
    "redis_retry_max_s": 5,
    "redis_prefix": "kiln:",
    "embedded_redis_bytes": "512MiB",
    "cache_ttl_s": "1d",
    "cache_ttl_refresh": True,
    "compile_lease_s": 7,
    "write_queue_bytes": "128MiB",
    "memory_bytes": "64MiB",
    "host_store_bytes": "100MiB",
    "host_store_mode": "0600",
    "max_module_bytes": "6MiB",
    "max_artifact_bytes": "128MiB",
    "default_engine": ENGINE,
    "engine_alias": {"wasmtime": ENGINE},
    "install_engines": False,
    "python_mirror": "https://mirror.example.org/python",
    "workers": 1,
    "queue_length": 100,
    "queue_bytes": "128MiB",
    "abandoned_compiles": "kill",
    "max_calls": 1000,
    "max_connections": 500,
    "max_streams": 100,
    "receive_bytes": "256MiB",
    "send_bytes": "64MiB",
    "send_pinned_bytes": "256MiB",
    "caller_timeout_s": "2m",
    "compile_timeout_s": "2m",
    "compile_cpu_s": "100s",
    "compile_memory_bytes": "1GiB",
    "compile_priority": "low",
    "quarantine_s": "5m",
    "isolation": "best-effort",
    "shutdown_grace_s": "10s",
    "log_format": "json",
    "log_level": "debug",
    "banner": "always",
    "trace_sample_ratio": 0.5,
}


@pytest.fixture(scope="module")
def old() -> Release:
    return release("0.6.0")


@pytest.fixture
def state(engines: Installed, tmp_path: Path) -> Path:
    return fresh_state(tmp_path / "state", own_keys=True, engines=(ENGINE,))


def refused(*words: str, **environ: str) -> dict[str, str]:
    """Return what to do, by the name of each setting that is gone; nothing else is refused."""
    done = run(WASMKILND, *words, **environ)
    lines = done.stderr.splitlines()
    told = {found[1]: found[2] for line in lines if (found := GONE.search(line))}
    assert (done.returncode, len(told)) == (2, len(lines)), done.stderr
    assert all(len(advice.split()) > 2 for advice in told.values()), done.stderr
    return told


def as_toml(settings: Mapping[str, Any]) -> str:
    lines = []
    for name, value in settings.items():
        if isinstance(value, dict):
            pairs = ", ".join(f"{key} = {json.dumps(each)}" for key, each in value.items())
            value = f"{{{pairs}}}"
        else:
            value = json.dumps(value)
        lines.append(f"{name} = {value}\n")
    return "".join(lines)


def values_of(program: str, *words: str) -> dict[str, Any]:
    """Return every setting that a version has, with its value."""
    done = run(program, "config", "--json", *words)
    assert done.returncode == 0, done.stderr
    return {name: row["value"] for name, row in json.loads(done.stdout).items()}


def test_every_setting_is_one_still_or_refused_with_what_to_do(
    old: Release, state: Path, tmp_path: Path
) -> None:
    chosen, whole = tmp_path / "chosen.toml", tmp_path / "whole.toml"
    chosen.write_text(as_toml({"state_dir": str(state), "redis_url": "none", **CHOSEN}))
    before = values_of(old.wasmkilnd, "--config", str(chosen))
    after = values_of(WASMKILND, "--state-dir", str(state), *AT_RANDOM)
    gone = before.keys() - after.keys()
    assert set(CHOSEN) <= before.keys()
    whole.write_text(as_toml(before))
    assert values_of(old.wasmkilnd, "--config", str(whole)) == before

    told = refused("config", "--config", str(whole))
    assert told.keys() == gone
    assert refused("serve", "--config", str(whole)) == told

    before = {name: value for name, value in before.items() if name not in gone}
    whole.write_text(as_toml(before))
    kept = values_of(WASMKILND, "--config", str(whole))
    assert {name: kept[name] for name in before} == before

    # Flags and variables are named too.
    shared = ("--state-dir", str(state), *AT_RANDOM)
    by_flag = refused("config", *shared, *(f"--{name.replace('_', '-')}=1" for name in gone))
    assert by_flag.keys() == gone
    variables = {f"WASMKILN_{name.upper()}": "1" for name in gone}
    assert refused("config", *shared, **variables).keys() == variables.keys()
