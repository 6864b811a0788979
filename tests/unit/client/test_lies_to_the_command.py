"""The command against a server that lies about every field; with evil files; on a terminal."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from click.testing import Result
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from wasmkiln import ArtifactHeader
from wasmkiln.cli.app import Exit
from wasmkiln.v1 import module_service_pb2 as modules

from tests.attesting import Attester
from tests.lying import honest, lies
from tests.lying.server import LyingServer
from tests.unit.client.fake_daemon import FakeDaemon

Run = Callable[..., Result]
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
    "jobs": (["jobs"], "ListJobs", Exit.OK),
    "jobs end": (["jobs", "end", "7"], "EndJob", Exit.OK),
    "pin ls": (["pin", "ls"], "ListPins", Exit.OK),
    # The honest answer says that Redis is down.
    "quarantine release": (["quarantine", "release", "--all"], "ReleaseQuarantine", Exit.NOT_NOW),
    "pin add": (["pin", "add", "m.wasm"], "Pin", Exit.NOT_NOW),
    "pin rm": (["pin", "rm", "m.wasm"], "Unpin", Exit.NOT_NOW),
    "evict": (["evict", "--all", "--yes"], "Evict", Exit.NOT_NOW),
    "health": (["health"], "Check", Exit.OK),
    "drain": (["drain"], "Drain", Exit.OK),
    "drain --undo": (["drain", "--undo"], "UndoDrain", Exit.OK),
}

# The other two print the same document.
FORMS = [
    (command, form)
    for command in COMMANDS
    for form in ("text", "json")
    if form == "text" or not command.startswith("engines --")
]

FLAGS: dict[str, list[str]] = {"text": [], "json": ["--json"]}
# What `warm` says of each artifact, where there is no terminal.
_PROGRESS = re.compile(r"(warm|failed) .{1,3000} \([0-9]+ of [0-9]+\)")
# Whatever the answer to one call is, these are what a command can exit with.
_ON_A_LIE = {Exit.OK, Exit.REFUSED, Exit.NOT_NOW}


@pytest.fixture
def run(invoke: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command in a folder with two modules, and `out`, where alone it may write."""
    monkeypatch.setenv("WASMKILN_TIMEOUT_S", "30")
    Path("m.wasm").write_bytes(honest.WASM)
    Path("n.wasm").write_bytes(honest.WASM + b"\0\x01\x00")
    Path("out").mkdir()
    return invoke


def no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069].{0,20}")


def problems(result: Result, form: str) -> list[str]:
    """What must not be, in whatever a command wrote."""
    shown = result.stdout + result.stderr
    found = [f"a control character: {text!r}" for text in _CONTROL.findall(shown)[:1]]
    ended = result.exception is None or isinstance(result.exception, SystemExit)
    if "Traceback" in shown or "unexpected " in shown or not ended:
        found.append(f"a defect: {result.stderr[-300:]} {result.exception!r}")
    if result.exit_code not in _ON_A_LIE:
        found.append(f"exit code {result.exit_code}")
    errors = [line for line in result.stderr.splitlines() if not _PROGRESS.fullmatch(line)]
    sentences = [line for line in errors if not line.startswith("{")]
    if any(len(line) > 3_000 or not line.startswith("error: ") for line in sentences):
        found.append(f"no clear sentence: {result.stderr[:300]}")
    if result.exit_code == Exit.REFUSED and not sentences:
        found.append("nothing says why")
    documents = [line for line in errors if line.startswith("{")]
    if form == "json":
        documents += result.stdout.splitlines()
        if result.stdout.count("\n") > 1:
            found.append("several documents")
    elif len(shown) > 3_000_000:
        found.append(f"{len(shown)} characters")
    for document in documents:
        try:
            json.loads(document, parse_constant=no_constant)
        except ValueError as error:
            found.append(f"no JSON: {error}")
    outside = {path.name for path in Path().iterdir()} - {"m.wasm", "n.wasm", "out"}
    return found + [f"written outside: {name}" for name in outside]


@pytest.mark.parametrize(("command", "form"), FORMS)
def test_every_field_lied_about(run: Run, server: LyingServer, command: str, form: str) -> None:
    arguments, method, code = COMMANDS[command]
    result = run(*arguments, *FLAGS[form])
    assert (result.exit_code, problems(result, form)) == (code, []), result.output
    found = {}
    told = list(lies.about(honest.ANSWERS[method]))
    for name, lie in told:
        server.answers = {method: honest.telling(method, lie.SerializeToString())}
        if wrong := problems(run(*arguments, *FLAGS[form]), form):
            found[name] = wrong
    assert found == {}
    assert len(told) > 1


