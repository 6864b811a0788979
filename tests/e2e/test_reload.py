"""SIGHUP: which settings a running daemon applies, what it logs, and what it leaves alone."""

from __future__ import annotations

import contextlib
import json
import re
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from wasmkiln import (
    AttestationInvalid,
    Client,
    CompilerCrashed,
    CompileTimeout,
    ModuleQuarantined,
    ModuleTooLarge,
)
from wasmkiln.v1 import module_service_pb2 as pb

from tests.e2e import wasm
from tests.e2e.bearers import bearer, token_command
from tests.e2e.callers import COMPILE, RawCaller
from tests.e2e.daemon import FAILED, Configured, fresh_state
from tests.e2e.processes import busy_job, eventually, send, stopped
from tests.e2e.programs import Installed, begin_to_serve
from tests.e2e.signing_keys import KeyDirectory, KeyPair
from tests.e2e.test_access import Stubs
from tests.e2e.test_cache import REDIS, settled
from tests.servers.certificates import Certificates, certificates
from tests.servers.redis_server import RedisServer, binary_of, free_ports, redis_server

MIB = 2**20


def with_settings(folder: Path, *flags: str, **settings: object) -> Configured:
    """A daemon with keys of its own: what its memory lost comes from Redis, or is compiled."""
    state = fresh_state(folder / "state", own_keys=True, engines=["wasmer-1.1.0"])
    return Configured(state, *flags, host_store_bytes=0, **settings)


@pytest.fixture
def configured(engines: Installed, tmp_path: Path) -> Iterator[Configured]:
    """A daemon with small limits."""
    one = with_settings(
        tmp_path,
        *("--queue-length", "7"),
        max_module_bytes="512",
        compile_timeout_s=61,
        memory_bytes="64MiB",
    )
    with one.daemon:
        yield one
    assert one.daemon.process.returncode == 0


def changes(lines: list[dict[str, Any]], event: str) -> dict[str, tuple[object, object]]:
    return {line["setting"]: (line["old"], line["new"]) for line in lines if line["event"] == event}


def test_limits_are_taken_over_and_the_rest_is_told(configured: Configured) -> None:
    too_large, too_slow = wasm.many_functions(500), wasm.nested_blocks(1_000_000)
    with configured.daemon.client(max_attempts=1) as client:
        with pytest.raises(ModuleTooLarge):
            client.compile(too_large)
        configured.write(
            max_module_bytes="5MiB",
            max_artifact_bytes="8MiB",
            compile_timeout_s=2,
            compile_cpu_s="90s",
            compile_memory_bytes="1GiB",
            compile_memory_total_bytes="3GiB",
            compile_memory_retry_bytes="2GiB",
            memory_bytes="32MiB",
            queue_length=9,  # A flag says otherwise, then as now.
            workers=3,
            redis_prefix="other:",
        )
        lines = configured.reload()
        assert changes(lines, "setting changed") == {
            "max_module_bytes": (512, "5MiB"),
            "max_artifact_bytes": ("256MiB", "8MiB"),
            "compile_timeout_s": (61, 2),
            "compile_cpu_s": (0, 90),
            "compile_memory_bytes": (0, "1GiB"),
            "compile_memory_total_bytes": (0, "3GiB"),
            "compile_memory_retry_bytes": (0, "2GiB"),
            "memory_bytes": ("64MiB", "32MiB"),
        }
        assert changes(lines, "setting needs a restart") == {
            "workers": (1, 3),
            "redis_prefix": ("wasm:", "other:"),
        }
        limits = client.capabilities().limits
        assert limits.module_bytes == 5 * MIB
        assert limits.artifact_bytes == 8 * MIB
        assert limits.compile_time.seconds == 2
        assert limits.compile_cpu_time.seconds == 90
        assert limits.compile_memory_bytes == 1024 * MIB
        assert limits.queue_length == 7
        assert configured.daemon.metric("jobs_memory_limit_bytes") == 3072 * MIB
        assert client.compile(too_large).header.size_bytes
        with pytest.raises(CompileTimeout, match="within 2 s"):
            client.compile(too_slow)
        memory = memory_of(client)
        assert memory.limit_bytes == 32 * MIB
        assert memory.bytes > 4096
        # Once more changes nothing, and what needs a restart is told again; so is a module
        # that would not fit into a message.
        configured.write(max_module_bytes="100MiB")
        lines = configured.reload()
        assert changes(lines, "setting changed") == {}
        assert changes(lines, "setting needs a restart").keys() == {
            *("workers", "redis_prefix", "max_module_bytes")
        }
        assert client.capabilities().limits.module_bytes == 5 * MIB
        # A smaller memory makes room at once.
        for limit_bytes in (4096, 0):
            configured.write(memory_bytes=limit_bytes, compile_timeout_s=61)
            configured.reload()
            assert memory_of(client).bytes <= limit_bytes
        # Reloads fail no call.
        with ThreadPoolExecutor(4) as callers:
            calls = [callers.submit(client.compile, wasm.adder(tag)) for tag in range(60)]
            for timeout_s in range(20, 26):
                configured.write(compile_timeout_s=timeout_s, memory_bytes=timeout_s * 1000)
                configured.reload()
            assert all(call.result().header.size_bytes for call in calls)


