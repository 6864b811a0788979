"""`wasmkiln warm` against the fake daemon: every kind of source."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from click.testing import CliRunner, Result
from wasmkiln.cli.app import Exit, app
from wasmkiln.cli.inputs import in_parallel

from tests.oci import Image, descriptor, layout
from tests.unit.client.fake_daemon import FakeDaemon, Refusal

WASM = b"\0asm\x01\0\0\0"
HTTP, CACHE, JOBS = WASM + b"http", WASM + b"cache", WASM + b"jobs"
Run = Callable[..., Result]
INVALID = Refusal(grpc.StatusCode.INVALID_ARGUMENT, "MODULE_INVALID")


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def run(daemon: FakeDaemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs `warm` in a folder with a module."""
    monkeypatch.setenv("WASMKILN_ADDRESS", daemon.address)
    monkeypatch.setenv("WASMKILN_TIMEOUT_S", "20")
    monkeypatch.chdir(tmp_path)
    Path("a.wasm").write_bytes(HTTP)
    return lambda *words, **how: CliRunner().invoke(app, ("warm", *words), **how)


def counts(result: Result, *names: str) -> list[int]:
    """Some numbers of the document on stdout."""
    document = json.loads(result.stdout)
    return [document[name] for name in names]


def errors(result: Result) -> list[dict[str, Any]]:
    """The failures in the document on stdout."""
    found: list[dict[str, Any]] = json.loads(result.stdout)["errors"]
    return found


def before(patch: pytest.MonkeyPatch, daemon: FakeDaemon, method: str, act: Any) -> None:
    """Do something before each call of a method."""
    begin = daemon._begin

    def also(called: str, request: Any, context: Any) -> None:
        if called == method:
            act(context)
        begin(called, request, context)

    patch.setattr(daemon, "_begin", also)


# --- sources ---------------------------------------------------------------------------------


def test_only_what_is_missing_of_a_folder_is_compiled(run: Run, daemon: FakeDaemon) -> None:
    Path("deep").mkdir()
    Path("deep/d.wasm").write_bytes(CACHE)
    Path("notes.txt").write_text("no module")
    daemon.warm = {(sha256(HTTP), "wasmer")}
    engines = ("--engine", "wasmer", "--engine", "wasmtime")
    result = run(".", *engines, "--jobs", "2", "--json")
    names = ("modules", "warm_before", "compiled", "failed", "uploaded")
    assert counts(result, *names) == [2, 1, 3, 0, 2]
    requests = daemon.requests("Compile")
    assert all(request.omit_artifact for request in requests)
    assert len({(r.sha256, r.engine) for r in requests if r.sha256}) == 3
    # Compiles alone wait for other callers.
    compiling = [method == "Compile" for method, _ in daemon.calls]
    assert [priority == "background" for priority in daemon.priorities] == compiling
    assert set(daemon.priorities) == {"", "background"}
    text = run(".", "--no-recursive").stdout
    assert "1 modules: 0 warm before, 1 compiled, 0 failed" in text


def test_files_folders_digests_and_lists_in_one_run(run: Run, daemon: FakeDaemon) -> None:
    Path("mods").mkdir()
    Path("mods/cache.wasm").write_bytes(CACHE)
    Path("deploy.txt").write_text(f"# what runs\n\n a.wasm\nsha256:{'f' * 64}\n")
    daemon.modules[sha256(JOBS)] = JOBS
    daemon.warm.add(("f" * 64, ""))
    # The same bytes count once, and are uploaded if any source has them.
    sources = (sha256(HTTP), "./a.wasm", "@deploy.txt", f"sha256:{sha256(JOBS)}", "-", "--json")
    result = run(*sources, input="mods\n")
    assert counts(result, "modules", "warm_before", "compiled", "uploaded") == [4, 1, 3, 2]
    compiled = {each["module_sha256"] for each in json.loads(result.stdout)["artifacts"]}
    assert compiled == {*map(sha256, (HTTP, CACHE, JOBS))}


def test_what_cannot_be_warmed_fails_alone(run: Run, daemon: FakeDaemon) -> None:
    Path("gone.wasm").symlink_to("nowhere")
    Path("bad.wasm").write_bytes(JOBS)
    daemon.refuse_module[JOBS] = INVALID
    result = run(".", "f" * 64, "--json")
    assert result.exit_code == Exit.REFUSED
    assert counts(result, "modules", "compiled", "failed") == [4, 1, 3]
    assert [(each["source"], each["reason"]) for each in errors(result)] == [
        ("gone.wasm", "FileNotFoundError"),
        ("bad.wasm", "MODULE_INVALID"),
        ("f" * 64, "MODULE_NOT_LOADED"),
    ]
    assert "gone.wasm: No such file or directory" in result.stderr


