"""The `wasmkiln` command against the fake daemon: what it prints, asks and exits with."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import click
import grpc
import pytest
import wasmkiln
from click.testing import CliRunner, Result
from grpc_health.v1 import health_pb2
from wasmkiln import Artifact
from wasmkiln.cli.app import Exit, app

from tests.unit.client.fake_daemon import FakeDaemon, Refusal

WASM = b"\0asm\x01\0\0\0"
DIGEST = hashlib.sha256(WASM).hexdigest()
A_DIGEST, B_DIGEST = (hashlib.sha256(WASM + name).hexdigest() for name in (b"a.wasm", b"b.wasm"))
Run = Callable[..., Result]


@pytest.fixture
def run(daemon: FakeDaemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the command in a folder with three modules."""
    monkeypatch.setenv("WASMKILN_ADDRESS", daemon.address)
    monkeypatch.setenv("WASMKILN_TIMEOUT_S", "10")
    monkeypatch.chdir(tmp_path)
    for name in ("a.wasm", "b.wasm", "c.wasm"):
        Path(name).write_bytes(WASM + name.encode())
    return lambda *arguments: CliRunner().invoke(app, arguments)


def document(result: Result) -> Any:
    """The one JSON document of stdout."""
    assert result.stdout.count("\n") == 1, result.output
    return json.loads(result.stdout)


# --- commands ------------------------------------------------------------------------------


def test_load(run: Run, daemon: FakeDaemon) -> None:
    result = run("load", "a.wasm", "b.wasm", "--engine", "wasmtime")
    assert result.exit_code == 0, result.output
    assert re.search(rf"a\.wasm +{A_DIGEST} .*\n b\.wasm ", result.stdout)
    requests = daemon.requests("Load")
    assert {r.engine for r in requests} == {"wasmtime"}
    assert [r.module for r in requests] == [WASM + b"a.wasm", WASM + b"b.wasm"]
    [module] = document(run("load", "--json", "c.wasm"))["modules"]
    shown = (module["file"], module["size_bytes"], module["kind"], module["already_loaded"])
    # A size is a number, where protobuf's JSON has a text.
    assert shown == ("c.wasm", 14, "KIND_CORE_MODULE", False)


