"""The `wasmkiln` command against the fake daemon."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import grpc
import pytest
from click.testing import CliRunner, Result
from grpc_health.v1 import health_pb2
from wasmkiln import Artifact
from wasmkiln.cli.app import Exit, app

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.unit.client.fake_daemon import FakeDaemon, Refusal

WASM = b"\0asm\x01\0\0\0"
DIGEST = hashlib.sha256(WASM).hexdigest()


@pytest.fixture
def run(
    daemon: FakeDaemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Result]:
    """Runs the command in an empty folder, with the daemon's address in the environment."""
    monkeypatch.setenv("WASMKILN_ADDRESS", daemon.address)
    monkeypatch.setenv("WASMKILN_TIMEOUT_S", "10")
    monkeypatch.chdir(tmp_path)

    def invoke(*arguments: str) -> Result:
        return CliRunner().invoke(app, arguments)

    return invoke


@pytest.fixture
def modules(tmp_path: Path) -> list[str]:
    """Three modules in the current folder, and something else."""
    names = ["a.wasm", "b.wasm", "c.wasm"]
    for name in names:
        (tmp_path / name).write_bytes(WASM + name.encode())
    (tmp_path / "notes.txt").write_text("no module")
    return names


def document(result: Result) -> Any:
    """The one JSON document of stdout."""
    assert result.stdout.count("\n") == 1
    return json.loads(result.stdout)


# --- commands ------------------------------------------------------------------------------


def test_load(run: Callable[..., Result], daemon: FakeDaemon, modules: list[str]) -> None:
    result = run("load", *modules, "--engine", "wasmtime")
    assert result.exit_code == 0, result.output
    assert all(name in result.stdout for name in modules)
    assert hashlib.sha256(WASM + b"a.wasm").hexdigest() in result.stdout
    requests = daemon.requests("Load")
    assert {r.engine for r in requests} == {"wasmtime"}
    assert all(r.expected_sha256 == hashlib.sha256(r.module).hexdigest() for r in requests)


def test_load_json(run: Callable[..., Result], modules: list[str]) -> None:
    [module] = document(run("load", "--json", "a.wasm"))["modules"]
    assert module["file"] == "a.wasm"
    assert module["size_bytes"] == 14  # a number, where protobuf's JSON has a text
    assert module["kind"] == "KIND_CORE_MODULE"
    assert module["already_loaded"] is False


def test_compile_shows_and_writes_nothing(
    run: Callable[..., Result], daemon: FakeDaemon, modules: list[str], tmp_path: Path
) -> None:
    before = sorted(tmp_path.iterdir())
    result = run("compile", "a.wasm", "--cpu", "x86-64-v3", "--set", "fuel=true", "--no-cache")
    assert result.exit_code == 0, result.output
    for text in ("a.wasm", "wasmtime-50.0.1", "x86-64-v3", "compiled", "11.7 KiB", "420 ms"):
        assert text in result.stdout
    assert sorted(tmp_path.iterdir()) == before
    request = daemon.requests("Compile")[-1]
    assert (request.omit_artifact, request.skip_cache_lookup) == (True, True)
    assert dict(request.settings) == {"fuel": "true"}


def test_compile_to_a_file(
    run: Callable[..., Result], daemon: FakeDaemon, modules: list[str]
) -> None:
    [one] = document(run("compile", "a.wasm", "-o", "out.cwasm", "--json"))["artifacts"]
    assert one["saved_to"] == "out.cwasm"
    assert one["compile_time_s"] == 0.42
    assert one["origin"] == "ORIGIN_COMPILED"
    assert Artifact.open("out.cwasm").bytes == daemon.artifact


def test_compile_several_to_a_folder(run: Callable[..., Result], modules: list[str]) -> None:
    result = run("compile", *modules, "-o", "out")
    assert result.exit_code == 0, result.output
    assert sorted(p.name for p in Path("out").glob("*.cwasm")) == [
        "a.wasmtime-50.0.1.cwasm",
        "b.wasmtime-50.0.1.cwasm",
        "c.wasmtime-50.0.1.cwasm",
    ]


def test_compile_by_digest(
    run: Callable[..., Result], daemon: FakeDaemon, modules: list[str]
) -> None:
    daemon.modules[DIGEST] = WASM
    Path("out").mkdir()
    assert run("compile", DIGEST, "-o", "out").exit_code == 0
    assert Path("out", f"{DIGEST}.wasmtime-50.0.1.cwasm").exists()


