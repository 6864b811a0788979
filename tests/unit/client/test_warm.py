"""`wasmkiln warm` against the fake daemon: every kind of source but registries."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from click.testing import CliRunner, Result
from wasmkiln.cli.app import Exit, app
from wasmkiln.cli.inputs import in_parallel

from tests.oci import Image, descriptor, layout

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.unit.client.fake_daemon import FakeDaemon, Refusal

WASM = b"\0asm\x01\0\0\0"
HTTP, CACHE, JOBS = WASM + b"http", WASM + b"cache", WASM + b"jobs"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def run(
    daemon: FakeDaemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Result]:
    """Runs `warm` in an empty folder."""
    monkeypatch.setenv("WASMKILN_ADDRESS", daemon.address)
    monkeypatch.setenv("WASMKILN_TIMEOUT_S", "20")
    monkeypatch.chdir(tmp_path)

    def invoke(*arguments: str, stdin: str | None = None) -> Result:
        return CliRunner().invoke(app, ("warm", *arguments), input=stdin)

    return invoke


def document(result: Result) -> Any:
    """The JSON document of stdout."""
    return json.loads(result.stdout)


def compiled(daemon: FakeDaemon) -> set[tuple[str, str, str, str, str]]:
    """What was asked for by digest: module, engine, target, cpu and settings."""
    return {
        (r.sha256, r.engine, r.target, r.cpu, ",".join(f"{k}={v}" for k, v in r.settings.items()))
        for r in daemon.requests("Compile")
        if r.sha256
    }


def test_files_folders_and_digests_in_one_run(
    run: Callable[..., Result], daemon: FakeDaemon
) -> None:
    Path("mods/deep").mkdir(parents=True)
    Path("mods/deep/http.wasm").write_bytes(HTTP)
    Path("cache.bin").write_bytes(CACHE)
    daemon.modules[sha256(JOBS)] = JOBS
    answer = document(run("mods", "cache.bin", f"sha256:{sha256(JOBS)}", "--json"))
    assert (answer["modules"], answer["compiled"], answer["uploaded"]) == (3, 3, 2)
    assert {each["module_sha256"] for each in answer["artifacts"]} == {
        *map(sha256, (HTTP, CACHE, JOBS))
    }


def test_the_same_bytes_count_once_and_are_uploaded_if_any_source_has_them(
    run: Callable[..., Result], daemon: FakeDaemon
) -> None:
    Path("a.wasm").write_bytes(HTTP)
    Path("b.wasm").write_bytes(HTTP)
    answer = document(run(sha256(HTTP), "a.wasm", "b.wasm", "./a.wasm", "--json"))
    assert (answer["modules"], answer["compiled"], answer["uploaded"]) == (1, 1, 1)


def test_a_digest_that_the_daemon_does_not_have_fails_alone(
    run: Callable[..., Result], daemon: FakeDaemon
) -> None:
    Path("a.wasm").write_bytes(HTTP)
    result = run("a.wasm", "f" * 64, "--json")
    answer = document(result)
    assert (result.exit_code, answer["compiled"], answer["failed"]) == (Exit.REFUSED, 1, 1)
    assert [(e["source"], e["reason"]) for e in answer["errors"]] == [
        ("f" * 64, "MODULE_NOT_LOADED")
    ]


def test_every_engine_target_cpu_and_value_of_a_setting(
    run: Callable[..., Result], daemon: FakeDaemon
) -> None:
    Path("a.wasm").write_bytes(HTTP)
    options = (
        *("--engine", "wasmtime-50.0.1", "--engine", "wasmtime-49.0.0"),
        *("--target", "x86_64-unknown-linux-gnu", "--target", "pulley64"),
        *("--cpu", "baseline"),
        *("--set", "opt_level=speed", "--set", "opt_level=none", "--set", "fuel=true"),
    )
    answer = document(run("a.wasm", *options, "--json"))
    assert (answer["compiled"], answer["uploaded"]) == (8, 1)
    asked = compiled(daemon)
    assert len(asked) == 8
    wanted = (sha256(HTTP), "wasmtime-49.0.0", "pulley64", "baseline", "fuel=true,opt_level=none")
    assert wanted in {(*one[:4], ",".join(sorted(one[4].split(",")))) for one in asked}
    assert answer["artifacts"][0]["source"] == (
        "a.wasm [wasmtime-50.0.1 x86_64-unknown-linux-gnu baseline opt_level=speed fuel=true]"
    )


def test_a_variant_that_the_daemon_does_not_have_leaves_the_others_alone(
    run: Callable[..., Result], daemon: FakeDaemon, refusal: type[Refusal]
) -> None:
    Path("a.wasm").write_bytes(HTTP)
    daemon.refuse(refusal(grpc.StatusCode.INVALID_ARGUMENT, "TARGET_UNSUPPORTED", "no such one"))
    result = run("a.wasm", "--target", "mips", "--target", "pulley64", "--json")
    answer = document(result)
    assert (result.exit_code, answer["compiled"], answer["failed"]) == (Exit.REFUSED, 1, 1)
    assert answer["errors"][0]["source"] == "mips"


def test_pinned_are_the_modules_that_are_warm(
    run: Callable[..., Result], daemon: FakeDaemon, refusal: type[Refusal]
) -> None:
    for name, content in (("a", HTTP), ("b", CACHE), ("c", JOBS)):
        Path(f"{name}.wasm").write_bytes(content)
    daemon.warm.add((sha256(HTTP), ""))
    daemon.refuse_module[JOBS] = refusal(grpc.StatusCode.INVALID_ARGUMENT, "MODULE_INVALID")
    result = run(".", "--pin", "--json")
    answer = document(result)
    assert (result.exit_code, answer["pinned"], answer["failed"]) == (Exit.REFUSED, 2, 1)
    assert {r.module_sha256 for r in daemon.requests("Pin")} == {sha256(HTTP), sha256(CACHE)}
    text = run("a.wasm", "b.wasm", "--pin").stdout
    assert "2 modules: 1 warm before, 1 compiled, 0 failed; 0 uploaded; 2 pinned" in text


def test_a_pin_that_is_refused_is_a_failure(
    run: Callable[..., Result],
    daemon: FakeDaemon,
    refusal: type[Refusal],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Path("a.wasm").write_bytes(HTTP)
    daemon.warm.add((sha256(HTTP), ""))
    begin = daemon._begin

    def refuse(method: str, request: Any, context: Any) -> None:
        if method == "Pin":
            refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "PINS_FULL", "full").abort(context)
        begin(method, request, context)

    monkeypatch.setattr(daemon, "_begin", refuse)
    result = run("a.wasm", "--pin", "--json")
    answer = document(result)
    assert (result.exit_code, answer["pinned"], answer["failed"]) == (Exit.REFUSED, 0, 1)
    assert answer["errors"][0]["reason"] == "PINS_FULL"


def test_pins_that_redis_did_not_take_are_no_success(
    run: Callable[..., Result], daemon: FakeDaemon
) -> None:
    Path("a.wasm").write_bytes(HTTP)
    daemon.unreachable_tiers = ["redis"]
    result = run("a.wasm", "--pin")
    assert result.exit_code == Exit.REFUSED
    assert "other daemons learn of the pins when it does" in result.stderr


def test_a_thousand_variants_are_a_mistake(run: Callable[..., Result], daemon: FakeDaemon) -> None:
    Path("a.wasm").write_bytes(HTTP)
    many = [word for n in range(40) for word in ("--engine", f"e-{n}", "--cpu", f"c{n}")]
    result = run("a.wasm", *many)
    assert (result.exit_code, daemon.calls) == (Exit.USAGE, [])
    assert "1,600 variants of each module" in result.stderr


def test_lists_in_a_file_and_on_standard_input(
    run: Callable[..., Result], daemon: FakeDaemon
) -> None:
    Path("a.wasm").write_bytes(HTTP)
    Path("b.wasm").write_bytes(CACHE)
    Path("deploy.txt").write_text(f"# what runs\n\n a.wasm\nsha256:{'f' * 64}\n")
    daemon.warm.add(("f" * 64, ""))
    answer = document(run("@deploy.txt", "-", "--json", stdin="b.wasm\n"))
    assert (answer["modules"], answer["compiled"], answer["warm_before"]) == (3, 2, 1)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"@other", "names another list"),
        (b"\xff\xfe", "codec can't decode"),
        (b"gone.wasm", "gone.wasm does not exist"),
        (b"# nothing but comments and a line of 17 MB\n" + b"#" * 17_000_000, "16,777,216 bytes"),
    ],
)
def test_a_list_that_is_none_sends_nothing(
    run: Callable[..., Result], daemon: FakeDaemon, content: bytes, says: str
) -> None:
    Path("deploy.txt").write_bytes(content)
    result = run("@deploy.txt")
    assert (result.exit_code, daemon.calls) == (Exit.USAGE, [])
    assert says in result.stderr


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("@gone.txt", "cannot read the list gone.txt: No such file"),
        ("A" * 64, "does not exist"),
        ("sha256:" + "a" * 63, "does not exist"),
        ("x" * 5000, "does not exist"),
        ("oci://repo", "write oci://HOST/REPOSITORY"),
        ("oci://library/redis", "HOST with a dot or port"),
        ("oci://ghcr.io/Upper/case", "REPOSITORY in lower case"),
        ("oci://user:secret@ghcr.io/a", "no reference"),
        ("oci://ghcr.io/a?b", "no reference"),
        ("oci://ghcr.io/a/../b", "no reference"),
    ],
)
def test_a_source_that_is_none_is_wrong_usage(
    run: Callable[..., Result], daemon: FakeDaemon, source: str, says: str
) -> None:
    result = run(source)
    assert (result.exit_code, daemon.calls) == (Exit.USAGE, [])
    assert says in " ".join(result.stderr.split())


def test_a_folder_in_the_image_layout(run: Callable[..., Result], daemon: FakeDaemon) -> None:
    wash = Image.wash(HTTP)
    spin = Image.spin({"cache": CACHE, "jobs": JOBS})
    layout(Path("images"), wash, spin)
    answer = document(run("images", "--engine", "wasmtime-50.0.1", "--json"))
    assert (answer["modules"], answer["compiled"], answer["uploaded"]) == (3, 3, 3)
    assert daemon.modules.keys() == {*map(sha256, (HTTP, CACHE, JOBS))}
    again = len(daemon.requests("Compile"))
    daemon.warm = {(sha256(each), "wasmtime-50.0.1") for each in (HTTP, CACHE, JOBS)}
    answer = document(run("images", "--engine", "wasmtime-50.0.1", "--json"))
    assert (answer["warm_before"], answer["compiled"]) == (3, 0)
    assert len(daemon.requests("Compile")) == again


def _forged(folder: Path) -> None:
    (folder / "blobs/sha256" / sha256(HTTP)).write_bytes(HTTP[:-1] + b"!")


def _longer(folder: Path) -> None:
    (folder / "blobs/sha256" / sha256(HTTP)).write_bytes(HTTP * 2)


def _gone(folder: Path) -> None:
    (folder / "blobs/sha256" / sha256(HTTP)).unlink()


def _piped(folder: Path) -> None:
    (folder / "index.json").unlink()
    os.mkfifo(folder / "index.json")


def _index(content: bytes) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "index.json").write_bytes(content)

    return write


def _of(**fields: Any) -> Callable[[Path], None]:
    return _index(json.dumps(fields).encode())


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (_forged, f"not {sha256(HTTP)} as its source says"),
        (_longer, "at most 12 are read"),
        (_gone, "No such file or directory"),
        (_piped, "is no file"),
        (_index(b"{"), "no JSON object"),
        (_index(b"[" * 100_000), "no JSON object"),
        (_index(b" " * (4 * 2**20 + 1)), "at most 4,194,304 are read"),
        (_of(fsLayers=[]), "no list of 2,000 at most"),
        (_of(layers={}), "no list of 2,000 at most"),
        (_of(layers=[descriptor(HTTP, "text/css")] * 2001), "no list of 2,000 at most"),
        (_of(layers=[descriptor(HTTP, "text/css")]), "the types of its layers: text/css"),
        (_of(layers=[{"mediaType": "application/wasm"}]), "a malformed descriptor"),
        (
            _of(layers=[{**descriptor(HTTP, "application/wasm"), "size": -1}]),
            "a malformed descriptor",
        ),
        (
            _of(layers=[{**descriptor(HTTP, "application/wasm"), "digest": "sha512:" + "a" * 128}]),
            "a digest that is no SHA-256",
        ),
        (
            _of(layers=[{**descriptor(HTTP, "application/wasm"), "digest": "sha256:../../passwd"}]),
            "a digest that is no SHA-256",
        ),
    ],
)
def test_a_layout_that_lies_fails_alone(
    run: Callable[..., Result], daemon: FakeDaemon, harm: Callable[[Path], None], says: str
) -> None:
    layout(Path("images"), Image.wash(HTTP))
    harm(Path("images"))
    Path("a.wasm").write_bytes(CACHE)
    result = run("images", "a.wasm", "--json")
    assert result.exit_code == Exit.REFUSED
    assert document(result)["compiled"] == 1
    assert says in document(result)["errors"][0]["message"] + result.stderr
    assert "Traceback" not in result.stderr
    assert daemon.modules.keys() == {sha256(CACHE)}


def test_indexes_end(run: Callable[..., Result], daemon: FakeDaemon) -> None:
    layout(Path("deep"), Image.index(Image.wash(HTTP)))
    layout(Path("wide"), *(Image.wash(WASM + str(n).encode()) for n in range(201)))
    answer = document(run("deep", "wide", "--json"))
    assert [each["message"].partition(" ")[2] for each in answer["errors"]] == [
        "has an index within an index: not read",
        "has a manifest whose manifests are no list of 200 at most",
    ]


def test_a_file_that_changes_meanwhile_is_not_uploaded(
    run: Callable[..., Result], daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("a.wasm").write_bytes(HTTP)
    begin = daemon._begin

    def change(method: str, request: Any, context: Any) -> None:
        if method == "FindMissing":
            Path("a.wasm").write_bytes(CACHE)
        begin(method, request, context)

    monkeypatch.setattr(daemon, "_begin", change)
    result = run("a.wasm")
    assert (result.exit_code, daemon.modules) == (Exit.REFUSED, {})
    assert "a.wasm changed meanwhile: warm it again" in result.stderr


def test_where_there_is_no_terminal_each_artifact_has_a_line(
    run: Callable[..., Result], daemon: FakeDaemon
) -> None:
    Path("a.wasm").write_bytes(HTTP)
    lines = run("a.wasm", "f" * 64, "--jobs", "1").stderr.splitlines()
    assert lines[:2] == [
        "warm a.wasm: wasmtime-50.0.1, 11.7 KiB, compiled in 420 ms (1 of 2)",
        f"failed {'f' * 64} (2 of 2)",
    ]


def test_when_no_daemon_answers_any_more_the_rest_is_not_tried(
    run: Callable[..., Result], daemon: FakeDaemon, refusal: type[Refusal]
) -> None:
    for n in range(20):
        Path(f"{n:02}.wasm").write_bytes(WASM + bytes([n]))
    gone = refusal(grpc.StatusCode.UNAVAILABLE, "", "gone")

    def leave(messages: list[Any]) -> list[Any]:
        daemon.refuse(*[gone] * 100)
        return messages

    daemon.tamper = leave
    result = run(".", "--jobs", "1", "--timeout", "2", "--json")
    answer = document(result)
    assert (answer["compiled"], answer["failed"], len(answer["errors"])) == (1, 19, 1)
    assert result.exit_code == Exit.REFUSED


def test_an_interrupt_just_before_the_wait_is_seen() -> None:
    """A thread that waits without a limit sleeps through a signal that another thread took."""
    entered, over = threading.Event(), threading.Event()

    def work(_: int) -> None:
        entered.set()
        over.wait(30)

    def interrupt() -> None:
        entered.wait(30)
        # To this thread: Python notes it for the main one, and wakes nobody.
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=interrupt, daemon=True).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            in_parallel(2, range(4), work)
    finally:
        over.set()
        signal.signal(signal.SIGINT, before)
    assert sys.exc_info() == (None, None, None)
