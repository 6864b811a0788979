"""The clients that are not Python's against a real daemon, and against servers that lie.

Each has a program, `Asks.java` and its like, that compiles a module and says in one line what came
of it. The same tests run with all.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import re
import shutil
import subprocess
import threading
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from subprocess import PIPE
from typing import Any

import grpc
import pytest
from google.protobuf.any_pb2 import Any as Packed
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from tests.e2e.processes import eventually
from tests.e2e.programs import ROOT
from tests.e2e.programs import test_state_dir as state_dir
from tests.lying.server import Answer, lying_server
from tests.node_package import SOURCE, NodePackage, node_package
from tests.polyglot import builds, lies
from tests.polyglot.builds import Asks, Words, said_in
from tests.polyglot.conftest import Built
from tests.polyglot.gotools import CLIENT as GO
from tests.polyglot.gotools import Go
from tests.polyglot.kiln import ENGINES, FULL_ENGINE, Kiln, Secure
from tests.polyglot.lies import TrueAnswer, dying_server
from tests.polyglot.rusttools import CLIENT as RUST

# The first test of a fresh clone builds: minutes on a busy machine.
pytestmark = pytest.mark.timeout(builds.BUILD_TIMEOUT_S)
MAPPING = ["go", "node", "rust"]
"""Those that take files of the host store."""


@pytest.fixture(scope="module")
def package(built: Built) -> NodePackage:
    return node_package(built("node"), dev=True)


@pytest.fixture(scope="module")
def true(kiln: Kiln) -> TrueAnswer:
    return lies.true_answer(kiln)


@pytest.fixture(scope="module")
def host(built: Built) -> Path:
    return Go(built("go")).host()


@pytest.mark.parametrize("engine", ENGINES)
def test_it_compiles_verifies_and_hits(kiln: Kiln, asks: Asks, engine: str) -> None:
    module, out = kiln.fresh_module(), kiln.folder / f"{asks.language}-{engine}.cwasm"
    flags: Words = ["--key", kiln.key_file, "--engine", engine, "--out", out]
    first, second = asks(kiln.address, module, *flags, "--times", "2")
    assert (first.what, second.what) == ("compiled", "compiled")
    assert (first.origin_or_id, second.origin_or_id) == ("ORIGIN_COMPILED", "ORIGIN_MEMORY")
    assert first.engine_or_retry_ms == engine
    assert first.text == hashlib.sha256(module.read_bytes()).hexdigest()
    with kiln.daemon.client() as client:
        assert out.read_bytes() == client.compile(module, engine=engine).bytes
    loaded = asks.once(kiln.address, module, "--engine", engine, "--load", "yes")
    assert (loaded.what, loaded.engine_or_retry_ms, loaded.text) == ("loaded", engine, first.text)


def test_a_host_runs_what_it_wrote(kiln: Kiln, asks: Asks, host: Path) -> None:
    out = kiln.folder / f"{asks.language}.cwasm"
    flags: Words = ["--key", kiln.key_file, "--engine", FULL_ENGINE, "--out", out]
    assert asks.once(kiln.address, kiln.module, *flags).what == "compiled"
    ran = kiln.run([host, out, "fib", "20"])
    assert ran.stdout == "go host ran fib[20] = 6765\n"


def test_it_refuses_another_signer(kiln: Kiln, asks: Asks) -> None:
    for flags in ([], ["--store", "yes"]) if asks.language in MAPPING else ([],):
        said = asks.once(kiln.address, kiln.module, "--key", kiln.wrong_key_file, *flags)
        assert (said.what, said.size_or_cause) == ("ATTESTATION_INVALID", "stranger")
        assert said.text.startswith("the attestation is signed by a key that is not trusted")
        assert re.fullmatch("[0-9a-f]{16}", said.origin_or_id), "it names no request"


def test_it_reads_keys_in_pem_and_in_no_other_form(kiln: Kiln, asks: Asks, tmp_path: Path) -> None:
    raw, file, pem = raw_key(kiln), tmp_path / "key", kiln.key_file.read_text()
    for text in (pem, f"\n{pem}\n", pem + kiln.wrong_key_file.read_text()):
        file.write_text(text)
        assert asks.once(kiln.address, kiln.module, "--key", file).what == "compiled"
    secret = "-----BEGIN PRIVATE KEY-----\nMC4CAQ\n-----END PRIVATE KEY-----"
    for wrong in ("", "abc", raw.hex(), base64.b64encode(raw).decode(), secret, pem.lower()):
        file.write_text(wrong)
        said = asks.once(kiln.address, kiln.module, "--key", file)
        assert said.what == "unusable"
        assert "PRIVATE" not in said.text
        assert raw.hex() not in said.text


def raw_key(kiln: Kiln) -> bytes:
    """Return the 32 bytes of a daemon's key."""
    _, *body, _ = kiln.key_file.read_text().splitlines()
    return base64.b64decode("".join(body))[-32:]