def test_two_modules_never_go_to_one_file(
    run: Callable[..., Result], daemon: FakeDaemon, modules: list[str]
) -> None:
    Path("sub").mkdir()
    Path("sub/a.wasm").write_bytes(WASM)
    result = run("compile", "a.wasm", "sub/a.wasm", "-o", "out")
    assert result.exit_code == Exit.USAGE
    assert "several modules would be written as a" in result.stderr
    assert run("compile", *modules, "-o", "notes.txt").exit_code == Exit.USAGE
    assert not daemon.calls


def test_stats(run: Callable[..., Result]) -> None:
    result = run("stats")
    assert result.exit_code == 0, result.output
    for text in ("9.9.9", "75.0%", "embedded", "memory", "1024.0 GiB", "wasmtime-50.0.1"):
        assert text in result.stdout
    for text in (
        "team-a",
        "token:ci",
        "stored_bytes_per_hour",
        "1,048,576",
        "536,870,912",
        "wasmtime-49.0.0",
    ):
        assert text in result.stdout
    answer = document(run("stats", "--json"))
    assert answer["uptime_s"] == 90
    assert answer["tiers"][0]["hits"] == 3
    assert answer["tiers"][0]["get_latency"] is None


def test_engines(run: Callable[..., Result]) -> None:
    result = run("engines")
    assert re.search(r"engine +default .* host .*\n.*\n wasmer-1\.1\.0 +yes ", result.stdout)
    assert re.search(r" x86_64-unknown-linux-gnu +yes ", result.stdout)
    assert re.search(r" not served +cause\n.*\n wasmtime-1.0.0 +it is broken\n", result.stdout)
    result = run("engines", "--settings")
    assert "opt_level" in result.stdout
    assert "none, speed" in result.stdout
    result = run("engines", "--isolation")
    assert re.search(r" wasmer-1.1.0 +no ", result.stdout)
    assert re.search(r" fork +no\n", result.stdout)
    assert re.search(r" seccomp +missing +the kernel has none ", result.stdout)
    assert document(run("engines", "--json"))["engines"][0]["kinds"] == ["KIND_CORE_MODULE"]


def test_find_missing(run: Callable[..., Result], daemon: FakeDaemon, modules: list[str]) -> None:
    daemon.warm = {(hashlib.sha256(WASM + b"a.wasm").hexdigest(), "wasmer")}
    arguments = ("find-missing", "a.wasm", DIGEST, "--engine", "wasmer", "--engine", "wasmtime")
    answer = document(run(*arguments, "--json"))
    assert answer["asked"] == 4
    assert [(m["source"], m["engine"]) for m in answer["missing"]] == [
        ("a.wasm", "wasmtime"),
        (DIGEST, "wasmer"),
        (DIGEST, "wasmtime"),
    ]
    assert "3 of 4 artifacts missing" in run(*arguments).stdout
    daemon.warm.add((DIGEST, ""))
    assert run("find-missing", DIGEST).stdout == "none of 1 artifacts missing\n"


def test_evict(run: Callable[..., Result], daemon: FakeDaemon, modules: list[str]) -> None:
    result = run("evict", "--module", "a.wasm", "--tier", "memory")
    assert result.stdout == "evicted 2 artifacts, 1 modules, 2.0 KiB\n"
    assert document(run("evict", "--all", "--yes", "--json"))["bytes"] == 2048
    module, everything = daemon.requests("Evict")
    assert (module.module_sha256, module.tier) == (
        hashlib.sha256(WASM + b"a.wasm").hexdigest(),
        1,
    )
    assert everything.all


def test_evict_asks_before_it_removes_much(run: Callable[..., Result], daemon: FakeDaemon) -> None:
    for scope in (("--all",), ("--engine", "wasmer-1.1.0")):
        result = run("evict", *scope)
        assert result.exit_code == Exit.USAGE
        assert "--yes" in result.stderr
    assert run("evict", "--all", "--engine", "x", "--yes").exit_code == Exit.USAGE
    assert not daemon.calls


