"""The Java client against a real daemon."""

from __future__ import annotations

import hashlib
import re
import shutil
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from wasmkiln.errors import BY_REASON
from wasmkiln.v1.module_service_pb2 import CompileRequest

from tests.e2e.processes import eventually
from tests.e2e.programs import ROOT
from tests.lying.server import lying_server
from tests.polyglot.conftest import Built
from tests.polyglot.dying_server import dying_server
from tests.polyglot.file_lies import TAKEN, file_lies
from tests.polyglot.gotools import Go
from tests.polyglot.header_lies import header_lies
from tests.polyglot.kiln import ENGINES, FULL_ENGINE, Kiln, Secure, run

CLIENT = ROOT / "client" / "java"
PROTOS = ROOT / "protos"
JARS = Path("/usr/share/java")
NEEDED = (
    *("grpc-api", "grpc-stub", "grpc-protobuf", "grpc-protobuf-lite", "grpc-context"),
    *("protobuf", "guava", "gson"),
)
AT_RUN_TIME = (
    *("grpc-core", "grpc-netty", "perfmark-api", "netty-buffer", "netty-codec"),
    *("netty-codec-http", "netty-codec-http2", "netty-codec-socks", "netty-common"),
    *("netty-handler", "netty-handler-proxy", "netty-resolver", "netty-transport"),
    *("netty-transport-native-unix-common", "netty-transport-native-epoll"),
    "netty-tcnative",
)
# Not all: each version of Java adds some.
LINTS = "cast,deprecation,empty,fallthrough,finally,overrides,rawtypes,removal,serial,static,try"
LINTS += ",unchecked,varargs"
# Debian's generator asks for an annotation that Java has no more.
GENERATED = "package javax.annotation; public @interface Generated { String value(); %s }"

Words = list[str | Path]
Example = Callable[[Words], tuple[int, str]]

pytestmark = pytest.mark.timeout(1800)


def must(words: Words) -> None:
    done = run(words, cwd=ROOT, timeout_s=900)
    assert done.returncode == 0, done.stdout + done.stderr


def compiled_once(folder: Path, sources: Iterable[Path], build: Callable[[Path], None]) -> Path:
    """Return a folder of classes, which is built anew where the sources have changed."""
    digest = hashlib.sha256()
    for source in sorted(sources):
        digest.update(source.read_bytes())
    to = folder / digest.hexdigest()[:16]
    if not to.exists():
        aside = folder / "unfinished"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        build(aside)
        aside.rename(to)
    return to


def class_path(*parts: str | Path) -> str:
    return ":".join(
        str(JARS / f"{part}.jar") if isinstance(part, str) else str(part) for part in parts
    )


@pytest.fixture(scope="module")
def messages(built: Built) -> Path:
    """The classes that are generated from the protos."""
    folder = built("java")

    def build(to: Path) -> None:
        generated = to / "sources"
        annotation = generated / "javax" / "annotation" / "Generated.java"
        annotation.parent.mkdir(parents=True)
        annotation.write_text(GENERATED % "String comments();")
        plugin = f"--plugin=protoc-gen-grpc-java={shutil.which('grpc_java_plugin')}"
        outs: Words = [f"--java_out={generated}", f"--grpc-java_out={generated}"]
        protos = sorted(PROTOS.glob("wasmkiln/v1/*.proto"))
        must(["protoc", "-I", PROTOS, plugin, *outs, *protos])
        words: Words = ["javac", "-nowarn", "--release", "17", "-cp", class_path(*NEEDED)]
        must([*words, "-d", to, *sorted(generated.rglob("*.java"))])

    return compiled_once(folder / "messages", PROTOS.glob("wasmkiln/v1/*.proto"), build)


@pytest.fixture(scope="module")
def classes(built: Built, messages: Path) -> Path:
    """The client and the example; they compile without a warning."""
    sources = sorted((CLIENT / "src").rglob("*.java"))

    def build(to: Path) -> None:
        words: Words = ["javac", f"-Xlint:{LINTS}", "-Werror", "--release", "17"]
        must([*words, "-cp", class_path(*NEEDED, messages), "-d", to, *sources])

    return compiled_once(built("java") / "client", sources, build)


@pytest.fixture(scope="module")
def run_path(classes: Path, messages: Path) -> str:
    """The class path to run a program that uses the client."""
    return class_path(classes, messages, *NEEDED, *AT_RUN_TIME)


