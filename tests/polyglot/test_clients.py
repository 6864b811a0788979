"""The clients for Java and C++ against a real daemon, and against servers that lie.

Each has a program, `Asks.java` and `asks.cc`, that compiles a module and says in one line what came
of it. The same tests run with both.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import threading
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest

from tests.e2e.processes import eventually
from tests.e2e.programs import ROOT
from tests.lying.server import lying_server
from tests.polyglot.answer_lies import answer_lies
from tests.polyglot.conftest import Built
from tests.polyglot.dying_server import dying_server
from tests.polyglot.gotools import Go
from tests.polyglot.header_lies import header_lies
from tests.polyglot.kiln import ENGINES, FULL_ENGINE, Kiln, Secure, run

JAVA, CPP = ROOT / "client" / "java", ROOT / "client" / "cpp"
HERE = Path(__file__).parent
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
# A project of a user, which finds the installed library.
PROJECT = """cmake_minimum_required(VERSION 3.16)
project(user CXX)
find_package(wasmkiln REQUIRED)
find_package(Threads REQUIRED)
foreach(name readme asks ends)
  add_executable(${name} %s/${name}.cc)
  target_link_libraries(${name} wasmkiln::wasmkiln Threads::Threads)
endforeach()
"""
OWN_REASONS = (
    *("CONNECTION_FAILED", "DEADLINE_EXCEEDED", "ARTIFACT_MISMATCH", "ATTESTATION_INVALID"),
    "UNEXPECTED_ANSWER",
)
"""What clients say for themselves."""
_BUILD_TIMEOUT_S = 1800

Words = list[str | Path]
# The first test of a fresh clone builds: minutes on a busy machine.
pytestmark = pytest.mark.timeout(_BUILD_TIMEOUT_S)


@dataclass(frozen=True)
class Said:
    """A line of a program."""

    what: str
    """"compiled", the reason of an error, or "unusable" for an argument that is of no use."""
    origin_or_id: str
    """Where the artifact comes from, or the request's id."""
    engine_or_retry_ms: str
    size_or_cause: str
    """The artifact's size, or the `cause` in the error's metadata."""
    text: str
    """The module's digest, or the error's sentence."""


@dataclass(frozen=True)
class Asks:
    """The program of a language."""

    language: str
    argv: Words

    def __call__(self, *words: str | Path) -> list[Said]:
        """Run it. Return what it says, a line for each call."""
        done = run([*self.argv, *words], cwd=ROOT)
        assert done.stdout, done.stderr
        print(done.stdout, end="")
        return [Said(*line.split("\t")) for line in done.stdout.splitlines()]

    def once(self, *words: str | Path) -> Said:
        """Run it for one call."""
        (said,) = self(*words)
        return said


def must(words: Sequence[str | Path]) -> None:
    done = run(words, cwd=ROOT, timeout_s=_BUILD_TIMEOUT_S)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