@pytest.mark.parametrize("place", ["keys/revoked", "keys/trusted/revoked"])
def test_it_refuses_what_a_revoked_key_signed(
    kiln: Kiln, asks: Asks, tmp_path: Path, place: str
) -> None:
    trusted = tmp_path / "keys" / "trusted"
    trusted.mkdir(parents=True)
    shutil.copy(kiln.key_file, trusted / "own.pem")
    assert asks.once(kiln.address, kiln.module, "--key", trusted).what == "compiled"
    key_id = hashlib.sha256(raw_key(kiln)).hexdigest()
    revoked = tmp_path / place
    revoked.mkdir()
    (revoked / "one.json").write_text(json.dumps({"key_id": key_id, "since_ms": 0}))
    # With no key left, nothing would be checked.
    assert asks.once(kiln.address, kiln.module, "--key", trusted).what == "unusable"
    shutil.copy(kiln.wrong_key_file, trusted / "other.pem")
    said = asks.once(kiln.address, kiln.module, "--key", trusted)
    assert said.what == "ATTESTATION_INVALID"
    (revoked / "one.json").write_text("{}")
    said = asks.once(kiln.address, kiln.module, "--key", trusted)
    assert said.what == "unusable"
    assert "key_id" in said.text


def test_it_says_why_a_call_failed(kiln: Kiln, asks: Asks) -> None:
    call: Words = [kiln.address, kiln.module]
    invalid = asks.once(kiln.address, kiln.invalid_module, "--engine", FULL_ENGINE)
    assert invalid.what == "MODULE_INVALID"
    assert asks.once(kiln.address, "/dev/null").what == "NOT_WASM"
    assert asks.once(*call, "--digest", "0" * 64).what == "MODULE_NOT_LOADED"
    assert asks.once(*call, "--engine", "wasmtime-1.0.0").what == "ENGINE_UNKNOWN"
    for digest in ("00", "G" * 64):
        assert asks.once(*call, "--digest", digest).what == "unusable"
    short: Words = ["--timeout-ms", "2500"]
    nobody = asks.once("127.0.0.1:1", kiln.module, *short)
    assert nobody.what == "CONNECTION_FAILED"
    assert nobody.text.startswith("no daemon answers at 127.0.0.1:1 (")
    assert re.search("connection refused|ECONNREFUSED", nobody.text, re.IGNORECASE)
    with dying_server() as dying:
        said = asks.once(dying, kiln.module, *short)
    assert said.what == "CONNECTION_FAILED"
    assert said.text.startswith(f"no daemon answers at {dying} (")


def test_a_full_queue(kiln: Kiln, asks: Asks) -> None:
    module = kiln.fresh_module()
    with kiln.full_queue() as engine:
        said = asks.once(kiln.address, module, "--engine", engine, "--timeout-ms", "2500")
    assert said.what == "COMPILE_QUEUE_FULL"
    assert int(said.engine_or_retry_ms) > 0


def test_a_reason_of_a_newer_daemon(kiln: Kiln, asks: Asks) -> None:
    details = [ErrorInfo(reason="MOON_IS_FULL", domain="wasmkiln"), RetryInfo()]
    details[1].retry_delay.FromMilliseconds(2500)
    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    status = Status(code=code.value[0], message="cannot")
    for each in details:
        packed = Packed()
        packed.Pack(each)
        status.details.append(packed)
    with lying_server() as liar:
        liar.fail("Compile", code, "cannot", status.SerializeToString())
        said = asks.once(liar.address, kiln.module, "--timeout-ms", "2000")
        assert (said.what, said.engine_or_retry_ms) == ("MOON_IS_FULL", "2500")
        liar.fail("Compile", code, "cannot", b"\xff damaged")
        assert asks.once(liar.address, kiln.module).what == ""