@pytest.fixture(scope="module")
def example(kiln: Kiln, built: Built, run_path: str) -> Example:
    # Debian's netty has no ALPN by Java's own TLS, and looks for the library that has it under
    # another name than Debian gave it.
    library = built("java") / "lib" / "libnetty_tcnative.so"
    [debian] = Path("/usr/lib").glob("*/jni/libnetty-tcnative.so")
    library.parent.mkdir(exist_ok=True)
    shutil.copyfile(debian, library)
    flags: Words = ["-XX:TieredStopAtLevel=1", f"-Djava.library.path={library.parent}"]
    start: Words = ["java", *flags, "-cp", run_path, "com.wasmkiln.example.Example"]

    def call(words: Words) -> tuple[int, str]:
        done = kiln.run([*start, *words])
        assert done.stdout, done.stderr
        print(done.stdout, end="")
        return done.returncode, done.stdout.strip()

    return call


def refused(example: Example, words: Words) -> str:
    """Run the example, which has to fail. Return the reason and its sentence."""
    code, said = example(words)
    assert code == 1, said
    return said.splitlines()[-1].removeprefix("java error ")


def test_the_pom_asks_for_what_the_client_imports() -> None:
    names = {"m": "http://maven.apache.org/POM/4.0.0"}
    pom = ET.parse(CLIENT / "pom.xml").getroot()
    asked = {each.text for each in pom.findall(".//m:dependency/m:artifactId", names)}
    assert {"grpc-protobuf", "grpc-stub", "protobuf-java", "gson"} <= asked
    roots = [each.text for each in pom.findall(".//m:protoSourceRoot", names)]
    assert roots == ["${project.basedir}/../../protos"]


def test_it_compiles_verifies_and_hits(kiln: Kiln, example: Example) -> None:
    for engine in ENGINES:
        flags: Words = ["--key", kiln.key_file, "--engine", engine, "--no-host-store"]
        code, said = example([kiln.address, kiln.fresh_module(), *flags])
        assert code == 0
        first, second, error = said.splitlines()
        assert first.endswith("from compiled")
        assert second.endswith("from memory")
        assert engine in first
        assert error.startswith("java error MODULE_INVALID: ")


def test_a_host_runs_a_file_of_the_host_store(kiln: Kiln, built: Built, example: Example) -> None:
    out = kiln.folder / "java.cwasm"
    flags: Words = ["--key", kiln.key_file, "--engine", FULL_ENGINE, "--out", out]

    def is_taken() -> bool:
        code, said = example([kiln.address, kiln.module, *flags])
        assert code == 0
        return TAKEN in said.splitlines()[0]

    # A client with keys takes no file that is younger than a second.
    eventually(is_taken, "the file does not count")
    ran = kiln.run([Go(built("go")).host(), out, "fib", "20"])
    print(f"what java compiled: {ran.stdout}", end="")
    assert ran.stdout == "go host ran fib[20] = 6765\n"


def test_it_refuses_another_signer_in_bytes_and_files(kiln: Kiln, example: Example) -> None:
    for flags in ([], ["--no-host-store"]):
        words: Words = [kiln.address, kiln.module, "--key", kiln.wrong_key_file, *flags]
        said = refused(example, words)
        assert said.startswith("ATTESTATION_INVALID: the attestation is signed by a key that is")


def test_it_says_why_a_call_failed(kiln: Kiln, example: Example) -> None:
    said = refused(example, [kiln.address, kiln.module, "--digest", "0" * 64])
    assert said.startswith("MODULE_NOT_LOADED: ")
    said = refused(example, [kiln.address, kiln.module, "--engine", "wasmtime-1.0.0"])
    assert said.startswith("ENGINE_UNKNOWN: ")
    said = refused(example, ["127.0.0.1:1", kiln.module])
    assert said.startswith("CONNECTION_FAILED: no daemon answers at 127.0.0.1:1 (connection")
    with dying_server() as dying:
        said = refused(example, [dying, kiln.module])
    assert said.startswith(f"CONNECTION_FAILED: no daemon answers at {dying} (")
    assert "the connection was lost" in said


def test_a_full_queue(kiln: Kiln, example: Example) -> None:
    module = kiln.fresh_module()
    with kiln.full_queue() as engine:
        said = refused(example, [kiln.address, module, "--engine", engine])
    assert said.startswith("COMPILE_QUEUE_FULL: ")