def readme(client: Path, language: str) -> str:
    """Return the program of a client's README."""
    return (client / "README.md").read_text().partition(f"```{language}\n")[2].partition("```")[0]


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
def java(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Asks:
    """The program in Java. The client compiles without a warning, and the README's example too."""
    folder, work = built("java"), tmp_path_factory.mktemp("java")
    # Maven gets the classes of google.rpc in a jar; Debian's gRPC comes without it.
    protos = sorted([*PROTOS.glob("wasmkiln/v1/*.proto"), *PROTOS.glob("google/rpc/*.proto")])
    javac: Words = ["javac", "--release", "17"]

    def generate(to: Path) -> None:
        generated = to / "sources"
        annotation = generated / "javax" / "annotation" / "Generated.java"
        annotation.parent.mkdir(parents=True)
        annotation.write_text(GENERATED % "String comments();")
        plugin = f"--plugin=protoc-gen-grpc-java={shutil.which('grpc_java_plugin')}"
        outs: Words = [f"--java_out={generated}", f"--grpc-java_out={generated}"]
        must(["protoc", "-I", PROTOS, plugin, *outs, *protos])
        words: Words = [*javac, "-nowarn", "-cp", class_path(*NEEDED), "-d", to]
        must([*words, *sorted(generated.rglob("*.java"))])

    messages = compiled_once(folder / "messages", protos, generate)
    sources = sorted((JAVA / "src").rglob("*.java"))
    words: Words = [*javac, f"-Xlint:{LINTS}", "-Werror", "-cp", class_path(*NEEDED, messages)]
    classes = compiled_once(
        folder / "client", sources, lambda to: must([*words, "-d", to, *sources])
    )
    (work / "Readme.java").write_text(
        "import com.wasmkiln.client.*; import java.nio.file.Path;\n"
        "class Readme { static void compile(byte[] module) throws Exception {\n"
        f"{readme(JAVA, 'java')}}} }}\n"
    )
    programs = [HERE / "Asks.java", work / "Readme.java"]
    must([*javac, "-cp", class_path(*NEEDED, classes, messages), "-d", work, *programs])
    # Debian's netty has no ALPN by Java's own TLS, and looks for the library that has it under
    # another name than Debian gave it.
    library = folder / "lib" / "libnetty_tcnative.so"
    [debian] = Path("/usr/lib").glob("*/jni/libnetty-tcnative.so")
    library.parent.mkdir(exist_ok=True)
    shutil.copyfile(debian, library)
    flags: Words = ["-XX:TieredStopAtLevel=1", f"-Djava.library.path={library.parent}"]
    path = class_path(work, classes, messages, *NEEDED, *AT_RUN_TIME)
    return Asks("java", ["java", *flags, "-cp", path, "Asks"])


@pytest.fixture(scope="module")
def programs(built: Built) -> Path:
    """The folder of the programs in C++: a project that finds the installed library built them."""
    folder = built("cpp")
    library, user, installed = folder / "build", folder / "user", folder / "installed"
    must(["cmake", "-S", CPP, "-B", library, f"-DCMAKE_INSTALL_PREFIX={installed}"])
    must(["cmake", "--build", library, "--parallel", "2"])
    must(["cmake", "--install", library])
    user.mkdir(exist_ok=True)
    (user / "CMakeLists.txt").write_text(PROJECT % user)
    (user / "readme.cc").write_text(readme(CPP, "cpp"))
    for name in ("asks.cc", "ends.cc"):
        shutil.copy(HERE / name, user)
    must(["cmake", "-S", user, "-B", user / "build", f"-DCMAKE_PREFIX_PATH={installed}"])
    must(["cmake", "--build", user / "build", "--parallel", "2"])
    return user / "build"


@pytest.fixture(scope="module")
def cpp(programs: Path) -> Asks:
    """The program in C++."""
    return Asks("cpp", [programs / "asks"])


@pytest.fixture(scope="module", params=["java", "cpp"])
def asks(request: pytest.FixtureRequest) -> Asks:
    """The program of each language."""
    found: Asks = request.getfixturevalue(request.param)
    return found


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


def test_a_host_runs_what_it_wrote(kiln: Kiln, built: Built, asks: Asks) -> None:
    out = kiln.folder / f"{asks.language}.cwasm"
    flags: Words = ["--key", kiln.key_file, "--engine", FULL_ENGINE, "--out", out]
    assert asks.once(kiln.address, kiln.module, *flags).what == "compiled"
    ran = kiln.run([Go(built("go")).host(), out, "fib", "20"])
    assert ran.stdout == "go host ran fib[20] = 6765\n"


def test_it_refuses_another_signer(kiln: Kiln, asks: Asks) -> None:
    said = asks.once(kiln.address, kiln.module, "--key", kiln.wrong_key_file)
    assert (said.what, said.size_or_cause) == ("ATTESTATION_INVALID", "stranger")
    assert said.text.startswith("the attestation is signed by a key that is not trusted: ")
    assert re.fullmatch("[0-9a-f]{16}", said.origin_or_id), "it names no request"


@pytest.mark.parametrize("place", ["keys/revoked", "keys/trusted/revoked"])
def test_it_refuses_what_a_revoked_key_signed(
    kiln: Kiln, asks: Asks, tmp_path: Path, place: str
) -> None:
    trusted = tmp_path / "keys" / "trusted"
    trusted.mkdir(parents=True)
    shutil.copy(kiln.key_file, trusted / "own.pem")
    assert asks.once(kiln.address, kiln.module, "--key", trusted).what == "compiled"
    with kiln.daemon.client() as client:
        envelope = json.loads(client.compile(kiln.module).header.attestation)
    revoked = tmp_path / place
    revoked.mkdir()
    (revoked / "one.json").write_text(json.dumps({"key_id": envelope["signatures"][0]["keyid"]}))
    # With no key left, nothing would be checked.
    assert asks.once(kiln.address, kiln.module, "--key", trusted).what == "unusable"
    shutil.copy(kiln.wrong_key_file, trusted / "other.pem")
    said = asks.once(kiln.address, kiln.module, "--key", trusted)
    assert said.what == "ATTESTATION_INVALID"
    (revoked / "one.json").write_text("{}")
    said = asks.once(kiln.address, kiln.module, "--key", trusted)
    assert said.what == "unusable"
    assert "one.json: it does not say which key is revoked" in said.text


def test_it_says_why_a_call_failed(kiln: Kiln, asks: Asks) -> None:
    call: Words = [kiln.address, kiln.module]
    invalid = asks.once(kiln.address, kiln.invalid_module, "--engine", FULL_ENGINE)
    assert invalid.what == "MODULE_INVALID"
    assert asks.once(*call, "--digest", "0" * 64).what == "MODULE_NOT_LOADED"
    assert asks.once(*call, "--engine", "wasmtime-1.0.0").what == "ENGINE_UNKNOWN"
    assert asks.once(*call, "--timeout-ms", "0").what == "DEADLINE_EXCEEDED"
    for digest in ("00", "G" * 64):
        assert asks.once(*call, "--digest", digest).what == "unusable"
    nobody = asks.once("127.0.0.1:1", kiln.module)
    assert nobody.what == "CONNECTION_FAILED"
    assert nobody.text.startswith("no daemon answers at 127.0.0.1:1 (")
    assert "Connection refused" in nobody.text
    with dying_server() as dying:
        said = asks.once(dying, kiln.module)
    assert said.what == "CONNECTION_FAILED"


def test_a_full_queue(kiln: Kiln, asks: Asks) -> None:
    module = kiln.fresh_module()
    with kiln.full_queue() as engine:
        said = asks.once(kiln.address, module, "--engine", engine)
    assert said.what == "COMPILE_QUEUE_FULL"
    assert int(said.engine_or_retry_ms) > 0


def test_tls_and_tokens(kiln: Kiln, secure: Secure, asks: Asks, tmp_path: Path) -> None:
    module = kiln.fresh_module()
    token: Words = ["--token-file", secure.token_file]
    tls: Words = ["--ca", secure.ca_file]
    said = asks.once(secure.address, module, *tls, *token, "--key", secure.key_file)
    assert said.what == "compiled"
    assert asks.once(secure.address, module, *tls).what == "CREDENTIALS_MISSING"
    other = asks.once(secure.address, module, "--ca", secure.other_ca_file, *token)
    assert other.what == "CONNECTION_FAILED"
    assert asks.once(secure.address, module).what == "CONNECTION_FAILED"
    for address in ("kiln.example:50051", "dns:///kiln.example:1", "ipv4:127.0.0.1:1,10.0.0.1:1"):
        remote = asks.once(address, module, *token)
        assert remote.what == "unusable"
        assert "in plaintext" in remote.text


def test_no_lie_about_a_field_is_believed(kiln: Kiln, asks: Asks) -> None:
    lies = header_lies(kiln)
    said = told(asks, kiln, lies.module, list(lies.answers.values()))
    for field, line in zip(lies.answers, said, strict=True):
        assert (line.what == "compiled") is (field in lies.believed), (field, line)
    believes = f"none of {len(said) - len(lies.believed)} lies about what counts"
    print(f"{asks.language} believes {believes}")


def test_no_answer_that_an_honest_daemon_would_not_send_counts(kiln: Kiln, asks: Asks) -> None:
    module, lies = answer_lies(kiln)
    said = told(asks, kiln, module, list(lies.values()))
    for (name, due), line in zip(lies, said, strict=True):
        assert line.what == due, (name, line)


def told(asks: Asks, kiln: Kiln, module: Path, lies: Sequence[Sequence[bytes]]) -> list[Said]:
    """Ask a server that tells one lie after the other."""
    upcoming = iter(lies)
    with lying_server() as liar:
        liar.answers["Compile"] = lambda _request, _context: iter(next(upcoming))
        flags: Words = ["--engine", FULL_ENGINE, "--key", kiln.key_file]
        return asks(liar.address, module, *flags, "--times", str(len(lies)))


def test_java_asks_in_its_pom_for_what_it_imports() -> None:
    names = {"m": "http://maven.apache.org/POM/4.0.0"}
    pom = ET.parse(JAVA / "pom.xml").getroot()
    asked = {each.text for each in pom.findall(".//m:dependency/m:artifactId", names)}
    assert {"grpc-protobuf", "grpc-stub", "protobuf-java", "gson"} <= asked
    roots = [each.text for each in pom.findall(".//m:protoSourceRoot", names)]
    assert roots == ["${project.basedir}/../../protos"]


def test_each_reason_has_a_class_in_each_language() -> None:
    """The names are in java, cpp, go and node."""
    page = (ROOT / "docs" / "reference" / "errors.md").read_text()
    due = {*re.findall(r"^\| `([A-Z_]+)` \| `", page, re.MULTILINE), *OWN_REASONS}
    assert "MODULE_INVALID" in due
    # What pins are refused for is no concern of clients that cannot pin.
    due -= {"MODULE_PINNED", "PINS_FULL"}
    endings = {"java": ".java", "cpp": ".h", "go": ".go", "node": ".js"}
    for language, ending in endings.items():
        folder = ROOT / "client" / language
        sources = [path for path in folder.rglob(f"*{ending}") if "node_modules" not in path.parts]
        words = set(re.findall(r"\w+", "".join(path.read_text() for path in sources)))
        assert due - words == set(), language


def test_cpp_by_its_readme(programs: Path, kiln: Kiln) -> None:
    (kiln.folder / "m.wasm").write_bytes(kiln.module.read_bytes())
    (kiln.folder / "key.pem").write_text(kiln.key_file.read_text())
    done = kiln.run([programs / "readme", kiln.address])
    assert done.stdout.startswith("wasmtime-50.0.1: "), done.stderr


def test_cpp_refuses_a_token_that_would_abort_grpc(
    cpp: Asks, secure: Secure, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    broken.write_text("a token\nof two lines")
    flags: Words = ["--ca", secure.ca_file, "--token-file", broken]
    said = cpp.once(secure.address, broken, *flags)
    assert said.what == "unusable"
    assert said.text.startswith("cannot use the token: ")


def test_cpp_ends_a_call_from_another_thread(programs: Path) -> None:
    ended = threading.Event()

    def wait(_request: bytes, context: Any) -> Iterator[bytes]:
        context.add_callback(ended.set)
        ended.wait(60)
        return iter(())

    with lying_server() as liar:
        liar.answers["Compile"] = wait
        words = [str(programs / "ends"), liar.address]
        with subprocess.Popen(words, stdin=PIPE, stdout=PIPE, text=True) as running:
            eventually(lambda: liar.calls or running.poll() is not None, "no call arrives")
            said, _ = running.communicate("\n", timeout=60)
    assert said == "code 1\ncode 1\n", "expected CANCELLED"
    assert ended.is_set(), "the daemon does not learn of it"