def memory_of(client: Client) -> pb.TierStats:
    return next(tier for tier in client.stats().tiers if tier.tier == "memory")


def test_limits_on_traffic_and_the_quarantine_are_taken_over(configured: Configured) -> None:
    daemon = configured.daemon
    # CPU time, or the module would not be blamed where the machine is busy.
    configured.write(max_calls=1, caller_timeout_s=5, compile_cpu_s=1, max_module_bytes="5MiB")
    lines = configured.reload()
    assert changes(lines, "setting needs a restart") == {}
    with RawCaller(daemon) as slow, RawCaller(daemon) as other:
        stream = slow.begin(COMPILE, MIB)
        eventually(lambda: daemon.metric("calls") == 1, "it does not begin")
        refused = other.wait(other.begin(COMPILE, MIB))
        assert "the daemon is serving 1 calls" in refused["grpc-message"]
        assert "did not arrive within 5 s" in slow.wait(stream)["grpc-message"]
    configured.write(receive_bytes="64MiB")
    assert len(changes(configured.reload(), "setting changed")) == 1
    harmful = wasm.nested_blocks(1_000_000)
    with daemon.client(max_attempts=1) as client:
        with pytest.raises(CompileTimeout):
            client.compile(harmful)
        with pytest.raises(ModuleQuarantined):
            client.compile(harmful)
        configured.write(quarantine_s=0)
        configured.reload()
        with pytest.raises(CompileTimeout):
            client.compile(harmful)


def test_jobs_that_wait_for_memory_start_when_a_reload_grants_it(
    engines: Installed, tmp_path: Path
) -> None:
    little = {"compile_memory_bytes": "600MiB", "compile_memory_total_bytes": "600MiB"}
    configured = with_settings(tmp_path, "--workers", "2", compile_timeout_s=600, **little)
    daemon = configured.daemon
    with (
        daemon,
        daemon.client(timeout_s=300, max_attempts=1) as client,
        ThreadPoolExecutor(2) as threads,
    ):
        first = threads.submit(client.compile, wasm.nested_blocks(1_000_000))
        job = busy_job(daemon.process.pid)
        assert stopped(job)
        try:
            second = threads.submit(client.compile, wasm.adder(2))
            waiting = partial(daemon.metric, "queue_for_memory", engine="wasmer-1.1.0")
            eventually(lambda: waiting() == 1, "it does not wait")
            configured.write(compile_memory_total_bytes="2GiB")
            configured.reload()
            assert second.result(60).header.size_bytes > 0
            assert not first.done()
        finally:
            send(signal.SIGKILL, job)
        with pytest.raises(CompilerCrashed):
            first.result()


def test_a_file_of_tokens_is_taken_over_and_a_missing_one_opens_nothing(
    configured: Configured, tmp_path: Path
) -> None:
    file = tmp_path / "tokens.json"
    with Stubs(configured.daemon.address) as stubs:
        assert stubs.capabilities() == ""
        configured.write(tokens_file=str(file))
        [failed] = [line for line in configured.reload() if line["event"] == FAILED]
        assert f"cannot use tokens file {file}: there is no such file" in failed["cause"]
        assert stubs.capabilities() == "CREDENTIALS_MISSING"
        state = configured.daemon.state_dir
        text = token_command(state, "add", "ci", "--role", "read", "--tokens-file", str(file))
        eventually(lambda: stubs.capabilities(bearer(text)) == "", "it is not read")
        file.unlink()
        configured.daemon.wait_for_log("cannot read changed files")
        assert stubs.capabilities(bearer(text)) == ""
        assert stubs.capabilities() == "CREDENTIALS_MISSING"


BROKEN = {
    "compile_timeout_s = ": "not valid TOML",
    'compile_timeout_s = "soon"\nworkers = -1\nmemory_bytes = 0': "soon",
    "compile_timeout = 3": "did you mean compile_timeout_s",
    "": "cannot read",
}


def test_what_cannot_be_used_holds_back_nothing_else(engines: Installed, tmp_path: Path) -> None:
    """Neither settings that cannot be used hold back keys, nor keys settings."""
    one = with_settings(tmp_path, compile_timeout_s=61)
    with one.daemon, one.daemon.client() as client:
        for content, words in BROKEN.items():
            one.file.write_text(content)
            if not content:
                one.file.unlink()
            [line] = one.reload()
            assert (line["level"], line["event"]) == ("error", FAILED)
            assert words in line["cause"]
            assert "\n" not in line["cause"]
            assert client.capabilities().limits.compile_time.seconds == 61
        keys = KeyDirectory.of(one.daemon.state_dir)
        before = keys.pair()
        keys.run("rotate")
        events = {line["event"]: line for line in one.reload()}
        assert events[FAILED]
        assert events["signing key changed"]["old"] == before.public.id
        for name, value in (("trusted_keys", ["nobody"]), ("signing_key", "secret-nonsense")):
            one.write(compile_timeout_s=len(name), **{"trusted_keys": [], name: value})
            lines = one.reload()
            [failed] = [line for line in lines if line["event"] == FAILED]
            assert f"WASMKILN_{name.upper()}" in failed["cause"]
            assert "compile_timeout_s" in changes(lines, "setting changed")
            assert client.capabilities().limits.compile_time.seconds == len(name)
            assert client.compile(wasm.adder(1)).header.size_bytes
    assert "secret-nonsense" not in one.daemon.log