def test_a_second_answer_is_refused(run: Run, server: LyingServer) -> None:
    server.say("Stats", *[honest.ANSWERS["Stats"].SerializeToString()] * 2)
    result = run("stats")
    assert (result.exit_code, problems(result, "text")) == (Exit.REFUSED, [])
    assert result.stderr == "error: the daemon sent two answers to one call\n"


def full(*others: any_pb2.Any) -> bytes:
    """Say that the queue is full for years, behind other details."""
    info = error_details_pb2.ErrorInfo(domain="wasmkiln", reason="COMPILE_QUEUE_FULL")
    info.metadata[lies.EVIL] = lies.EVIL
    retry = error_details_pb2.RetryInfo()
    retry.retry_delay.seconds = 2**63 - 1
    violation = error_details_pb2.BadRequest.FieldViolation(field=lies.EVIL, description=lies.EVIL)
    status = status_pb2.Status(message=lies.EVIL, details=others)
    for message in (info, retry, error_details_pb2.BadRequest(field_violations=[violation])):
        status.details.add().Pack(message)
    said: bytes = status.SerializeToString()
    return said


@pytest.mark.parametrize("form", FLAGS)
@pytest.mark.parametrize(
    ("text", "said", "code"),
    [
        (lies.EVIL, full(*[any_pb2.Any()] * 2_000), Exit.NOT_NOW),
        ("x" * 5_000, full(), Exit.NOT_NOW),
        (lies.EVIL, b"\xff\xff\xff", Exit.REFUSED),
        ("x" * 20_000, full(), Exit.REFUSED),  # more than gRPC takes
    ],
    ids=["thousands of details", "long", "no status", "longest"],
)
def test_errors(
    run: Run, server: LyingServer, text: str, said: bytes, code: Exit, form: str
) -> None:
    server.fail("Stats", grpc.StatusCode.RESOURCE_EXHAUSTED, text, said)
    result = run("stats", *FLAGS[form])
    assert (result.exit_code, problems(result, form)) == (code, []), result.output


def test_a_newer_daemon_s_values_are_shown_as_they_are(run: Run, server: LyingServer) -> None:
    header = honest.header()
    header.MergeFromString(b"\x48\x09")  # an origin that has no name here
    header.compile_time.seconds = 10**9
    told = modules.CompileResponse(header=header)
    server.answers["Compile"] = honest.telling("Compile", told.SerializeToString())
    shown = run("compile", "m.wasm").stdout
    assert re.search(r" baseline +9 +no ", shown)
    assert "277777 h 47 min" in shown
    [artifact] = json.loads(run("compile", "m.wasm", "--json").stdout)["artifacts"]
    assert (artifact["origin"], artifact["compile_time_s"]) == (9, 10**9)
    server.say("Check", b"\x08\x07")
    result = run("health")
    assert (result.stdout, result.exit_code) == ("STATUS_7\n", Exit.NOT_NOW)


def test_long_lists_are_cut_in_tables_and_not_in_json(run: Run, server: LyingServer) -> None:
    answer = modules.StatsResponse(tiers=[modules.TierStats(tier="t", hits=1)] * 5_000)
    server.say("Stats", answer.SerializeToString())
    shown = run("stats").stdout
    assert "… 4,000 more: --json shows all" in shown
    assert len(shown.splitlines()) < 1_100
    assert len(json.loads(run("stats", "--json").stdout)["tiers"]) == 5_000


# --- where `compile -o` writes -----------------------------------------------------------------


SECRET = b"another artifact"


def answer(server: LyingServer, change: Callable[[ArtifactHeader], Any]) -> None:
    """Return with a changed header."""

    def compiled(request: bytes, _context: Any) -> Iterator[bytes]:
        header = honest.header(modules.CompileRequest.FromString(request))
        change(header)
        told = modules.CompileResponse(header=header).SerializeToString()
        return honest.compiled(told, request)

    server.answers["Compile"] = compiled


def written() -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in Path().rglob("*") if path.is_file()}


def call_it(name: str, version: str, engine_id: str = "") -> Callable[[ArtifactHeader], None]:
    def change(header: ArtifactHeader) -> None:
        header.engine.name, header.engine.version = name, version
        header.engine.id = engine_id or f"{name}-{version}"

    return change


@pytest.mark.parametrize(
    "engine",
    [
        ("wasmtime", "50.0.1", "m/../../auth.wasmtime-50.0.1"),
        ("m/../../auth.wasmtime", "50.0.1"),
        ("wasmtime", "50.0.1/../../auth"),
        ("", ""),
        ("..", "1"),
        ("wasmtime", "5" * 300),
        ("w" * 300, "1"),
        ("wasm\ntime\x1b[2J", "1"),
        ("wasm\0time", "1"),
        ("\u202eemitmsaw", "1"),
        ("a.wasmtime", "1"),  # a stem may end so
        ("~", "1"),
    ],
)
def test_a_daemon_does_not_choose_a_path(
    run: Run, server: LyingServer, engine: tuple[str, ...]
) -> None:
    for name in ("auth.wasmtime-50.0.1.cwasm", "auth.wasmtime-50.0.1.cwasm.dsse.json"):
        Path(name).write_bytes(SECRET)  # another's artifact
    Path("out/m.x").mkdir()
    answer(server, call_it(*engine))
    before = written()
    result = run("compile", "m.wasm", "-o", "out")
    assert result.exit_code == Exit.REFUSED, result.output
    assert result.stderr.count("\n") == 1
    assert written() == before


