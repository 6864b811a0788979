"""Every command against a server that lies about every field, as text and as JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from click.testing import Result
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from wasmkiln.cli.app import Exit
from wasmkiln.v1 import module_service_pb2 as modules

from tests.lying import honest, lies
from tests.lying.server import LyingServer

# A command, the RPC that is lied about, and the exit code when nobody lies.
COMMANDS: dict[str, tuple[list[str], str, Exit]] = {
    "load": (["load", "m.wasm"], "Load", Exit.OK),
    "compile": (["compile", "m.wasm"], "Compile", Exit.OK),
    "compile to a file": (["compile", "m.wasm", "-o", "out/a.cwasm"], "Compile", Exit.OK),
    "compile to a folder": (["compile", "m.wasm", "n.wasm", "-o", "out"], "Compile", Exit.OK),
    "warm": (["warm", "."], "Compile", Exit.OK),
    "warm, what is missing": (["warm", "."], "FindMissing", Exit.OK),
    "find-missing": (["find-missing", "m.wasm"], "FindMissing", Exit.OK),
    "stats": (["stats"], "Stats", Exit.OK),
    "engines": (["engines"], "GetCapabilities", Exit.OK),
    "engines --settings": (["engines", "--settings"], "GetCapabilities", Exit.OK),
    "engines --isolation": (["engines", "--isolation"], "GetCapabilities", Exit.OK),
    "quarantine ls": (["quarantine", "ls"], "ListQuarantine", Exit.OK),
    "quarantine release": (
        ["quarantine", "release", "--all"],
        "ReleaseQuarantine",
        Exit.NOT_NOW,  # the honest answer says that Redis is down
    ),
    "pin ls": (["pin", "ls"], "ListPins", Exit.OK),
    "pin add": (["pin", "add", "m.wasm"], "Pin", Exit.NOT_NOW),
    "pin rm": (["pin", "rm", "m.wasm"], "Unpin", Exit.NOT_NOW),
    "evict": (["evict", "--all", "--yes"], "Evict", Exit.NOT_NOW),
    "health": (["health"], "Check", Exit.OK),
    "drain": (["drain"], "Drain", Exit.OK),
}

ONE_FOR_EACH_RPC = {method: command for command, (_, method, _) in COMMANDS.items()}.values()
# The other two print the same document.
FORMS = [
    (command, form)
    for command in COMMANDS
    for form in ("text", "json")
    if form == "text" or not command.startswith("engines --")
]

# What `warm` says of each artifact, where there is no terminal.
_PROGRESS = re.compile(r"(warm|failed) .{1,3000} \([0-9]+ of [0-9]+\)")
# Whatever the answer to one call is, these are what a command can exit with.
_ON_A_LIE = {Exit.OK, Exit.REFUSED, Exit.NOT_NOW}


@pytest.fixture
def run(invoke: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run a command in a folder with two modules, and `out`, where alone it may write."""
    monkeypatch.setenv("WASMKILN_TIMEOUT_S", "30")
    Path("m.wasm").write_bytes(honest.WASM)
    Path("n.wasm").write_bytes(honest.WASM + b"\0\x01\x00")
    Path("out").mkdir()
    return invoke


def no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def problems(result: Result, as_json: bool) -> list[str]:
    """What must not be, in whatever a command wrote."""
    found = []
    shown = result.stdout + result.stderr
    control = re.search(
        r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]", shown
    )
    if control:
        found.append(f"a control character: {shown[control.start() - 20 : control.end() + 20]!r}")
    if (
        "Traceback" in shown
        or "unexpected " in shown
        or result.exception
        not in (
            None,
            *([result.exception] if isinstance(result.exception, SystemExit) else []),
        )
    ):
        found.append(f"a defect: {result.stderr[-300:]} {result.exception!r}")
    if result.exit_code not in _ON_A_LIE:
        found.append(f"exit code {result.exit_code}")
    sentences = [
        line
        for line in result.stderr.splitlines()
        if not line.startswith("{") and not _PROGRESS.fullmatch(line)
    ]
    if any(len(line) > 3_000 or not line.startswith("error: ") for line in sentences):
        found.append(f"no clear sentence: {result.stderr[:300]}")
    if result.exit_code == Exit.REFUSED and not sentences:
        found.append("nothing says why")
    if as_json:
        found += _json_problems(result)
    elif len(shown) > 3_000_000:
        found.append(f"{len(shown)} characters")
    outside = sorted(p.name for p in Path().iterdir() if p.name not in ("m.wasm", "n.wasm", "out"))
    if outside:
        found.append(f"written outside: {outside}")
    return found


def _json_problems(result: Result) -> list[str]:
    documents = [*result.stdout.splitlines()]
    documents += [line for line in result.stderr.splitlines() if line.startswith("{")]
    try:
        for document in documents:
            json.loads(document, parse_constant=no_constant)
    except ValueError as error:
        return [f"no JSON: {error}"]
    return [] if len(result.stdout.splitlines()) <= 1 else ["several documents"]


@pytest.mark.parametrize(("command", "form"), FORMS)
def test_the_truth_is_told(run: Callable[..., Result], command: str, form: str) -> None:
    arguments, _, code = COMMANDS[command]
    result = run(*arguments, *(["--json"] if form == "json" else []))
    assert result.exit_code == code, result.output
    assert problems(result, form == "json") == []