def test_no_folder_that_it_may_not_read_is_passed_over(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("sub").mkdir()
    scandir = os.scandir

    def refusing(path: str) -> Any:
        if path.endswith("sub"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)  # The tests may run as root, who may read all.
    result = run(".")
    assert result.exit_code == Exit.USAGE
    assert "cannot read the folder sub: Permission denied" in result.stderr


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("empty", "no *.wasm file in empty"),
        ("nowhere", "does not exist"),
        ("A" * 64, "does not exist"),
        ("sha256:" + "a" * 63, "does not exist"),
        ("x" * 5000, "does not exist"),
        ("oci://r.io/a:1", "or images that skopeo copied"),
        ("@gone.txt", "cannot read the list gone.txt: No such file"),
        # The bytes of a list.
        (b"@other", "@other does not exist"),
        (b"\xff\xfe", "codec can't decode"),
        (b"gone.wasm", "gone.wasm does not exist"),
        (b"#" * 17_000_000, "16,777,216 bytes"),
    ],
)
def test_a_source_that_is_none_is_wrong_usage_and_sends_nothing(
    run: Run, daemon: FakeDaemon, source: str | bytes, says: str
) -> None:
    Path("empty").mkdir()
    if isinstance(source, bytes):
        Path("deploy.txt").write_bytes(source)
        source = "@deploy.txt"
    result = run("a.wasm", source)
    assert (result.exit_code, daemon.calls) == (Exit.USAGE, [])
    assert says in " ".join(result.stderr.split())


# --- variants and pins -------------------------------------------------------------------------


def test_every_engine_target_cpu_and_value_of_a_setting(run: Run, daemon: FakeDaemon) -> None:
    options = (
        "--engine wasmtime-50.0.1 --engine wasmtime-49.0.0 --target x86_64-unknown-linux-gnu "
        "--target pulley64 --cpu baseline --set opt_level=speed --set opt_level=none "
        "--set fuel=true --json"
    )
    result = run("a.wasm", *options.split())
    assert counts(result, "compiled", "uploaded") == [8, 1]
    by_digest = [r for r in daemon.requests("Compile") if r.sha256 == sha256(HTTP)]
    asked = {(r.engine, r.target, r.cpu, *sorted(r.settings.items())) for r in by_digest}
    assert len(asked) == 8
    settings = (("fuel", "true"), ("opt_level", "none"))
    assert ("wasmtime-49.0.0", "pulley64", "baseline", *settings) in asked
    name = "a.wasm [wasmtime-50.0.1 x86_64-unknown-linux-gnu baseline opt_level=speed fuel=true]"
    assert json.loads(result.stdout)["artifacts"][0]["source"] == name


def test_a_variant_that_the_daemon_does_not_have_leaves_the_others_alone(
    run: Run, daemon: FakeDaemon
) -> None:
    daemon.refuse(Refusal(grpc.StatusCode.INVALID_ARGUMENT, "TARGET_UNSUPPORTED", "no such one"))
    result = run("a.wasm", "--target", "mips", "--target", "pulley64", "--json")
    assert result.exit_code == Exit.REFUSED
    assert counts(result, "compiled", "failed") == [1, 1]
    assert errors(result)[0]["source"] == "mips"


def test_pinned_are_the_modules_that_are_warm(run: Run, daemon: FakeDaemon) -> None:
    Path("b.wasm").write_bytes(CACHE)
    Path("c.wasm").write_bytes(JOBS)
    daemon.warm.add((sha256(HTTP), ""))
    daemon.refuse_module[JOBS] = INVALID
    result = run(".", "--pin", "--json")
    assert result.exit_code == Exit.REFUSED
    assert counts(result, "pinned", "failed") == [2, 1]
    assert {r.module_sha256 for r in daemon.requests("Pin")} == {sha256(HTTP), sha256(CACHE)}
    text = run("a.wasm", "b.wasm", "--pin").stdout
    assert "2 modules: 1 warm before, 1 compiled, 0 failed; 0 uploaded; 2 pinned" in text
    daemon.unreachable_tiers = ["redis"]
    result = run("a.wasm", "--pin")
    assert result.exit_code == Exit.REFUSED
    assert "other daemons learn of the pins when it does" in result.stderr


def test_a_pin_that_is_refused_is_a_failure(
    run: Run, daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "PINS_FULL", "full")
    before(monkeypatch, daemon, "Pin", full.abort)
    result = run("a.wasm", "--pin", "--json")
    assert result.exit_code == Exit.REFUSED
    assert counts(result, "pinned", "failed") == [0, 1]
    assert errors(result)[0]["reason"] == "PINS_FULL"


# --- images in a folder ------------------------------------------------------------------------


def test_a_folder_in_the_image_layout(run: Run, daemon: FakeDaemon) -> None:
    layout(Path("images"), Image.wash(HTTP), Image.spin({"cache": CACHE, "jobs": JOBS}))
    words = ("images", "--engine", "wasmtime-50.0.1", "--json")
    assert counts(run(*words), "modules", "compiled", "uploaded") == [3, 3, 3]
    assert daemon.modules.keys() == {*map(sha256, (HTTP, CACHE, JOBS))}
    asked = len(daemon.requests("Compile"))
    daemon.warm = {(sha256(each), "wasmtime-50.0.1") for each in (HTTP, CACHE, JOBS)}
    assert counts(run(*words), "warm_before", "compiled") == [3, 0]
    assert len(daemon.requests("Compile")) == asked


