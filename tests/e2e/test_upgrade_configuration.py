"""All that 0.6.0 could be told, told to the program under test.

What a release reads comes from the release itself, and what the program under test reads from that:
the tests compare sets, and hold whichever settings come and go. Each setting of the release is one
still, or is refused with a sentence that says what to do; so is each key of its policy file.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from wasmkiln import Client, QuotaExceeded

from tests.e2e import wasm
from tests.e2e.daemon import Daemon, fresh_state
from tests.e2e.programs import WASMKILND, Installed
from tests.e2e.releases import Release, release
from tests.e2e.test_cache import COMPILED, settled
from tests.servers.redis_server import binary_of, redis_server

# The first that asks for the release may have to build it.
pytestmark = pytest.mark.timeout(900)

ENGINE = "wasmtime-50.0.1"
MODULE = wasm.many_functions(100, tag=1)
GONE = re.compile(r"(\w+) in (?:file .+?|the \w+(?: \w+)?) is no longer a setting: (.+)")
OF_POLICY = re.compile(r"cannot use policy .+?: quota small (\w+): (.+)")
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


@dataclass(frozen=True)
class Answer:
    """What a program makes of a configuration."""

    code: int
    lines: list[str]
    """Of what it refuses."""
    out: str

    @property
    def settings(self) -> dict[str, str]:
        """What to do, by the name of each setting that is gone."""
        return {found[1]: found[2] for line in self.lines if (found := GONE.search(line))}

    @property
    def quotas(self) -> dict[str, str]:
        """What to do, by each quota of the policy that is gone."""
        return {found[1]: found[2] for line in self.lines if (found := OF_POLICY.search(line))}


@pytest.fixture(scope="module")
def old() -> Release:
    return release("0.6.0")


@pytest.fixture
def state(engines: Installed, tmp_path: Path) -> Path:
    return fresh_state(tmp_path / "state", own_keys=True, engines=(ENGINE,))


def ask(program: str, *words: str, **environ: str) -> Answer:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("WASMKILN_")}
    done = subprocess.run(
        [program, *words],
        env={**kept, **environ},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line.removeprefix("error: ") for line in done.stderr.splitlines()]
    return Answer(done.returncode, lines, done.stdout)


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
    told = ask(program, "config", "--json", *words)
    assert told.code == 0, told.lines
    return {name: row["value"] for name, row in json.loads(told.out).items()}


def policy_of(old: Release) -> tuple[str, dict[str, Any]]:
    """Return the rules that the release documents, and its table of a quota with every key."""
    pages = old.folder / "source" / "docs" / "reference"
    rules, quota = (
        re.findall(r"^```toml\n(.*?)^```$", (pages / page).read_text(), re.MULTILINE | re.DOTALL)[0]
        for page in ("policy.md", "quotas.md")
    )
    return rules.partition("[quota.small]")[0], tomllib.loads(quota)["quota"]["small"]


def check_sentences(advice: Iterable[str]) -> None:
    for sentence in advice:
        assert len(sentence.split()) > 2, sentence


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

    told = ask(WASMKILND, "config", "--config", str(whole))
    assert told.code == 2
    assert told.settings.keys() == gone
    assert len(told.lines) == len(gone), "something else is refused"
    check_sentences(told.settings.values())
    assert ask(WASMKILND, "serve", "--config", str(whole)).lines == told.lines

    whole.write_text(as_toml({name: before[name] for name in before.keys() - gone}))
    kept = values_of(WASMKILND, "--config", str(whole))
    assert {name: kept[name] for name in before.keys() - gone} == {
        name: before[name] for name in before.keys() - gone
    }


@pytest.mark.parametrize("given", ["flags", "variables"])
def test_flags_and_variables_are_named_too(old: Release, state: Path, given: str) -> None:
    shared = ("--state-dir", str(state), *AT_RANDOM)
    gone = values_of(old.wasmkilnd, *shared).keys() - values_of(WASMKILND, *shared).keys()
    if given == "flags":
        flags = (f"--{name.replace('_', '-')}=1" for name in gone)
        told, names = ask(WASMKILND, "config", *shared, *flags), gone
    else:
        names = {f"WASMKILN_{name.upper()}" for name in gone}
        told = ask(WASMKILND, "config", *shared, **dict.fromkeys(names, "1"))
    assert told.code == 2
    assert told.settings.keys() == names
    check_sentences(told.settings.values())


def test_every_quota_is_one_still_or_refused_with_what_to_do(
    old: Release, state: Path, tmp_path: Path
) -> None:
    policy = tmp_path / "policy.toml"
    words = ("--state-dir", str(state), *AT_RANDOM, "--policy-file", str(policy))
    rules, quota = policy_of(old)
    assert len(quota) > 5

    def with_quota(table: Mapping[str, Any]) -> None:
        policy.write_text(f"{rules}[quota.small]\n{as_toml(table)}")

    with_quota(quota)
    accepted = ask(old.wasmkilnd, "config", *words)
    assert accepted.code == 0, accepted.lines

    told = ask(WASMKILND, "config", *words)
    assert told.code == 2
    assert told.quotas
    assert len(told.lines) == len(told.quotas), "something else is refused"
    check_sentences(told.quotas.values())
    assert ask(WASMKILND, "serve", *words).lines[-len(told.lines) :] == told.lines

    kept = {name: value for name, value in quota.items() if name not in told.quotas}
    for sentence in told.quotas.values():
        if instead := re.search(r"write (\w+) instead", sentence):
            kept[instead[1]] = 60
    with_quota(kept)
    mended = ask(WASMKILND, "config", *words)
    assert mended.code == 0, mended.lines


def test_a_daemon_goes_on_with_what_is_left_of_its_configuration(
    old: Release, state: Path, tmp_path: Path
) -> None:
    """Its tokens, key, pin, host store and Redis hold; the quota counts by its new name."""
    policy, config = tmp_path / "policy.toml", tmp_path / "wasmkilnd.toml"
    policy.write_text('[[rule]]\nidentity = "token:ci"\nroles = ["compile", "admin", "metrics"]\n')
    with redis_server(binary_of("valkey"), tmp_path / "server") as server:
        settings = {
            **CHOSEN,
            "state_dir": str(state),
            "policy_file": str(policy),
            "redis_url": server.url,
            "host_store_dir": str(tmp_path / "store"),
            "audit_file": str(tmp_path / "audit"),
        }
        config.write_text(as_toml(settings))
        words = ("token", "add", "ci", "--role", "compile", "--state-dir", str(state))
        token = ask(old.wasmkilnd, *words).out.strip()
        flags = ("--config", str(config))
        with (
            Daemon(state, flags, command=(old.wasmkilnd,)) as before,
            _client(before, token) as client,
        ):
            made = client.compile(MODULE).header
            settled(client)
            client.pin(made.module_sha256)
        gone = ask(WASMKILND, "config", *flags).settings
        config.write_text(as_toml({k: v for k, v in settings.items() if k not in gone}))
        quota = 'quota = "small"\n[quota.small]\ncalls_per_minute = 20\n'
        policy.write_text(policy.read_text() + quota)
        with Daemon(state, flags) as after, _client(after, token) as client:
            found = client.compile(made.module_sha256).header
            assert found.origin != COMPILED
            assert found.artifact_sha256 == made.artifact_sha256
            assert found.attestation == made.attestation
            assert [pin.module_sha256 for pin in client.pins().pins] == [made.module_sha256]
            with pytest.raises(QuotaExceeded):
                _compile_often(client, made.module_sha256)


def _compile_often(client: Client, module: str) -> None:
    for _ in range(30):
        client.compile(module, omit_artifact=True)


def _client(daemon: Daemon, token: str) -> Client:
    return daemon.client(token=token, timeout_s=120, max_attempts=1)