def test_evict_with_a_tier_that_did_not_answer(
    run: Callable[..., Result], daemon: FakeDaemon
) -> None:
    daemon.unreachable_tiers = ["redis"]
    result = run("evict", "--all", "--yes")
    assert result.exit_code == Exit.NOT_NOW
    assert "redis did not answer" in result.stderr


def test_pins(run: Callable[..., Result], daemon: FakeDaemon, modules: list[str]) -> None:
    digest = hashlib.sha256(WASM + b"a.wasm").hexdigest()
    added = run("pin", "add", "a.wasm", "ab" * 32)
    assert added.exit_code == 0, added.output
    assert digest in added.stdout
    assert "2.0 KiB" in added.stdout
    [first, second] = document(run("pin", "add", "a.wasm", "ab" * 32, "--json"))["pins"]
    assert (first["module_sha256"], second["module_sha256"]) == (digest, "ab" * 32)
    assert first["tiers"] == [{"tier": "memory", "artifacts": 2, "module": True, "bytes": 2048}]
    assert "ab" * 32 in run("pin", "ls").stdout
    assert run("pin", "rm", "a.wasm").stdout == "unpinned 1 of 1\n"
    assert run("pin", "add").exit_code == Exit.USAGE
    assert [request.module_sha256 for request in daemon.requests("Unpin")] == [digest]


def test_a_pin_that_other_daemons_do_not_know_yet(
    run: Callable[..., Result], daemon: FakeDaemon, modules: list[str]
) -> None:
    daemon.unreachable_tiers = ["redis"]
    for command in (("pin", "add", "a.wasm"), ("pin", "rm", "a.wasm")):
        result = run(*command)
        assert result.exit_code == Exit.NOT_NOW
        assert "redis did not answer" in result.stderr


def test_drain(run: Callable[..., Result], daemon: FakeDaemon) -> None:
    result = run("drain", "--grace", "30")
    assert result.stdout == (
        "draining: 3 calls, 1 compilations; the daemon waits at most 30.00 s for them\n"
    )
    answer = document(run("drain", "--json", "--grace", "0.5"))
    assert answer == {"grace_s": 0.5, "calls": 3, "flights": 1}
    assert run("drain", "--grace", "-1").exit_code == Exit.USAGE
    assert len(daemon.requests("Drain")) == 2


def test_warm_compiles_only_what_is_missing(
    run: Callable[..., Result], daemon: FakeDaemon, modules: list[str]
) -> None:
    Path("deep").mkdir()
    Path("deep/d.wasm").write_bytes(WASM)
    daemon.warm = {(hashlib.sha256(WASM + b"a.wasm").hexdigest(), "wasmer")}
    answer = document(
        run("warm", ".", "--engine", "wasmer", "--engine", "wasmtime", "--jobs", "2", "--json")
    )
    assert (answer["modules"], answer["warm_before"], answer["compiled"]) == (4, 1, 7)
    assert (answer["failed"], answer["uploaded"]) == (0, 4)
    requests = daemon.requests("Compile")
    assert all(request.omit_artifact for request in requests)
    assert len({(r.sha256, r.engine) for r in requests if r.sha256}) == 7
    compiling = [method == "Compile" for method, _ in daemon.calls]
    assert [bool(priority) for priority in daemon.priorities] == compiling
    assert set(daemon.priorities) == {"", "background"}
    result = run("warm", ".", "--no-recursive")
    assert "3 modules: 0 warm before, 3 compiled, 0 failed" in result.stdout


def test_warm_lists_failures_and_goes_on(
    run: Callable[..., Result],
    daemon: FakeDaemon,
    modules: list[str],
    refusal: type[Refusal],
) -> None:
    daemon.refuse_module[WASM + b"b.wasm"] = refusal(
        grpc.StatusCode.FAILED_PRECONDITION, "MODULE_QUARANTINED", "it crashed before"
    )
    result = run("warm", ".", "--json")
    assert result.exit_code == Exit.REFUSED
    answer = document(result)
    assert (answer["compiled"], answer["failed"]) == (2, 1)
    assert answer["errors"][0]["source"] == "b.wasm"
    assert answer["errors"][0]["reason"] == "MODULE_QUARANTINED"
    assert "error: b.wasm: it crashed before\n" in result.stderr