def test_it_says_who_asks_and_for_what(kiln: Kiln, asks: Asks, secure: Secure) -> None:
    """In the first call and in the one that uploads."""
    said: list[dict[str, str]] = []

    def note(answer: Answer) -> Answer:
        def noted(request: bytes, context: Any) -> Iterator[bytes]:
            said.append(dict(context.invocation_metadata()))
            return answer(request, context)

        return noted

    digest = hashlib.sha256(kiln.module.read_bytes()).hexdigest()
    info = Packed()
    info.Pack(ErrorInfo(reason="MODULE_NOT_LOADED", domain="wasmkiln"))
    status = Status(code=5, details=[info]).SerializeToString()
    token: Words = ["--token-file", secure.token_file]
    with lying_server() as liar:
        liar.fail("Compile", grpc.StatusCode.NOT_FOUND, "cannot", status)
        liar.answers["Compile"] = note(liar.answers["Compile"])
        assert asks.once(liar.address, kiln.module, *token).what == "MODULE_NOT_LOADED"
        liar.answers["Load"] = note(lambda _request, _context: iter([b""]))
        loaded = asks.once(liar.address, kiln.module, *token, "--load", "yes")
        assert loaded.what == "UNEXPECTED_ANSWER"
    assert loaded.origin_or_id == said[2]["x-request-id"]
    assert len({one["x-request-id"] for one in said}) == 2
    for one, priority in zip(said, (None, None, "background"), strict=True):
        assert one["authorization"] == f"Bearer {secure.token.strip()}"
        assert one["wasmkiln-module"] == digest
        assert one.get("wasmkiln-priority") == priority


def test_tls_and_tokens(kiln: Kiln, secure: Secure, asks: Asks) -> None:
    module = kiln.fresh_module()
    token: Words = ["--token-file", secure.token_file]
    tls: Words = ["--ca", secure.ca_file]
    said = asks.once(secure.address, module, *tls, *token, "--key", secure.key_file)
    assert said.what == "compiled"
    assert asks.once(secure.address, module, *tls).what == "CREDENTIALS_MISSING"
    other = asks.once(secure.address, module, "--ca", secure.other_ca_file, *token)
    assert other.what == "CONNECTION_FAILED"
    plain = asks.once(secure.address, module, "--timeout-ms", "2500")
    assert plain.what == "CONNECTION_FAILED"
    names = ("kiln.example", "dns:///kiln.example", "127.0.0.1.example", "unixprod")
    for address in [f"{name}:1" for name in names]:
        remote = asks.once(address, module, *token)
        assert remote.what == "unusable"
        assert "in plaintext" in remote.text


def test_each_reason_that_a_daemon_has(kiln: Kiln, asks: Asks) -> None:
    # That one is retried, wherever it comes.
    reasons = sorted(reasons_of_the_page() - {"UPLOAD_INTERRUPTED"})
    upcoming = iter(reasons)
    details = ErrorInfo(domain="wasmkiln")

    def refuse(_request: bytes, context: Any) -> Iterator[bytes]:
        details.reason, packed = next(upcoming), Packed()
        packed.Pack(details)
        status = Status(code=9, message="cannot", details=[packed]).SerializeToString()
        context.set_trailing_metadata((("grpc-status-details-bin", status),))
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "cannot")
        yield b""

    with lying_server() as liar:
        liar.answers["Compile"] = refuse
        words: Words = ["--digest", "0" * 64, "--times", str(len(reasons))]
        said = asks(liar.address, kiln.module, *words)
    assert [line.what for line in said] == reasons


def reasons_of_the_page() -> set[str]:
    """Return the reasons that docs/reference/errors.md has."""
    page = (ROOT / "docs" / "reference" / "errors.md").read_text()
    due = set(re.findall(r"^\| `([A-Z_]+)` \| `", page, re.MULTILINE))
    assert "MODULE_INVALID" in due
    # What pins are refused for is no concern of clients that cannot pin.
    return due - {"MODULE_PINNED", "PINS_FULL"}


@pytest.mark.parametrize("address", ["localhost", "http://127.0.0.1:1", "127.0.0.1:0"])
def test_an_address_of_no_use(kiln: Kiln, asks: Asks, address: str) -> None:
    said = asks.once(address, kiln.module)
    assert said.what == "unusable"
    assert "an address is" in said.text