def test_an_honest_answer_is_written(
    run: Run, server: LyingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = Attester()
    monkeypatch.setenv("WASMKILN_TRUSTED_KEYS", ours.key.hex)
    answer(server, ours.attest)
    assert run("compile", "m.wasm", "-o", "out").exit_code == 0
    path = "out/m.wasmtime-50.0.1.cwasm"
    assert written().keys() >= {path, f"{path}.json", f"{path}.dsse.json"}
    assert written()[path] == honest.ARTIFACT
    assert run("compile", honest.DIGEST, "-o", "out").exit_code == 0
    assert Path(f"out/{honest.DIGEST}.wasmtime-50.0.1.cwasm").exists()


def test_a_link_that_leads_elsewhere_is_replaced(run: Run) -> None:
    name = "m.wasmtime-50.0.1.cwasm"
    for suffix in ("", ".json", ".dsse.json"):
        Path(f"precious{suffix}").write_bytes(SECRET)
        Path(f"out/{name}{suffix}").symlink_to(f"../precious{suffix}")
    assert run("compile", "m.wasm", "-o", "out").exit_code == 0
    for suffix in ("", ".json", ".dsse.json"):
        assert Path(f"precious{suffix}").read_bytes() == SECRET
        assert not Path(f"out/{name}{suffix}").is_symlink()
    assert Path("out", name).read_bytes() == honest.ARTIFACT


def test_what_stands_there_and_is_no_file_is_refused(run: Run) -> None:
    os.mkfifo("pipe")
    for words in (["-o", "pipe"], ["n.wasm", "-o", "-"], ["n.wasm", "-o", "m.wasm"]):
        assert run("compile", "m.wasm", *words).exit_code == Exit.USAGE
    assert not Path("pipe.json").exists()
    os.mkfifo("out/m.wasmtime-50.0.1.cwasm.json")
    result = run("compile", "m.wasm", "-o", "out")
    assert result.exit_code == Exit.REFUSED
    assert "exists and is not a regular file" in result.stderr


@pytest.mark.parametrize(
    ("one", "other"), [("A.wasm", "a.wasm"), ("a.wasm", "a"), ("é.wasm", "e\u0301.wasm")]
)
def test_two_inputs_of_one_name_are_refused_before_anything_is_written(
    run: Run, server: LyingServer, one: str, other: str
) -> None:
    for folder, name in (("one", one), ("other", other)):
        Path(folder).mkdir()
        Path(folder, name).write_bytes(honest.WASM)
    server.calls.clear()
    before = written()
    result = run("compile", f"one/{one}", f"other/{other}", "-o", "new")
    assert result.exit_code == Exit.USAGE
    assert "several modules would be written as" in result.stderr
    assert (written(), server.calls, Path("new").exists()) == (before, [], False)


def test_no_input_is_written_over(run: Run, server: LyingServer) -> None:
    Path("out/m.wasmtime-50.0.1.cwasm").write_bytes(honest.WASM)
    result = run("compile", "m.wasm", "out/m.wasmtime-50.0.1.cwasm", "-o", "out")
    assert result.exit_code == Exit.REFUSED
    assert "is another input" in result.stderr
    assert Path("out/m.wasmtime-50.0.1.cwasm").read_bytes() == honest.WASM
    for module, output in (("m", "m"), ("m.json", "m"), ("m.dsse.json", "m")):
        Path(module).write_bytes(honest.WASM)
        refused = run("compile", module, "-o", output)
        assert refused.exit_code == Exit.USAGE
        assert "is the module itself" in refused.stderr
        Path(module).unlink()


def test_names_steer_nothing_and_fit_into_file_systems(run: Run) -> None:
    plain = ["add", "tree-sitter-cpp", "a.b.c", "Ünïcode ✓", "n" * 170, "a" * 64]
    evil = ["\x1b[2Jevil", "\x1b[3Jevil", "line\nbreak", "-rf", "", ".hidden", "back\\slash"]
    evil += ["\u202egnp", "n" * 250, "n" * 249, "ü" * 120, os.fsdecode(b"no-utf8-\xff")]
    sources = [f"in/{name}" if len(name) > 240 else f"in/{name}.wasm" for name in plain + evil]
    Path("in").mkdir()
    for source in sources:
        Path(source).write_bytes(honest.WASM)
    result = run("compile", "--json", "-o", "out", *sources)
    assert result.exit_code == 0, result.output
    saved = [Path(one["saved_to"]) for one in json.loads(result.stdout)["artifacts"]]
    # An honest name stays as it is, and another becomes its digest.
    digests = [hashlib.sha256(os.fsencode(name)).hexdigest() for name in evil]
    assert [str(each) for each in saved] == [
        f"out/{name}.wasmtime-50.0.1.cwasm" for name in plain + digests
    ]
    assert all(path.read_bytes() == honest.ARTIFACT for path in saved)
    shown = run("compile", *sources).stdout
    assert all(line.isprintable() for line in shown.splitlines())


# --- evil file names, and a terminal ---------------------------------------------------------


EVIL_FILE = "\x1b]0;owned\x07\x1b[2J\u202egnp\n.wasm"
# What progress itself writes: it clears its line.
_OURS = re.compile(r"\r\x1b\[K")


def test_the_limit_on_artifacts_says_how_to_raise_it(run: Run) -> None:
    result = run("compile", "m.wasm", "-o", "m.cwasm", "--max-artifact-bytes", "11KiB")
    assert result.exit_code == Exit.REFUSED
    assert result.stderr == (
        "error: m.wasm: the artifact has 12,000 bytes, above this client's limit of 11,264: raise "
        "max_artifact_bytes, --max-artifact-bytes or WASMKILN_MAX_ARTIFACT_BYTES\n"
    )
    assert not Path("m.cwasm").exists()
    assert run("compile", "m.wasm", "--max-artifact-bytes", "11.71875KiB").exit_code == 0


@pytest.mark.parametrize("there", [True, False], ids=["a file", "no file"])
@pytest.mark.parametrize("command", ["load", "compile", "find-missing", "warm", "verify", "-o"])
def test_a_file_s_name_steers_no_terminal(run: Run, command: str, there: bool) -> None:
    folder = Path(f"folder{EVIL_FILE}")
    name = str(folder / EVIL_FILE)
    if there:
        folder.mkdir()
        Path(name).write_bytes(honest.WASM)
    arguments = {
        "warm": ("warm", str(folder)),
        "verify": ("verify", name, "--key", "a" * 64),
        "-o": ("compile", "m.wasm", "-o", name),
    }.get(command, (command, name))
    for form in ((), ("--json",)):
        result = run(*arguments, *form)
        shown = result.stdout + result.stderr
        assert all(line.isprintable() for line in shown.splitlines()), shown
        assert "unexpected" not in shown
        for line in shown.splitlines():
            if line.startswith("{"):
                json.loads(line)


def on_a_terminal(server: LyingServer | FakeDaemon, *arguments: str) -> tuple[str, int]:
    """What a command writes to a terminal, and its exit code."""
    ours, theirs = pty.openpty()
    running = subprocess.Popen(
        [sys.executable, "-c", "from wasmkiln.cli import main; main()", *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "WASMKILN_ADDRESS": server.address, "TERM": "xterm-256color"},
    )
    os.close(theirs)
    written = []
    with suppress(OSError), open(ours, "rb", buffering=0) as terminal:  # noqa: PTH123
        while piece := terminal.read(65536):
            written.append(piece)
    return b"".join(written).decode(errors="replace"), running.wait(30)


@pytest.mark.parametrize(
    ("arguments", "method"),
    [
        (("engines",), "GetCapabilities"),
        (("compile", "m.wasm", EVIL_FILE), "Compile"),
        (("load", EVIL_FILE), "Load"),
    ],
)
def test_nothing_but_progress_steers_a_terminal(
    run: Run, server: LyingServer, arguments: tuple[str, ...], method: str
) -> None:
    Path(EVIL_FILE).write_bytes(honest.WASM)
    lie = honest.ANSWERS[method].SerializeToString()
    for name, changed in lies.about(honest.ANSWERS[method]):
        if name in ("version #0", "target #0", "engine #0"):
            lie = changed.SerializeToString()
    server.answers[method] = honest.telling(method, lie)
    shown, code = on_a_terminal(server, *arguments)
    assert code == 0, shown
    left = _OURS.sub("", shown).replace("\r\n", "\n").replace("\r", "")
    assert "\\x1b" in left
    assert all(line.isprintable() for line in left.split("\n")), left


def test_a_terminal_without_unicode_is_no_defect(server: LyingServer, tmp_path: Path) -> None:
    server.answers.clear()
    done = subprocess.run(
        [sys.executable, "-c", "from wasmkiln.cli import main; main()", "engines"],
        capture_output=True,
        cwd=tmp_path,
        env={**os.environ, "WASMKILN_ADDRESS": server.address, "PYTHONIOENCODING": "ascii"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert b"wasmtime-50.0.1" in done.stdout