def test_warm_passes_over_no_module_that_is_not_there(
    run: Callable[..., Result], modules: list[str]
) -> None:
    Path("gone.wasm").symlink_to("nowhere")
    result = run("warm", ".", "--json")
    assert result.exit_code == Exit.REFUSED
    answer = document(result)
    assert (answer["modules"], answer["compiled"], answer["failed"]) == (4, 3, 1)
    assert "gone.wasm: No such file or directory" in result.stderr


def test_warm_passes_over_no_folder_that_it_may_not_read(
    run: Callable[..., Result], modules: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("sub").mkdir()
    scandir = os.scandir

    def refusing(path: str) -> Any:
        if path.endswith("sub"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)  # The tests may run as root, who may read all.
    result = run("warm", ".")
    assert result.exit_code == Exit.USAGE
    assert "cannot read the folder sub: Permission denied" in result.stderr


def test_warm_of_a_folder_without_modules(run: Callable[..., Result]) -> None:
    result = run("warm", ".")
    assert result.exit_code == Exit.USAGE
    assert "no *.wasm file" in result.stderr


def test_health(run: Callable[..., Result], daemon: FakeDaemon) -> None:
    daemon.health.set("", health_pb2.HealthCheckResponse.SERVING)
    daemon.health.set("x", health_pb2.HealthCheckResponse.NOT_SERVING)
    result = run("health")
    assert (result.stdout, result.exit_code) == ("SERVING\n", Exit.OK)
    result = run("health", "x", "--json")
    assert result.exit_code == Exit.NOT_NOW
    assert document(result) == {
        "address": daemon.address,
        "service": "x",
        "status": "NOT_SERVING",
    }
    assert run("health", "unheard-of").exit_code == Exit.REFUSED


# --- failures ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "reason", "exit_code"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, "MODULE_INVALID", Exit.REFUSED),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "COMPILE_TIMEOUT", Exit.REFUSED),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "COMPILE_QUEUE_FULL", Exit.NOT_NOW),
        (grpc.StatusCode.FAILED_PRECONDITION, "MODULE_QUARANTINED", Exit.NOT_NOW),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "", Exit.DEADLINE),
    ],
)
def test_exit_codes(
    run: Callable[..., Result],
    daemon: FakeDaemon,
    refusal: type[Refusal],
    code: grpc.StatusCode,
    reason: str,
    exit_code: Exit,
) -> None:
    daemon.refuse(refusal(code, reason))
    result = run("stats")
    assert result.exit_code == exit_code
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1


def test_draining_is_not_now(
    run: Callable[..., Result], daemon: FakeDaemon, refusal: type[Refusal]
) -> None:
    daemon.refuse(*[refusal(grpc.StatusCode.UNAVAILABLE, "SERVER_DRAINING")] * 3)
    assert run("stats").exit_code == Exit.NOT_NOW


def test_no_daemon(run: Callable[..., Result], modules: list[str]) -> None:
    result = run("--address", "127.0.0.1:1", "load", *modules)
    assert result.exit_code == Exit.UNREACHABLE
    # One sentence and not one for each module.
    assert result.stderr.count("no daemon answers at 127.0.0.1:1") == 1


def test_the_deadline_option(run: Callable[..., Result], daemon: FakeDaemon) -> None:
    daemon.hang.clear()
    result = run("--timeout", "0.2", "stats")
    assert result.exit_code == Exit.DEADLINE
    assert "within 0.2 s" in result.stderr


def test_an_error_in_json(
    run: Callable[..., Result], daemon: FakeDaemon, refusal: type[Refusal], modules: list[str]
) -> None:
    daemon.refuse_module[WASM + b"b.wasm"] = refusal(
        grpc.StatusCode.INVALID_ARGUMENT,
        "MODULE_INVALID",
        "bad\n\nCaused by:\n    \x1b[31mevil\x1b[0m name",
        {"offset": "12"},
    )
    result = run("--json", "load", *modules)
    assert result.exit_code == Exit.REFUSED
    answer = document(result)
    assert [m["file"] for m in answer["modules"]] == ["a.wasm", "c.wasm"]
    assert answer["errors"][0]["metadata"] == {"offset": "12"}
    sentence, line = result.stderr.splitlines()
    assert sentence == r"error: b.wasm: bad Caused by: \x1b[31mevil\x1b[0m name"
    error = json.loads(line)["error"]
    assert (error["code"], error["reason"]) == ("INVALID_ARGUMENT", "MODULE_INVALID")