def test_compile(run: Run, daemon: FakeDaemon, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    result = run("compile", "a.wasm", "--cpu", "x86-64-v3", "--set", "fuel=true", "--no-cache")
    assert result.exit_code == 0, result.output
    for text in ("a.wasm", "wasmtime-50.0.1", "x86-64-v3", "compiled", "11.7 KiB", "420 ms"):
        assert text in result.stdout
    assert sorted(tmp_path.iterdir()) == before
    request = daemon.requests("Compile")[-1]
    assert (request.omit_artifact, request.skip_cache_lookup) == (True, True)
    assert dict(request.settings) == {"fuel": "true"}
    [one] = document(run("compile", "a.wasm", "-o", "out.cwasm", "--json"))["artifacts"]
    shown = (one["saved_to"], one["compile_time_s"], one["origin"])
    assert shown == ("out.cwasm", 0.42, "ORIGIN_COMPILED")
    assert Artifact.open("out.cwasm").bytes == daemon.artifact
    result = run("compile", "a.wasm", "-o", "no/such/folder/out")
    assert result.stderr == "error: no/such/folder/out.json: No such file or directory\n"
    assert result.exit_code == Exit.REFUSED


def test_stats(run: Run) -> None:
    shown = run("stats").stdout
    for text in (
        *("9.9.9", "75.0%", "embedded", "memory", "1024.0 GiB", "wasmtime-50.0.1", "team-a"),
        *("token:ci", "stored_bytes_per_hour", "1,048,576", "536,870,912", "wasmtime-49.0.0"),
    ):
        assert text in shown
    answer = document(run("stats", "--json"))
    assert answer["uptime_s"] == 90
    assert (answer["tiers"][0]["hits"], answer["tiers"][0]["get_latency"]) == (3, None)


def test_engines(run: Run) -> None:
    shown = run("engines").stdout
    assert re.search(r"engine +default .* host .*\n.*\n wasmer-1\.1\.0 +yes ", shown)
    assert re.search(r" x86_64-unknown-linux-gnu +yes ", shown)
    assert re.search(r" not served +cause\n.*\n wasmtime-1.0.0 +it is broken\n", shown)
    assert re.search(r"opt_level +speed +none, speed", run("engines", "--settings").stdout)
    shown = run("engines", "--isolation").stdout
    assert re.search(r" wasmer-1.1.0 +no ", shown)
    assert re.search(r" fork +no\n", shown)
    assert re.search(r" seccomp +missing +the kernel has none ", shown)
    assert document(run("engines", "--json"))["engines"][0]["kinds"] == ["KIND_CORE_MODULE"]


def test_find_missing(run: Run, daemon: FakeDaemon) -> None:
    daemon.warm = {(A_DIGEST, "wasmer")}
    arguments = ("find-missing", "a.wasm", DIGEST, "--engine", "wasmer", "--engine", "wasmtime")
    answer = document(run(*arguments, "--json"))
    assert answer["asked"] == 4
    assert [(m["source"], m["engine"]) for m in answer["missing"]] == [
        *(("a.wasm", "wasmtime"), (DIGEST, "wasmer"), (DIGEST, "wasmtime"))
    ]
    assert "3 of 4 artifacts missing" in run(*arguments).stdout
    daemon.warm.add((DIGEST, ""))
    assert run("find-missing", DIGEST).stdout == "none of 1 artifacts missing\n"


def test_evict(run: Run, daemon: FakeDaemon) -> None:
    # It asks before it removes much.
    for scope in (("--all",), ("--engine", "wasmer-1.1.0")):
        result = run("evict", *scope)
        assert result.exit_code == Exit.USAGE
        assert "--yes" in result.stderr
    assert not daemon.calls
    result = run("evict", "--module", "a.wasm", "--tier", "memory")
    assert result.stdout == "evicted 2 artifacts, 1 modules, 2.0 KiB\n"
    assert document(run("evict", "--all", "--yes", "--json"))["bytes"] == 2048
    module, everything = daemon.requests("Evict")
    assert (module.module_sha256, module.tier, everything.all) == (A_DIGEST, 1, True)


def test_pins(run: Run, daemon: FakeDaemon) -> None:
    shown = run("pin", "add", "a.wasm", "ab" * 32).stdout
    assert re.search(rf"{A_DIGEST} .* 2\.0 KiB", shown)
    [first, second] = document(run("pin", "add", "a.wasm", "ab" * 32, "--json"))["pins"]
    assert (first["module_sha256"], second["module_sha256"]) == (A_DIGEST, "ab" * 32)
    assert first["tiers"] == [{"tier": "memory", "artifacts": 2, "module": True, "bytes": 2048}]
    assert "ab" * 32 in run("pin", "ls").stdout
    assert run("pin", "rm", "a.wasm").stdout == "unpinned 1 of 1\n"
    assert [request.module_sha256 for request in daemon.requests("Unpin")] == [A_DIGEST]
    # One that fails does not stop the others.
    for how, count in (("add", "pins"), ("rm", "removed")):
        daemon.refuse(Refusal(grpc.StatusCode.NOT_FOUND, "MODULE_NOT_LOADED"))
        result = run("pin", how, "a.wasm", "b.wasm", "--json")
        assert result.exit_code == Exit.REFUSED
        assert document(result)[count] in (1, [{**first, "module_sha256": B_DIGEST}])
        assert result.stderr.startswith("error: a.wasm: no\n")


def test_what_redis_did_not_take_is_no_success(run: Run, daemon: FakeDaemon) -> None:
    daemon.unreachable_tiers = ["redis"]
    for command in (("evict", "--all", "--yes"), ("pin", "add", "a.wasm"), ("pin", "rm", "a.wasm")):
        result = run(*command)
        assert result.exit_code == Exit.NOT_NOW
        assert "redis did not answer" in result.stderr


def test_jobs(run: Run, daemon: FakeDaemon) -> None:
    shown = run("jobs").stdout
    assert re.search(r" id +namespace +callers +module +engine +work +waited +ran +memory\n", shown)
    running = r" 5ff1 +team-a +token:ci, token:web +(ab){32} +wasmer-1\.1\.0 +compile"
    assert re.search(rf"{running} +0\.50 ms +21\.00 s +1\.0 GiB\n", shown)
    assert re.search(r" 5ff2 +- +- +- +- +validate +3\.00 s +- +-\n", shown)
    for where in (("jobs", "--json"), ("--json", "jobs")):
        [running_job, waiting] = document(run(*where))["jobs"]
        assert (running_job["callers"], running_job["ran_s"]) == (["token:ci", "token:web"], 21)
        assert waiting["ran_s"] is None
    told = run("jobs", "end", "5ff1")
    assert told.stdout == f"ended: compile {'ab' * 32} with wasmer-1.1.0\n"
    assert document(run("jobs", "end", "5ff2", "--json"))["job"]["work"] == "validate"
    gone = run("jobs", "end", "5ff3")
    assert (gone.exit_code, gone.stdout) == (Exit.REFUSED, "")
    assert "no such job" in gone.stderr
    gone = run("jobs", "end", "5ff3", "--json")
    assert (gone.exit_code, document(gone)) == (Exit.REFUSED, {"job": None})
    assert [request.id for request in daemon.requests("EndJob")] == ["5ff1", "5ff2", *["5ff3"] * 2]


def test_drain(run: Run, daemon: FakeDaemon) -> None:
    answer = document(run("drain", "--json", "--grace", "0.5"))
    assert answer == {"grace_s": 0.5, "calls": 3, "flights": 1}
    assert run("drain", "--grace", "30").stdout == (
        "draining: 3 calls, 1 compilations; the daemon waits at most 30.00 s for them\n"
    )
    assert document(run("drain", "--undo", "--json")) == {"undone": True}
    assert run("drain", "--undo").stdout == "the daemon accepts calls again\n"
    daemon.calls.clear()
    assert run("drain", "--undo").stdout == "the daemon was not draining\n"
    assert not daemon.requests("Drain")


def test_health(run: Run, daemon: FakeDaemon) -> None:
    daemon.health.set("", health_pb2.HealthCheckResponse.SERVING)
    daemon.health.set("x", health_pb2.HealthCheckResponse.NOT_SERVING)
    assert run("health").stdout == "SERVING\n"
    result = run("health", "x", "--json")
    assert result.exit_code == Exit.NOT_NOW
    told = {"address": daemon.address, "service": "x", "status": "NOT_SERVING"}
    assert document(result) == told
    assert run("health", "unheard-of").exit_code == Exit.REFUSED


# --- failures ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "reason", "exit_code"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, "MODULE_INVALID", Exit.REFUSED),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "COMPILE_TIMEOUT", Exit.REFUSED),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "COMPILE_QUEUE_FULL", Exit.NOT_NOW),
        (grpc.StatusCode.FAILED_PRECONDITION, "MODULE_QUARANTINED", Exit.NOT_NOW),
        (grpc.StatusCode.UNAVAILABLE, "SERVER_DRAINING", Exit.NOT_NOW),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "", Exit.DEADLINE),
    ],
)
def test_exit_codes(
    run: Run, daemon: FakeDaemon, code: grpc.StatusCode, reason: str, exit_code: Exit
) -> None:
    daemon.refuse(*[Refusal(code, reason)] * 3)
    result = run("stats")
    assert (result.exit_code, result.stdout) == (exit_code, "")
    assert re.fullmatch("error: .+\n", result.stderr)