def test_tls_and_tokens(kiln: Kiln, secure: Secure, example: Example) -> None:
    module = kiln.fresh_module()
    tls: Words = ["--ca", secure.ca_file]
    flags: Words = ["--key", secure.key_file, "--no-host-store"]
    code, _ = example([secure.address, module, *tls, "--token-file", secure.token_file, *flags])
    assert code == 0
    said = refused(example, [secure.address, module, *tls])
    assert said.startswith("CREDENTIALS_MISSING: ")
    said = refused(example, [secure.address, module, "--ca", secure.other_ca_file])
    assert said.startswith("CONNECTION_FAILED: ")
    assert "a CA that is not trusted" in said
    said = refused(example, [secure.address, module])
    assert said.startswith("CONNECTION_FAILED: ")
    remote: Words = ["kiln.example:50051", module, "--token-file", secure.token_file]
    assert "in plaintext" in refused(example, remote)


def test_what_it_refuses_by_itself(kiln: Kiln, run_path: str) -> None:
    program = Path(__file__).with_name("Checks.java")
    words: Words = [kiln.address, kiln.fresh_module(), FULL_ENGINE, kiln.wrong_key_file]
    done = kiln.run(["java", "-cp", run_path, program, *words])
    assert done.stdout == "java checks what it should\n", done.stdout + done.stderr


def test_each_reason_has_a_class_in_each_language() -> None:
    java = (CLIENT / "src/main/java/com/wasmkiln/client/WasmkilnException.java").read_text()
    others = {
        "go": (ROOT / "client/go/errors.go").read_text(),
        "cpp": (ROOT / "client/cpp/src/errors.cc").read_text(),
        "node": (ROOT / "client/node/lib/errors.js").read_text(),
    }
    reasons = re.findall(r'case "([A-Z_]+)" -> new', java)
    # What pins are refused for is no concern of clients that cannot pin.
    assert set(BY_REASON) - {"MODULE_PINNED", "PINS_FULL"} <= set(reasons)
    for language, text in others.items():
        missing = [each for each in reasons if f'"{each}"' not in text.replace("'", '"')]
        assert missing == [], language


def asks(kiln: Kiln, path: str, address: str, module: Path, times: int, kind: str) -> list[str]:
    """Ask a server that lies, all in one Java. Return what it took each time, or why not."""
    program = Path(__file__).with_name("Asks.java")
    words: Words = [address, module, FULL_ENGINE, kiln.key_file, str(times), kind]
    done = kiln.run(["java", "-cp", path, program, *words])
    said = done.stdout.splitlines()
    assert len(said) == times, done.stdout + done.stderr
    return said


def test_no_lie_about_a_field_is_believed(kiln: Kiln, run_path: str) -> None:
    lies = header_lies(kiln)
    with lying_server() as liar:
        answers = iter(lies.answers.values())
        liar.answers["Compile"] = lambda _request, _context: iter(next(answers))
        said = asks(kiln, run_path, liar.address, lies.module, len(lies.answers), "bytes")
    for field, line in zip(lies.answers, said, strict=True):
        assert (line == "bytes") is (field in lies.believed), (field, line)
    print(f"java believes none of {len(said) - len(lies.believed)} lies about what counts")


def test_a_file_counts_only_if_it_may_be_trusted(kiln: Kiln, run_path: str) -> None:
    lies = list(file_lies(kiln))
    upcoming = iter(lies)
    now = lies[:1]

    def answer(request: bytes, context: object) -> Iterator[bytes]:
        if CompileRequest.FromString(request).accept_host_file:
            now[0] = next(upcoming)
        return now[0].answer(request, context)

    with lying_server() as liar:
        liar.answers["Compile"] = answer
        said = asks(kiln, run_path, liar.address, lies[0].module, len(lies), "files")
    for lie, line in zip(lies, said, strict=True):
        assert line == ("file" if lie.counts else "bytes"), (lie.name, line)


def test_the_readme_compiles(classes: Path, messages: Path, tmp_path: Path) -> None:
    page = (CLIENT / "README.md").read_text()
    program = page.partition("```java\n")[2].partition("```")[0]
    (tmp_path / "Readme.java").write_text(
        "import com.wasmkiln.client.*; import java.nio.file.Path;\n"
        "class Readme { static void compile(byte[] module) throws Exception {\n"
        f"{program}}} }}\n"
    )
    words: Words = ["javac", "-cp", class_path(*NEEDED, classes, messages), "-d", tmp_path]
    must([*words, tmp_path / "Readme.java"])
