"""The programs that ask a daemon for a module, one in each language: `asks.go` and its like."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.programs import ROOT
from tests.node_package import node_package
from tests.polyglot.gotools import Go
from tests.polyglot.kiln import run
from tests.polyglot.rusttools import Rust

JAVA, CPP = ROOT / "client" / "java", ROOT / "client" / "cpp"
HERE = Path(__file__).parent
PROTOS = ROOT / "protos"
# A project of a user, which finds the installed library.
PROJECT = """cmake_minimum_required(VERSION 3.16)
project(user CXX)
find_package(wasmkiln REQUIRED)
find_package(Threads REQUIRED)
add_executable(asks %s/asks.cc)
target_link_libraries(asks wasmkiln::wasmkiln Threads::Threads)
"""
BUILD_TIMEOUT_S = 1800

Words = list[str | Path]


@dataclass(frozen=True)
class Said:
    """A line of a program."""

    what: str
    """"compiled", the reason of an error, "cancelled", or "unusable" for an argument of no use."""
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
        # With so few descriptors that a client which leaks them in some calls fails in the next.
        argv = ["prlimit", "--nofile=64", *self.argv] if self.language != "java" else self.argv
        # For longer than any deadline here: a client that waits for too long still says so.
        done = run([*argv, *words], cwd=ROOT, timeout_s=240)
        assert done.stdout, done.stderr
        print(done.stdout, end="")
        return said_in(done.stdout)

    def once(self, *words: str | Path) -> Said:
        """Run it for one call."""
        (said,) = self(*words)
        return said


def said_in(output: str) -> list[Said]:
    """Return the lines of a program."""
    return [Said(*line.split("\t")) for line in output.splitlines()]


def must(words: Sequence[str | Path]) -> None:
    """Run a command that has to succeed."""
    done = run(words, cwd=ROOT, timeout_s=BUILD_TIMEOUT_S)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


def readme(client: Path, language: str) -> str:
    """Return the program of a client's README."""
    return (client / "README.md").read_text().partition(f"```{language}\n")[2].partition("```")[0]


def go_program(folder: Path) -> Asks:
    """Build Go's program."""
    return Asks("go", [Go(folder).build("asks", str(HERE / "asks.go"))])


def node_program(folder: Path) -> Asks:
    """Return Node's program, with the package as npm packs it."""
    modules = node_package(folder, dev=True).modules
    return Asks("node", ["env", f"NODE_PATH={modules}", "node", HERE / "asks.js"])


def cpp_program(folder: Path) -> Asks:
    """Build C++'s program, by a project that finds the library as the README installs it."""
    for source in (CPP, PROTOS):
        shutil.copytree(source, folder / source.relative_to(ROOT), dirs_exist_ok=True)
    must(["sh", "-e", "-c", f"cd {folder}\n{readme(CPP, 'sh')}"])
    user = folder / "user"
    user.mkdir(exist_ok=True)
    (user / "CMakeLists.txt").write_text(PROJECT % user)
    shutil.copy(HERE / "asks.cc", user)
    must(["cmake", "-S", user, "-B", user / "build", f"-DCMAKE_PREFIX_PATH={folder}/installed"])
    must(["cmake", "--build", user / "build", "--parallel", "2"])
    return Asks("cpp", [user / "build" / "asks"])


def java_jar(folder: Path) -> Path:
    """Build Java's client as its README does, unless that was done before."""
    digest = hashlib.sha256((JAVA / "build.sh").read_bytes())
    for source in sorted([*PROTOS.rglob("*.proto"), *(JAVA / "src").rglob("*.java")]):
        digest.update(source.read_bytes())
    jar, unfinished = folder / f"{digest.hexdigest()[:16]}.jar", folder / "unfinished.jar"
    if not jar.exists():
        must(["sh", JAVA / "build.sh", unfinished])
        unfinished.rename(jar)
    return jar


def java_program(folder: Path) -> Asks:
    """Build Java's program."""
    jar, work = java_jar(folder), folder / "programs"
    must(["javac", "--release", "17", "-cp", jar, "-d", work, HERE / "Asks.java"])
    # Debian's netty has no ALPN by Java's own TLS, and looks for the library that has it under
    # another name than Debian gave it.
    library = folder / "lib" / "libnetty_tcnative.so"
    [debian] = Path("/usr/lib").glob("*/jni/libnetty-tcnative.so")
    library.parent.mkdir(exist_ok=True)
    shutil.copyfile(debian, library)
    flags: Words = ["-XX:TieredStopAtLevel=1", f"-Djava.library.path={library.parent}"]
    return Asks("java", ["java", *flags, "-cp", f"{work}:{jar}", "Asks"])


def rust_program(folder: Path) -> Asks:
    """Build Rust's program."""
    return Asks("rust", [Rust(folder).build("asks")])


PROGRAMS: Mapping[str, Callable[[Path], Asks]] = {
    "java": java_program,
    "cpp": cpp_program,
    "go": go_program,
    "node": node_program,
    "rust": rust_program,
}
"""What builds the program of a language, in a folder."""