def test_no_daemon_is_told_once_and_not_for_each_module(run: Run) -> None:
    result = run("--address", "127.0.0.1:1", "--timeout", "2", "load", "a.wasm", "b.wasm")
    assert result.exit_code == Exit.UNREACHABLE
    waiting, error = result.stderr.splitlines()
    assert re.fullmatch(
        r"no answer yet from 127\.0\.0\.1:1 \(CONNECTION_FAILED\): "
        r"trying again for up to 2 s \(Ctrl-C ends it\)",
        waiting,
    )
    assert error.startswith("error: a.wasm: no daemon answers at 127.0.0.1:1 (connection refused)")


def test_an_error_in_json(run: Run, daemon: FakeDaemon) -> None:
    message = "bad\n\nCaused by:\n    \x1b[31mevil\x1b[0m name"
    refusal = Refusal(grpc.StatusCode.INVALID_ARGUMENT, "MODULE_INVALID", message, {"offset": "12"})
    daemon.refuse_module[WASM + b"b.wasm"] = refusal
    result = run("--json", "load", "a.wasm", "b.wasm", "c.wasm")
    assert result.exit_code == Exit.REFUSED
    answer = document(result)
    assert [m["file"] for m in answer["modules"]] == ["a.wasm", "c.wasm"]
    assert answer["errors"][0]["metadata"] == {"offset": "12"}
    sentence, line = result.stderr.splitlines()
    assert sentence == r"error: b.wasm: bad Caused by: \x1b[31mevil\x1b[0m name"
    error = json.loads(line)["error"]
    assert (error["code"], error["reason"]) == ("INVALID_ARGUMENT", "MODULE_INVALID")


WRONG = """
load
load none.wasm
compile none.wasm
compile a.wasm --set novalue
compile a.wasm --max-artifact-bytes 0
compile a.wasm --max-artifact-bytes -5
compile a.wasm --max-artifact-bytes many
pin add
quarantine release
evict --all --engine x --yes
drain --grace -1
drain --grace nan
drain --grace inf
stats --timeout 0
stats --timeout nan
stats --timeout inf
evict --all
evict --engine x
drain --grace 1e300
--address http://x:1 stats
nothing
"""
HUGE = f"compile a.wasm --max-artifact-bytes {'9' * 5000}"