@pytest.mark.parametrize(("command", "form"), FORMS)
def test_every_field_lied_about(
    run: Callable[..., Result], server: LyingServer, command: str, form: str
) -> None:
    arguments, method, _ = COMMANDS[command]
    found = {}
    count = 0
    for name, lie in lies.about(honest.ANSWERS[method]):
        server.answers = {method: honest.telling(method, lie.SerializeToString())}
        result = run(*arguments, *(["--json"] if form == "json" else []))
        count += 1
        if wrong := problems(result, form == "json"):
            found[name] = wrong
    assert found == {}
    assert count > 1


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize("raw", lies.RAW)
@pytest.mark.parametrize("command", ONE_FOR_EACH_RPC)
def test_what_is_no_message(
    run: Callable[..., Result], server: LyingServer, command: str, raw: str, form: str
) -> None:
    arguments, method, _ = COMMANDS[command]
    told = honest.ANSWERS[method].SerializeToString()
    server.say(method, *lies.RAW[raw](told))
    timeout = ["--timeout", "0.5"] if raw == lies.TWO else []
    result = run(*arguments, *timeout, *(["--json"] if form == "json" else []))
    if raw == lies.TWO and result.exit_code == Exit.DEADLINE:
        return  # gRPC waits for the end of an answer that has one message
    assert problems(result, form == "json") == []
    lists = method not in ("ReleaseQuarantine", "Pin", "Unpin", "Drain", "Check")
    if raw in ("garbage", "no message") or (raw == "two million elements" and lists):
        assert result.exit_code == Exit.REFUSED


def details(*messages: Any, text: str = lies.EVIL) -> bytes:
    status = status_pb2.Status(code=8, message=text)
    for message in messages:
        packed = any_pb2.Any()
        packed.Pack(message)
        status.details.append(packed)
    said: bytes = status.SerializeToString()
    return said


def info(reason: str, **metadata: str) -> error_details_pb2.ErrorInfo:
    return error_details_pb2.ErrorInfo(domain="wasmkiln", reason=reason, metadata=metadata)


def retry(seconds: int, nanos: int = 0) -> error_details_pb2.RetryInfo:
    told = error_details_pb2.RetryInfo()
    told.retry_delay.seconds, told.retry_delay.nanos = seconds, nanos
    return told


FULL = info("COMPILE_QUEUE_FULL")
ERRORS: dict[str, tuple[bytes, Exit]] = {
    "none": (b"", Exit.REFUSED),
    "evil texts": (details(info(lies.EVIL, engine=lies.EVIL)), Exit.REFUSED),
    "no Status": (b"\xff\xff\xff", Exit.REFUSED),
    "of no type": (
        status_pb2.Status(details=[any_pb2.Any(value=b"x")]).SerializeToString(),
        Exit.REFUSED,
    ),
    "a type that it is not": (
        status_pb2.Status(
            details=[any_pb2.Any(type_url="x/google.rpc.ErrorInfo", value=b"\xff")]
        ).SerializeToString(),
        Exit.REFUSED,
    ),
    "retry in years": (details(FULL, retry(2**63 - 1, 2**31 - 1)), Exit.NOT_NOW),
    "retry long ago": (details(FULL, retry(-(2**63))), Exit.NOT_NOW),
    "retry at once, always": (details(FULL, retry(0)), Exit.NOT_NOW),
    "thousands of details": (
        status_pb2.Status(details=[any_pb2.Any() for _ in range(3_000)]).SerializeToString(),
        Exit.REFUSED,
    ),
    "many violations": (
        details(
            error_details_pb2.BadRequest(
                field_violations=[
                    error_details_pb2.BadRequest.FieldViolation(field=lies.EVIL, description="x")
                ]
                * 50
            )
        ),
        Exit.REFUSED,
    ),
    "more than gRPC takes": (bytes(100_000), Exit.REFUSED),
}


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("command", ["load", "compile", "stats", "drain"])
def test_errors(
    run: Callable[..., Result], server: LyingServer, command: str, error: str, form: str
) -> None:
    arguments, method, _ = COMMANDS[command]
    said, code = ERRORS[error]
    server.calls.clear()
    server.fail(method, grpc.StatusCode.RESOURCE_EXHAUSTED, lies.EVIL, said)
    result = run(*arguments, *(["--json"] if form == "json" else []))
    assert problems(result, form == "json") == []
    assert result.exit_code == code, result.output
    assert len(server.calls) <= 3


def test_a_newer_daemon_s_values_are_shown_as_they_are(
    run: Callable[..., Result], server: LyingServer
) -> None:
    header = honest.header()
    header.MergeFromString(b"\x48\x09")  # an origin that has no name here
    header.compile_time.seconds = 10**9
    told = modules.CompileResponse(header=header)
    server.answers["Compile"] = honest.telling("Compile", told.SerializeToString())
    shown = run("compile", "m.wasm").stdout
    assert re.search(r" baseline +9 +no ", shown)
    assert "31.7 years" in shown
    [artifact] = json.loads(run("compile", "m.wasm", "--json").stdout)["artifacts"]
    assert (artifact["origin"], artifact["compile_time_s"]) == (9, 10**9)
    server.say("Check", b"\x08\x07")
    result = run("health")
    assert (result.stdout, result.exit_code) == ("STATUS_7\n", Exit.NOT_NOW)


def test_long_lists_are_cut_in_tables_and_not_in_json(
    run: Callable[..., Result], server: LyingServer
) -> None:
    answer = modules.StatsResponse(tiers=[modules.TierStats(tier="t", hits=1)] * 50_000)
    server.say("Stats", answer.SerializeToString())
    shown = run("stats").stdout
    assert "… 49,000 more: --json shows all" in shown
    assert len(shown.splitlines()) < 1_100
    assert len(json.loads(run("stats", "--json").stdout)["tiers"]) == 50_000
