"""Start, stop, banner, metrics, health and status of a daemon."""

from __future__ import annotations

import itertools
import json
import socket
import subprocess
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from wasmkiln import Client, ModuleInvalid, WasmkilnError

from tests.e2e import wasm
from tests.e2e.daemon import Daemon, RedisDaemon
from tests.e2e.processes import eventually
from tests.e2e.programs import WASMKILND, run
from tests.e2e.test_cache import settled


def wasmkilnd(*words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return run(WASMKILND, *words, **environ)


def get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as failure:
        with failure:
            return failure.code, failure.read().decode()


def test_the_banner_tells_what_one_has_to_know(daemon: Daemon) -> None:
    for words in (
        daemon.address,
        "wasmer-1.1.0 (CPython 3.10",
        "wasmtime-50.0.1 (CPython 3",
        "wasmtime-49.0.0",
        "default",
        "memory, 256MiB",
        "embedded Valkey",
        str(daemon.state_dir),
        "everybody may do everything",
        f"wasmkiln --address {daemon.address} compile",
    ):
        assert words in daemon.banner


def test_no_engine_installed(tmp_path: Path) -> None:
    done = wasmkilnd("serve", "--no-install-engines", "--state-dir", str(tmp_path))
    assert done.returncode == 1
    assert "wasmkilnd engine install" in done.stderr


def test_a_socket_and_a_port_and_that_another_may_have_neither(
    lean_state_dir: Path, tmp_path: Path
) -> None:
    path = tmp_path / "kiln.sock"
    with (
        Daemon(lean_state_dir, ["--listen", f"unix:{path}", "--redis-url", "none"]) as daemon,
        Client(f"unix:{path}") as by_path,
        daemon.client() as by_port,
    ):
        assert path.stat().st_mode & 0o077 == 0
        by_path.compile(wasm.adder(30))
        assert by_port.compile(wasm.adder(30)).header.origin == 1
        admin = daemon.admin_url.removeprefix("http://")
        for listen, admin_listen, says in (
            (f"unix:{path}", "none", "another process serves there"),
            (daemon.address, "none", f"cannot listen on {daemon.address}"),
            ("127.0.0.1:0", admin, "WASMKILN_ADMIN_LISTEN"),
        ):
            done = wasmkilnd(
                *("serve", "--state-dir", str(lean_state_dir), "--redis-url", "none"),
                *("--listen", listen, "--admin-listen", admin_listen),
            )
            assert done.returncode == 1
            assert says in done.stderr
            assert "Traceback" not in done.stderr
        assert by_path.health() == "SERVING"
    # What a killed daemon leaves is taken over.
    daemon = Daemon(lean_state_dir, ["--listen", f"unix:{path}", "--redis-url", "none"])
    daemon.kill()
    assert path.exists()
    with (
        Daemon(lean_state_dir, ["--listen", f"unix:{path}", "--redis-url", "none"]),
        Client(f"unix:{path}") as client,
    ):
        assert client.health() == "SERVING"


def test_metrics_and_stats_agree_and_a_damaged_password_costs_nothing(
    lean_state_dir: Path,
) -> None:
    with RedisDaemon(lean_state_dir) as daemon, daemon.client() as client:
        _, before = get(f"{daemon.admin_url}/metrics")
        # Zero-initialised, so that rates are right from the first event on.
        assert (
            'wasmkiln_compiles_total{engine="wasmer-1.1.0",outcome="compile_timeout"} 0.0' in before
        )
        header = client.compile(wasm.adder(32)).header
        for _ in range(3):
            client.compile(wasm.adder(32))
        with pytest.raises(WasmkilnError):
            client.compile(b"(module)")
        stats = client.stats()
        _, text = get(f"{daemon.admin_url}/metrics")
        memory = next(tier for tier in stats.tiers if tier.tier == "memory")
        assert memory.hits == 3
        looked_up = 'wasmkiln_tier_lookups_total{outcome="hit",tier="memory",what="artifact"} 3.0'
        assert looked_up in text
        assert 'wasmkiln_compiles_total{engine="wasmer-1.1.0",outcome="ok"} 1.0' in text
        assert f'wasmkiln_tier_bytes{{tier="memory"}} {float(memory.bytes)}' in text
        assert stats.hit_ratio == 0.75
        method = "/wasmkiln.v1.ModuleService/Compile"
        assert daemon.metric("rpcs_total", code="OK", method=method) == 4
        assert memory.get_latency.count == memory.hits + memory.misses
        settled(client)
    (lean_state_dir / "redis" / "password").write_text("")
    with RedisDaemon(lean_state_dir) as daemon, daemon.client() as client:
        eventually(lambda: client.stats().redis_up, "the embedded server is not up")
        assert client.compile(header.module_sha256).header.origin == 2
    assert not list((lean_state_dir / "redis").glob("broken-*"))


def test_health_the_log_of_a_call_and_garbage(daemon: Daemon, client: Client) -> None:
    host, _, port = daemon.address.rpartition(":")
    for garbage in (b"GET / HTTP/1.1\r\n\r\n", bytes(range(256)) * 64, b"PRI * HTTP/2.0\r\n\r\nSM"):
        with socket.create_connection((host, int(port))) as raw:
            raw.sendall(garbage)
    assert client.health() == "SERVING"
    assert get(f"{daemon.admin_url}/healthz")[0] == 200
    assert get(f"{daemon.admin_url}/readyz") == (200, "ready\n")
    assert get(f"{daemon.admin_url}/secrets")[0] == 404
    header = client.compile(wasm.adder(33)).header
    line = json.loads(daemon.wait_for_log(header.module_sha256))
    assert line["event"] == "call"
    assert line["request_id"]
    assert line["duration_ms"] > 0


# What the status page tells of calls: which of them, and what became of them


ENGINE = "wasmtime-50.0.1"
_tags = itertools.count(510_000)


def rows_of(daemon: Daemon, module: bytes) -> list[dict[str, Any]]:
    """Return each recent compile of a module, the newest first."""
    recent = json.loads(get(f"{daemon.admin_url}/status.json")[1])["recent"]
    return [each for each in recent if each["module"] == wasm.digest(module)]


def told(daemon: Daemon, module: bytes, **fields: object) -> None:
    """Wait until the newest row about a module has these: a call is told after its answer."""
    eventually(
        lambda: fields.items() <= (rows_of(daemon, module) or [{}])[0].items(),
        f"the page does not tell of {fields}",
    )


def test_a_compile_is_told_and_a_hit_is_not(daemon: Daemon, client: Client) -> None:
    module = wasm.constant(next(_tags))
    client.compile(module, engine=ENGINE)
    told(daemon, module, engine=ENGINE, origin="compiled", reason="", times=1)
    for _ in range(3):
        client.compile(module, engine=ENGINE)
    # The client asks by digest first, which is no failure either.
    assert len(rows_of(daemon, module)) == 1


def test_a_failure_is_told_with_its_reason_and_how_often_it_came(
    daemon: Daemon, client: Client
) -> None:
    module = b"\0asm\1\0\0\0" + next(_tags).to_bytes(8, "little")
    for _ in range(2):
        with pytest.raises(ModuleInvalid):
            client.compile(module, engine=ENGINE)
    told(daemon, module, engine=ENGINE, origin="", reason="MODULE_INVALID", times=2)
    assert len(rows_of(daemon, module)) == 1


def test_a_compile_that_no_caller_waits_for_is_told(daemon: Daemon, client: Client) -> None:
    module = wasm.constant(next(_tags))
    client.compile(module, engine=ENGINE, accept_fast=True)
    eventually(
        lambda: [each["times"] for each in rows_of(daemon, module)] == [2],
        "the optimised compile behind the fast one is not told",
    )