BLOB = f"blobs/sha256/{sha256(HTTP)}"
LAYER = descriptor(HTTP, "application/wasm")


MALFORMED = (
    "has a malformed manifest: expected 2,000 layers or 200 manifests at most, each by its SHA-256"
)


def _index(**fields: Any) -> tuple[str, bytes]:
    return "index.json", json.dumps(fields).encode()


@pytest.mark.parametrize(
    ("file", "says"),
    [
        ((BLOB, HTTP[:-1] + b"!"), f"not {sha256(HTTP)} as its source says"),
        ((BLOB, HTTP * 2), "has more than 12 bytes"),
        ((BLOB, None), "No such file or directory"),
        (("index.json", os.mkfifo), "is no file"),
        (("index.json", b"{"), MALFORMED),
        (("index.json", b"[" * 100_000), MALFORMED),
        (("index.json", b" " * (4 * 2**20 + 1)), "has more than 4,194,304 bytes"),
        (_index(fsLayers=[]), MALFORMED),
        (_index(layers={}), MALFORMED),
        (_index(layers=[descriptor(HTTP, "text/css")] * 2001), MALFORMED),
        (_index(layers=[descriptor(HTTP, "text/css")]), "the types of its layers: text/css"),
        (_index(layers=[{"mediaType": "application/wasm"}]), MALFORMED),
        (_index(layers=[{**LAYER, "size": -1}]), MALFORMED),
        (_index(layers=[{**LAYER, "digest": "sha512:" + "a" * 128}]), MALFORMED),
        (_index(layers=[{**LAYER, "digest": "sha256:../../passwd"}]), MALFORMED),
    ],
)
def test_a_layout_that_lies_fails_alone(
    run: Run, daemon: FakeDaemon, file: tuple[str, Any], says: str
) -> None:
    path = layout(Path("images"), Image.wash(HTTP)) / file[0]
    path.unlink()
    if callable(file[1]):
        file[1](path)
    elif file[1] is not None:
        path.write_bytes(file[1])
    Path("a.wasm").write_bytes(CACHE)
    result = run("images", "a.wasm", "--json")
    assert result.exit_code == Exit.REFUSED
    assert counts(result, "compiled") == [1]
    assert says in errors(result)[0]["message"]
    assert "Traceback" not in result.stderr
    assert daemon.modules.keys() == {sha256(CACHE)}


def test_indexes_end(run: Run, daemon: FakeDaemon) -> None:
    layout(Path("deep"), Image.index(Image.index(Image.wash(HTTP))))
    layout(Path("wide"), *(Image.wash(WASM + str(n).encode()) for n in range(201)))
    deep, wide = errors(run("deep", "wide", "--json"))
    assert deep["message"] == "deep has indexes within the index of an image: not read"
    assert wide["message"] == f"wide {MALFORMED}"


# --- the run ---------------------------------------------------------------------------------


def test_a_file_that_changes_meanwhile_is_not_uploaded(
    run: Run, daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    before(monkeypatch, daemon, "FindMissing", lambda _: Path("a.wasm").write_bytes(CACHE))
    result = run("a.wasm")
    assert (result.exit_code, daemon.modules) == (Exit.REFUSED, {})
    assert "a.wasm changed meanwhile: warm it again" in result.stderr


def test_where_there_is_no_terminal_each_artifact_has_a_line(run: Run, daemon: FakeDaemon) -> None:
    lines = run("a.wasm", "f" * 64, "--jobs", "1").stderr.splitlines()
    assert lines[:2] == [
        "warm a.wasm: wasmtime-50.0.1, 11.7 KiB, compiled in 420 ms (1 of 2)",
        f"failed {'f' * 64} (2 of 2)",
    ]


def test_when_no_daemon_answers_any_more_the_rest_is_not_tried(
    run: Run, daemon: FakeDaemon
) -> None:
    for n in range(19):
        Path(f"b{n:02}.wasm").write_bytes(WASM + bytes([n]))
    gone = Refusal(grpc.StatusCode.UNAVAILABLE, "", "gone")

    def leave(messages: list[Any]) -> list[Any]:
        daemon.refuse(*[gone] * 100)
        return messages

    daemon.tamper = leave
    result = run(".", "--jobs", "1", "--timeout", "1", "--json")
    assert result.exit_code == Exit.REFUSED
    assert (counts(result, "compiled", "failed"), len(errors(result))) == ([1, 19], 1)


def test_an_interrupt_just_before_the_wait_is_seen() -> None:
    """A thread that waits without a limit sleeps through a signal that another thread took."""
    seen, missed = threading.Event(), list[str]()

    def work(_: int) -> None:
        time.sleep(0.1)  # the main thread waits
        # To this thread: Python notes it for the main one, and wakes nobody.
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)
        if not seen.wait(10):
            missed.append("the interrupt was not seen before the work ended")

    was = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            in_parallel(1, [0], work)
        assert not missed
    finally:
        seen.set()
        signal.signal(signal.SIGINT, was)