def test_a_unix_socket(
    kiln: Kiln, secure: Secure, asks: Asks, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A token may go there."""
    path = tmp_path_factory.mktemp("socket") / "kiln.sock"
    words: Words = [f"unix:{path}", kiln.module, "--token-file", secure.token_file]
    with lying_server(f"unix:{path}") as liar:
        said = asks.once(*words)
    if asks.language == "java":
        # Debian's gRPC knows no Unix sockets.
        assert said.what == "unusable"
        assert said.text.startswith(f"cannot connect to unix:{path}: ")
        assert said.text.endswith("need Linux and grpc-netty-shaded 1.47 or newer")
    else:
        assert said.what == "compiled"
        assert liar.calls == ["Compile"]


def test_no_lie_is_believed(kiln: Kiln, true: TrueAnswer, asks: Asks) -> None:
    told = lies.lies_about(true)
    upcoming = iter(told.values())
    with lying_server() as liar:
        liar.answers["Compile"] = lambda _request, _context: iter(next(upcoming)[0])
        flags: Words = ["--engine", FULL_ENGINE, "--key", kiln.key_file]
        said = asks(liar.address, true.module, *flags, "--times", str(len(told)))
    for (name, (_, due)), line in zip(told.items(), said, strict=True):
        assert line.what == due or (not due and line.what != "compiled"), (name, line)
    print(f"{asks.language} believes none of {sum(one.what != 'compiled' for one in said)} lies")


def test_an_answer_without_end(true: TrueAnswer, asks: Asks) -> None:
    """It costs a bounded time and a bounded memory, and the daemon learns that nobody reads."""
    first = lies.header_first(true.header)
    ended = [threading.Event(), threading.Event()]
    upcoming = iter([itertools.repeat(b""), itertools.repeat(lies.chunk(b"!" * 1000))])

    def answer(_request: bytes, context: Any) -> Iterator[bytes]:
        context.add_callback(ended[0].set if not ended[0].is_set() else ended[1].set)
        return itertools.chain([first], next(upcoming))

    with lying_server() as liar:
        liar.answers["Compile"] = answer
        flags: Words = ["--engine", FULL_ENGINE, "--timeout-ms", "3000"]
        words: Words = [liar.address, true.module, *flags]
        assert asks.once(*words).what == "DEADLINE_EXCEEDED"
        assert ended[0].wait(60)
        assert asks.once(*words).what == "ARTIFACT_MISMATCH"
        assert ended[1].wait(60)


def test_a_caller_ends_a_call(kiln: Kiln, asks: Asks) -> None:
    """That which runs, and each that begins later; the daemon learns of it."""
    ended = threading.Event()

    def wait(_request: bytes, context: Any) -> Iterator[bytes]:
        context.add_callback(ended.set)
        ended.wait(60)
        return iter(())

    with lying_server() as liar:
        liar.answers["Compile"] = wait
        flags: Words = ["--pause", "call", "--times", "2"]
        argv = list(map(str, [*asks.argv, liar.address, kiln.module, *flags]))
        with subprocess.Popen(argv, stdin=PIPE, stdout=PIPE, text=True, cwd=ROOT) as running:
            eventually(lambda: liar.calls or running.poll() is not None, "no call arrives")
            output, _ = running.communicate("\n", timeout=60)
    assert [line.what for line in said_in(output)] == ["cancelled"] * 2
    assert ended.is_set()
    assert len(liar.calls) == 1


@pytest.mark.parametrize("asks", MAPPING, indirect=True)
def test_a_file_counts_only_if_it_may_be_trusted(kiln: Kiln, true: TrueAnswer, asks: Asks) -> None:
    told = lies.file_lies(kiln, true)
    upcoming = iter([*told.values()] * 3)
    now: list[Answer] = []

    def answer(request: bytes, context: object) -> Iterator[bytes]:
        if b"\x48\x01" in request:  # accept_host_file: a client asks for bytes next
            now[:] = [next(upcoming)]
        return now[0](request, context)

    with lying_server() as liar:
        liar.answers["Compile"] = answer
        flags: Words = ["--store", "yes", "--key", kiln.key_file, "--engine", FULL_ENGINE]
        said = asks(liar.address, true.module, *flags, "--times", str(3 * len(told)))
    for name, line in zip([*told] * 3, said, strict=True):
        assert line.what == "compiled", (name, line)
        assert (line.origin_or_id == "FILE") is (name == lies.TRUTH), (name, line)


@pytest.mark.parametrize("asks", MAPPING, indirect=True)
@pytest.mark.parametrize("is_touched", [True, False], ids=["touched", "other bytes"])
def test_what_is_written_to_an_open_file_is_noticed(
    true: TrueAnswer, asks: Asks, tmp_path: Path, is_touched: bool
) -> None:
    path, named = lies.stored(tmp_path, true)
    with lying_server() as liar:
        liar.answers["Compile"] = lies.answer_by_file(true, named)
        flags: Words = ["--store", "yes", "--pause", "file"]
        argv = list(map(str, [*asks.argv, liar.address, true.module, *flags]))
        with subprocess.Popen(argv, stdin=PIPE, stdout=PIPE, text=True, cwd=ROOT) as running:
            assert running.stdout
            assert running.stdout.readline() == "opened\n"
            path.touch() if is_touched else path.write_bytes(bytes(len(true.code)))
            output, _ = running.communicate("\n", timeout=60)
    [said] = said_in(output)
    assert said.what == "ARTIFACT_MISMATCH"
    assert ("the file changed" in said.text) is is_touched


@pytest.mark.parametrize("asks", MAPPING, indirect=True)
def test_it_takes_a_file_of_the_host_store(kiln: Kiln, asks: Asks) -> None:
    flags: Words = ["--store", "yes", "--key", kiln.key_file, "--engine", FULL_ENGINE]
    module = kiln.fresh_module()
    # A client with keys takes no file that is younger than a second.
    eventually(
        lambda: asks.once(kiln.address, module, *flags).origin_or_id == "FILE",
        "the file does not count",
    )


def test_its_artifact_runs_in_node(kiln: Kiln, package: NodePackage) -> None:
    """Verified bytes of a file that is young, and a file where nothing verifies it."""
    [library] = (state_dir() / "engines" / FULL_ENGINE).glob(
        "lib/python3*/site-packages/wasmtime/linux-*/_libwasmtime.so"
    )
    module, program = kiln.fresh_module(), package.package / "examples" / "host.js"
    modules = {"NODE_PATH": str(package.modules), "KILN_ENGINE": FULL_ENGINE}
    for number, result, key in ((10, 55, {"KILN_KEY": str(kiln.key_file)}), (20, 6765, {})):
        words: Words = ["node", program, library, kiln.address, module, "fib", str(number)]
        done = kiln.run(words, {**modules, **key})
        begins = f"node host ran fib({number}) = {result} with {FULL_ENGINE}, "
        assert done.stdout.startswith(begins), done.stderr
    assert done.stdout.endswith(", mapped from the host store\n")


def test_nodes_types(kiln: Kiln, package: NodePackage) -> None:
    words = ["--noEmit", "--strict", "--module", "nodenext", "--target", "es2022"]
    tsc: Words = ["node", package.modules / "typescript" / "bin" / "tsc", *words]
    test = package.package / "test"
    done = kiln.run([*tsc, "--types", "node", "types.mts"], cwd=test)
    assert done.returncode == 0, done.stdout


def test_gos_source_is_formatted_vetted_and_fresh(built: Built, tmp_path: Path) -> None:
    go = Go(built("go"))
    assert go("gofmt", "-l", ".", Path(__file__).parent) == ""
    go("go", "vet", ".", "./hosts/...")
    go("sh", "generate.sh", tmp_path)
    for file in tmp_path.iterdir():
        checked_in = GO / "wasmkilnpb" / file.name
        assert file.read_text() == checked_in.read_text(), f"go generate changes {file.name}"


def test_java_asks_in_its_pom_for_what_it_imports() -> None:
    names = {"m": "http://maven.apache.org/POM/4.0.0"}
    pom = ET.parse(builds.JAVA / "pom.xml").getroot()
    asked = {each.text for each in pom.findall(".//m:dependency/m:artifactId", names)}
    assert {"grpc-protobuf", "grpc-stub", "protobuf-java", "gson"} <= asked
    roots = [each.text for each in pom.findall(".//m:protoSourceRoot", names)]
    assert roots == ["${project.basedir}/../../protos"]


def test_each_reason_has_an_error_in_go_node_and_rust() -> None:
    due = reasons_of_the_page()
    for errors in (GO / "errors.go", SOURCE / "lib" / "errors.js", RUST / "src" / "error.rs"):
        assert due - set(re.findall(r"\w+", errors.read_text())) == set(), errors.name


@pytest.mark.parametrize("asks", ["cpp"], indirect=True)
def test_cpp_by_its_readme(asks: Asks, kiln: Kiln) -> None:
    """Its first lines have built the library, in the folder above."""
    folder = Path(asks.argv[0]).parents[2]
    program = builds.readme(builds.CPP, "cpp").replace("127.0.0.1:50051", kiln.address)
    (folder / "program.cc").write_text(program)
    (folder / "CMakeLists.txt").write_text(builds.readme(builds.CPP, "cmake"))
    for name in ("key.pem", "add.wasm"):
        (folder / name).unlink(missing_ok=True)

    def by_the_readme() -> subprocess.CompletedProcess[str]:
        return kiln.run(["sh", "-c", builds.readme(builds.CPP, "bash")], cwd=folder)

    done = by_the_readme()
    assert (done.returncode, done.stderr) == (1, f"cannot read {folder}/key.pem: no such file\n")
    (folder / "key.pem").write_text(kiln.key_file.read_text())
    done = by_the_readme()
    assert (done.returncode, done.stderr) == (1, "cannot read add.wasm: no such file\n")
    (folder / "add.wasm").write_bytes(b"no module")
    done = by_the_readme()
    assert done.returncode == 1
    assert done.stderr.startswith("NOT_WASM: ")
    (folder / "add.wasm").write_bytes(kiln.module.read_bytes())
    done = by_the_readme()
    assert done.returncode == 0
    assert "wasmtime-50.0.1: " in done.stdout, done.stderr


@pytest.mark.parametrize("asks", ["cpp"], indirect=True)
@pytest.mark.parametrize("name", ["", "/missing"])
def test_what_cannot_be_read_is_no_empty_module(
    asks: Asks, kiln: Kiln, tmp_path: Path, name: str
) -> None:
    said = asks.once(kiln.address, f"{tmp_path}{name}")
    assert said.what == "unusable"
    assert said.text.startswith(f"cannot read {tmp_path}{name}: ")


def test_no_proxy_gets_what_goes_to_this_machine(
    asks: Asks, kiln: Kiln, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The last is for Java.
    for name in ("http_proxy", "https_proxy", "grpc_proxy", "GRPC_PROXY_EXP"):
        monkeypatch.setenv(name, "127.0.0.1:1" if name.isupper() else "http://127.0.0.1:1")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "")
    said = asks.once(kiln.address, kiln.module, "--timeout-ms", "20000")
    assert said.what == "compiled", said


def test_it_asks_which_artifacts_are_missing(asks: Asks, kiln: Kiln) -> None:
    module = kiln.fresh_module()
    digest = hashlib.sha256(module.read_bytes()).hexdigest()
    call: Words = [kiln.address, module, "--engine", FULL_ENGINE]
    assert asks.once(*call, "--missing", digest).size_or_cause == "1"
    assert asks.once(*call).what == "compiled"
    assert asks.once(*call, "--missing", digest).size_or_cause == "0"


def test_code_of_the_fast_compiler(asks: Asks, kiln: Kiln, tmp_path: Path) -> None:
    """Only for a call that accepts it."""
    module, fast, best = kiln.fresh_module(), tmp_path / "fast", tmp_path / "best"
    call: Words = [kiln.address, module, "--engine", FULL_ENGINE, "--out"]
    assert asks.once(*call, fast, "--accept-fast", "yes").what == "compiled"
    assert asks.once(*call, best).what == "compiled"
    assert fast.read_bytes() != best.read_bytes()


@pytest.mark.parametrize("asks", ["cpp", "node", "rust"], indirect=True)
def test_a_token_that_no_header_can_have(asks: Asks, kiln: Kiln, tmp_path: Path) -> None:
    """It would abort gRPC in C++."""
    broken = tmp_path / "broken"
    broken.write_text("a token\nof two lines")
    said = asks.once(kiln.address, broken, "--token-file", broken)
    assert said.what == "unusable"
    assert said.text.startswith("cannot use the token: ")
    assert "of two lines" not in said.text