def test_a_hang_up_before_the_daemon_is_there_waits_for_it(
    engines: Installed, tmp_path: Path
) -> None:
    state = fresh_state(tmp_path / "state", engines=["wasmer-1.1.0"])
    process = begin_to_serve(state, "--redis-url", "none")
    eventually(lambda: blocks_hang_ups(process.pid), "it does not begin")
    process.send_signal(signal.SIGHUP)
    events = []
    with process:
        for line in process.stderr or ():
            events.append(json.loads(line)["event"])
            if events[-1] == "reloaded":
                process.terminate()
    assert process.returncode == 0, events
    assert events.index("ready") < events.index("reloaded")


def blocks_hang_ups(pid: int) -> bool:
    [mask] = re.findall(r"SigBlk:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())
    return bool(int(mask, 16) & 1 << signal.SIGHUP - 1)


def test_the_log_and_the_grace(engines: Installed, tmp_path: Path) -> None:
    one = with_settings(tmp_path, log_format="json")
    with one.daemon as daemon, daemon.client(max_attempts=1) as client:

        def reload(**settings: object) -> None:
            """Return once all is in force: a change is told before it counts."""
            about = {"what": "settings", "outcome": "ok"}
            before = daemon.metric("reloads_total", **about)
            one.write(**settings)
            daemon.process.send_signal(signal.SIGHUP)
            eventually(lambda: daemon.metric("reloads_total", **about) > before, "not heard")

        reload(log_level="debug", log_format="text")
        daemon.wait_for_log("reloaded")
        seen = len(daemon.log_lines)
        header = client.compile(wasm.adder(1)).header
        daemon.wait_for_log(header.module_sha256)
        assert not [line for line in daemon.log_lines[seen:] if line.startswith("{")]
        reload(log_level="error", shutdown_grace_s=0)
        # Neither the call nor its compilation is logged any more.
        header = client.compile(wasm.adder(2)).header
        assert client.drain().grace.ToNanoseconds() == 0
        assert daemon.process.wait(120) == 0
    assert header.module_sha256 not in daemon.log


def test_a_new_certificate_authority_of_redis_is_taken_over(
    engines: Installed, tmp_path: Path
) -> None:
    old, new = certificates(tmp_path / "old"), certificates(tmp_path / "new")
    ca_file = tmp_path / "ca.crt"
    ca_file.write_bytes(old.ca_file.read_bytes())
    [port] = free_ports(1)

    def server(pems: Certificates, name: str) -> AbstractContextManager[RedisServer]:
        tls = f"--tls-port {port} --tls-auth-clients no --tls-ca-cert-file {pems.ca_file}"
        tls += f" --tls-cert-file {pems.cert_file} --tls-key-file {pems.key_file}"
        return redis_server(binary_of("redis-server"), tmp_path / name, tls.split())

    url = f"rediss://127.0.0.1:{port}"
    with contextlib.ExitStack() as stack:
        before = stack.enter_context(server(old, "before"))
        one = with_settings(tmp_path, redis_url=url, redis_ca_file=str(ca_file))
        with one.daemon, one.daemon.client() as client:
            client.compile(wasm.adder(70))
            settled(client)
            before.process.kill()
            before.process.wait()
            stack.enter_context(server(new, "after"))
            # Whom it does not know it does not trust.
            eventually(lambda: "certificate" in client.stats().redis_detail, "it is believed", 30)
            ca_file.write_text("no certificate")
            [line] = [each for each in one.reload() if each["event"] == FAILED]
            assert "is not a PEM certificate" in line["cause"]
            ca_file.write_bytes(new.ca_file.read_bytes())
            one.reload()
            eventually(lambda: client.stats().redis_up, "the new authority is not believed", 30)
            client.compile(wasm.adder(71))
            settled(client)
            client.evict(all=True, tier="memory")
            assert client.compile(wasm.adder(71)).header.origin == REDIS


def test_a_key_in_the_file_takes_over_without_being_shown(
    engines: Installed, tmp_path: Path
) -> None:
    first, second = KeyPair(), KeyPair()
    one = with_settings(tmp_path, signing_key=first.base64)
    with one.daemon, one.daemon.client(trusted_keys=second.public.hex) as client:
        with pytest.raises(AttestationInvalid):
            client.compile(wasm.adder(1))
        one.write(signing_key=second.base64, trusted_keys=[first.public.hex])
        lines = one.reload()
        [signing] = [line for line in lines if line["event"] == "signing key changed"]
        assert (signing["old"], signing["new"]) == (first.public.id, second.public.id)
        assert "signing_key" in changes(lines, "setting changed")
        assert client.compile(wasm.adder(2)).header.size_bytes
    for secret in (first.base64, second.base64):
        assert secret not in one.daemon.log
        assert secret not in one.daemon.banner