@pytest.mark.parametrize("words", [*WRONG.strip().splitlines(), HUGE])
def test_wrong_usage(run: Run, daemon: FakeDaemon, words: str) -> None:
    result = run(*words.split())
    assert (result.exit_code, result.stdout) == (Exit.USAGE, "")
    assert "Traceback" not in result.stderr
    assert not daemon.calls


def test_an_attestation_without_end_is_not_read_to_its_end(run: Run) -> None:
    result = run("verify", "a.wasm", "--key", "a" * 64, "--attestation", "/dev/zero")
    assert result.exit_code == Exit.REFUSED
    assert result.stderr == "error: /dev/zero has more than 1,048,576 bytes\n"


def test_wrong_usage_in_json(run: Run) -> None:
    result = run("--json", "evict")
    assert result.exit_code == Exit.USAGE
    message = json.loads(result.stderr.splitlines()[-1])["error"]["message"]
    assert message == "give one of --module, --engine and --all"


def test_an_impossible_environment_is_wrong_usage(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WASMKILN_TIMEOUT_S", "nan")
    result = run("stats")
    assert result.exit_code == Exit.USAGE
    assert "WASMKILN_TIMEOUT_S" in result.stderr


def test_a_defect_of_ours_is_a_sentence_and_with_debug_a_traceback(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wasmkiln.cli.commands.to_document", lambda *_: 1 // 0)
    sentence = "error: unexpected ZeroDivisionError: integer division or modulo by zero\n"
    result = run("stats")
    assert (result.exit_code, result.stderr) == (Exit.REFUSED, sentence)
    for asked in (("--debug", "stats"), ("stats", "--debug")):
        result = run(*asked)
        assert result.exit_code == Exit.REFUSED
        assert "Traceback (most recent call last)" in result.stderr
        assert "lambda *_: 1 // 0" in result.stderr
        assert result.stderr.endswith(sentence)


def test_help_tells_every_exit_code_and_command(run: Run) -> None:
    text = run("--help").stdout
    for code in Exit:
        assert f"\n    {code.value} " in text
    assert isinstance(app, click.Group)
    for name in app.list_commands(click.Context(app)):
        assert f"\n  {name} " in text
        assert "--json" in run(name, *(["ls"] if name in _GROUPS else []), "--help").stdout


_GROUPS = ("pin", "quarantine")


# --- a process of its own: signals, pipes, closed streams ------------------------------------


def process(daemon: FakeDaemon, *arguments: str, redirected: str = "") -> subprocess.Popen[str]:
    """The command; `redirected` is what a shell does with its streams."""
    command = [sys.executable, "-c", "from wasmkiln.cli import main; main()", *arguments]
    return subprocess.Popen(
        ["sh", "-c", f'exec "$@" {redirected}', "sh", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "WASMKILN_ADDRESS": daemon.address},
    )


def _hang(daemon: FakeDaemon, messages: list[Any]) -> list[Any]:
    daemon.hang.clear()
    daemon.hang.wait(10)
    return messages


def test_an_interrupt_exits_130(run: Run, daemon: FakeDaemon) -> None:
    daemon.tamper = partial(_hang, daemon)  # FindMissing answers, the compiles hang
    with process(daemon, "warm", ".") as running:
        assert daemon.entered.wait(60)
        while daemon.hang.is_set():
            time.sleep(0.01)
        running.send_signal(signal.SIGINT)
        # If it is not seen, the calls end after 10 s, and so does the command, with another code.
        _, errors = running.communicate(timeout=60)
    assert (running.returncode, errors) == (Exit.INTERRUPTED, "error: interrupted\n")


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_a_reader_that_has_seen_enough_is_no_error(daemon: FakeDaemon, form: list[str]) -> None:
    with process(daemon, "stats", *form) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        running.stdout.close()
        errors = running.stderr.read()
        assert running.wait(10) == Exit.OK
    assert errors == ""


STREAMS: Mapping[str, tuple[str, Exit, str]] = {
    ">/dev/full": ("stats", Exit.REFUSED, "error: [Errno 28] No space left on device\n"),
    ">&-": ("stats", Exit.OK, ""),
    "2>&-": ("load a.wasm", Exit.OK, ""),
    "<&-": ("warm -", Exit.OK, ""),
}


@pytest.mark.parametrize("redirected", STREAMS)
def test_streams_that_are_closed_or_full(run: Run, daemon: FakeDaemon, redirected: str) -> None:
    words, code, says = STREAMS[redirected]
    with process(daemon, *words.split(), redirected=redirected) as running:
        shown, errors = running.communicate(timeout=60)
    assert (running.returncode, errors) == (code, says)
    assert ("error" in shown) is False


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("engines --json", "capabilities --json"),
        ("engines --settings", "capabilities --settings"),
        ("path a.wasm --engine wasmtime", "host-file a.wasm --engine wasmtime"),
        ("compile a.wasm --no-cache --fast", "compile a.wasm --skip-cache-lookup --accept-fast"),
    ],
)
def test_old_names_still_work_and_no_help_shows_them(
    run: Run, daemon: FakeDaemon, old: str, new: str
) -> None:
    run("load", "a.wasm")
    shown = []
    for words in (old, new):
        result = run(*words.split())
        asked = daemon.calls.pop()
        taken = re.sub(r"\d+(\.\d+)? +m?s|[ ─]+", " ", result.stdout)
        shown.append((result.exit_code, taken, result.stderr, asked))
    assert shown[0] == shown[1]
    helps = run("--help").stdout + run(new.split()[0], "--help").stdout
    gone = set(old.split()) - set(new.split())
    assert not [name for name in gone if re.search(rf"^ *{name} ", helps, re.MULTILINE)]