@pytest.mark.parametrize(
    "arguments",
    [
        ("load", "none.wasm"),
        ("load",),
        ("compile", "none.wasm"),
        ("compile", "a.wasm", "--set", "novalue"),
        ("warm", "nowhere"),
        ("stats", "--timeout", "0"),
        ("--address", "http://x:1", "stats"),
        ("nothing",),
    ],
)
def test_wrong_usage(
    run: Callable[..., Result],
    daemon: FakeDaemon,
    modules: list[str],
    arguments: tuple[str, ...],
) -> None:
    result = run(*arguments)
    assert result.exit_code == Exit.USAGE
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert not daemon.calls


def test_wrong_usage_in_json(run: Callable[..., Result]) -> None:
    result = run("--json", "evict")
    assert result.exit_code == Exit.USAGE
    message = json.loads(result.stderr.splitlines()[-1])["error"]["message"]
    assert message == "give one of --module, --engine and --all"


def test_an_impossible_environment_is_wrong_usage(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WASMKILN_TIMEOUT_S", "soon")
    result = run("stats")
    assert result.exit_code == Exit.USAGE
    assert "WASMKILN_TIMEOUT_S" in result.stderr


def test_a_folder_that_cannot_be_written(run: Callable[..., Result], modules: list[str]) -> None:
    result = run("compile", "a.wasm", "-o", "no/such/folder/out")
    assert result.exit_code == Exit.REFUSED
    assert result.stderr == "error: no/such/folder/out.json: No such file or directory\n"


def test_a_defect_of_ours_is_a_sentence_and_with_debug_a_traceback(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wasmkiln.cli.commands._stats", lambda *_: 1 // 0)
    sentence = "error: unexpected ZeroDivisionError: integer division or modulo by zero\n"
    result = run("stats")
    assert (result.exit_code, result.stderr) == (Exit.REFUSED, sentence)
    for asked in (("--debug", "stats"), ("stats", "--debug")):
        result = run(*asked)
        assert result.exit_code == Exit.REFUSED
        assert "Traceback (most recent call last)" in result.stderr
        assert "lambda *_: 1 // 0" in result.stderr
        assert result.stderr.endswith(sentence)


def test_help_tells_every_exit_code_and_command(run: Callable[..., Result]) -> None:
    text = run("--help").stdout
    for code in Exit:
        assert f"\n    {code.value} " in text
    assert isinstance(app, click.Group)
    for name in (
        "load",
        "compile",
        "stats",
        "engines",
        "find-missing",
        "evict",
        "warm",
        "drain",
        "health",
    ):
        assert f"\n  {name} " in text
        assert "--json" in run(name, "--help").stdout


# --- a process of its own: signals and pipes ------------------------------------------------


def process(daemon: FakeDaemon, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", "from wasmkiln.cli import main; main()", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "WASMKILN_ADDRESS": daemon.address},
    )


def _hang(daemon: FakeDaemon, messages: list[Any]) -> list[Any]:
    daemon.hang.clear()
    daemon.hang.wait(10)
    return messages


@pytest.mark.parametrize("command", ["stats", "warm"])
def test_an_interrupt_exits_130(
    daemon: FakeDaemon, tmp_path: Path, command: str, modules: list[str]
) -> None:
    arguments = {"stats": ["stats"], "warm": ["warm", str(tmp_path)]}[command]
    if command == "stats":
        daemon.hang.clear()
    else:  # FindMissing answers, the compiles hang
        daemon.tamper = partial(_hang, daemon)
    with process(daemon, *arguments) as running:
        assert daemon.entered.wait(60)
        while command == "warm" and daemon.hang.is_set():
            time.sleep(0.01)
        running.send_signal(signal.SIGINT)
        # If it is not seen, the calls end after 10 s, and so does the command, with another code.
        _, errors = running.communicate(timeout=60)
    assert running.returncode == Exit.INTERRUPTED
    assert errors == "error: interrupted\n"


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_a_reader_that_has_seen_enough_is_no_error(daemon: FakeDaemon, form: list[str]) -> None:
    with process(daemon, "stats", "--watch", "--interval", "0.1", *form) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        first = running.stdout.readline()
        running.stdout.close()
        errors = running.stderr.read()
        assert running.wait(10) == Exit.OK
    assert errors == ""
    if form:
        assert json.loads(first)["version"] == "9.9.9"