def test_an_artifact_goes_to_standard_output_and_the_table_to_the_other(
    run: Run, daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    result = run("compile", "a.wasm", "-o", "-")
    assert (result.exit_code, result.stdout_bytes) == (0, daemon.artifact)
    assert "saved to" in result.stderr
    result = run("compile", "a.wasm", "-o", "-", "--json")
    assert result.stdout_bytes == daemon.artifact
    assert json.loads(result.stderr)["artifacts"][0]["saved_to"] == "-"
    assert {each.name for each in tmp_path.iterdir()} == {"a.wasm", "b.wasm", "c.wasm"}
    # A terminal gets a sentence instead.
    master, terminal = os.openpty()
    words = [sys.executable, "-m", "wasmkiln.cli", "compile", "a.wasm", "-o", "-"]
    words[1:3] = ["-c", "from wasmkiln.cli import main; main()"]
    done = subprocess.run(words, stdout=terminal, stderr=subprocess.PIPE, text=True, check=False)
    os.close(terminal)
    os.close(master)
    assert done.returncode == Exit.USAGE
    assert "an artifact is no text for a terminal: redirect it" in done.stderr


def test_the_version_of_a_daemon_stands_beside_that_of_the_client(
    run: Run, daemon: FakeDaemon
) -> None:
    ours = re.escape(wasmkiln.__version__)
    told = run("--version")
    daemons = rf"; the daemon at {re.escape(daemon.address)}, version 9\.9\.9"
    assert re.fullmatch(rf"wasmkiln, version {ours}{daemons}\n", told.stdout)
    # Whatever is wrong with the daemon or the way there: it refuses, hangs, or is not there.
    daemon.refuse(*[Refusal(grpc.StatusCode.INTERNAL)] * 3)
    alone = [run("--version")]
    daemon.hang.clear()
    alone.append(run("--version"))
    daemon.hang.set()
    for wrong in (["--address", "127.0.0.1:1"], ["--profile", "none"], ["--address", ":::"]):
        alone += [run(*wrong, "--version"), run("--version", *wrong)]
    for result in alone:
        assert (result.exit_code, result.stderr) == (0, "")
        assert re.fullmatch(rf"wasmkiln, version {ours}\n", result.stdout)


def test_verbose_tells_what_the_client_does(run: Run, daemon: FakeDaemon) -> None:
    assert run("compile", "a.wasm").stderr == ""
    result = run("compile", "b.wasm", "-v", "-o", "out")
    for text in (r"ModuleService/Compile took \d", "artifact from compiled: ", "12000 received"):
        assert re.search(text, result.stderr), result.stderr
    assert "failed after" in result.stderr  # the daemon did not have the module
    assert run("compile", "a.wasm").stderr == ""


def test_the_first_failure_that_is_tried_again_is_told_once(run: Run, daemon: FakeDaemon) -> None:
    daemon.refuse(*[Refusal(grpc.StatusCode.UNAVAILABLE)] * 2)
    result = run("compile", "a.wasm")
    assert result.exit_code == 0
    told = r"no answer yet from \S+ \(\w+\): trying again for up to 10 s \(Ctrl-C ends it\)\n"
    assert re.fullmatch(told, result.stderr), result.stderr
