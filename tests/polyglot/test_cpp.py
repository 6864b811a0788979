"""The client for C++: built by CMake, installed, found by another project, and run."""

from __future__ import annotations

import hashlib
import subprocess
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from subprocess import PIPE
from typing import Any, cast

import grpc
import pytest
from wasmkiln.v1.module_service_pb2 import CompileRequest, CompileResponse
from wasmkiln.v1.module_service_pb2_grpc import ModuleServiceStub
from wasmkiln.v1.types_pb2 import ArtifactHeader

from tests.e2e import wasm
from tests.e2e.processes import eventually
from tests.e2e.programs import ROOT
from tests.header_fields import FIELDS, Basis
from tests.lying.lies import about
from tests.lying.server import lying_server
from tests.polyglot.conftest import Built
from tests.polyglot.dying_server import dying_server
from tests.polyglot.kiln import Kiln, Secure, run

ENGINE = "wasmtime-50.0.1"
Argv = list[str | Path]
# A header of it has an element in each list.
IMPORTS = '(module (import "env" "log" (func)) (func (export "f")))'
_BUILD_TIMEOUT_S = 1800
# The first test of a fresh clone builds: minutes on a busy machine.
pytestmark = pytest.mark.timeout(_BUILD_TIMEOUT_S)


@pytest.fixture(scope="module")
def folder(built: Built) -> Path:
    """The folder of the build, whose `example` is built and whose `installed` is a prefix."""
    folder = built("cpp")
    source, build = ROOT / "client" / "cpp", folder / "build"
    prefix = folder / "installed"
    if not (build / "Makefile").exists():
        make(["cmake", "-S", source, "-B", build, f"-DCMAKE_INSTALL_PREFIX={prefix}"])
    make(["cmake", "--build", build, "--parallel", "2"])
    make(["cmake", "--install", build])
    return folder


@pytest.fixture(scope="module")
def example(folder: Path) -> Path:
    """The example program."""
    return folder / "build" / "wasmkiln-example"


def make(argv: Sequence[str | Path]) -> None:
    done = run(argv, cwd=ROOT, timeout_s=_BUILD_TIMEOUT_S)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


def show(done: subprocess.CompletedProcess[str]) -> list[str]:
    """Print what a program printed. Return its lines."""
    # gRPC logs failed handshakes there.
    assert not done.stderr.startswith(("error:", "usage:")), done.stderr
    print(done.stdout, end="")
    return done.stdout.splitlines()


def test_it_compiles_verifies_hits_and_decodes_an_error(kiln: Kiln, example: Path) -> None:
    module, out = kiln.fresh_module(), kiln.folder / "cpp.cwasm"
    flags: Argv = ["--key", kiln.key_file, "--engine", ENGINE, "--out", out]
    first, second, refused = show(kiln.run([example, kiln.address, module, *flags]))
    sha256 = hashlib.sha256(module.read_bytes()).hexdigest()
    assert first.startswith(f"cpp compiled sha256:{sha256} with {ENGINE}, ")
    assert first.partition(", from ")[2].startswith("compiled")
    assert second.partition(", from ")[2].startswith(("memory", "host_store"))
    assert refused.startswith("cpp error MODULE_INVALID: ")
    by_bytes: Argv = [example, kiln.address, module, *flags, "--bytes"]
    assert "host store" not in show(kiln.run(by_bytes))[0]
    with kiln.daemon.client() as client:
        assert out.read_bytes() == client.compile(module, engine=ENGINE).bytes


def test_it_takes_a_file_of_the_host_store(kiln: Kiln, example: Path) -> None:
    done = kiln.run([example, kiln.address, kiln.module, "--engine", ENGINE])
    assert "a file of the host store" in show(done)[1]


def test_refusals_are_decoded(kiln: Kiln, example: Path) -> None:
    call: Argv = [example, kiln.address, kiln.module, "--engine", ENGINE]
    expected: dict[str, Argv] = {
        "MODULE_INVALID": [example, kiln.address, kiln.invalid_module, "--engine", ENGINE],
        "ATTESTATION_INVALID": [*call, "--key", kiln.wrong_key_file],
        "MODULE_NOT_LOADED": [*call, "--digest", hashlib.sha256(b"no such module").hexdigest()],
        "ENGINE_UNKNOWN": [*call[:3], "--engine", "wasmtime-1.0.0"],
        "CONNECTION_FAILED": [example, "127.0.0.1:1", kiln.module],
    }
    for reason, argv in expected.items():
        assert show(kiln.run(argv))[-1].startswith(f"cpp error {reason}: ")
    with dying_server() as dying:
        said = show(kiln.run([example, dying, kiln.module]))[-1]
    assert "CONNECTION_FAILED: " in said
    assert "(the connection was lost)" in said


def test_a_full_queue(kiln: Kiln, example: Path) -> None:
    with kiln.full_queue() as engine:
        call: Argv = [example, kiln.address, kiln.fresh_module(), "--engine", engine]
        (line,) = show(kiln.run(call))
    assert line.startswith("cpp error COMPILE_QUEUE_FULL: ")
    assert "(retry after " in line


def test_tls_and_a_token(secure: Secure, example: Path, tmp_path: Path) -> None:
    module = tmp_path / "module.wasm"
    module.write_bytes(b"\0asm\1\0\0\0")
    call: Argv = [example, secure.address, module, "--engine", "wasmer", "--ca", secure.ca_file]
    token: Argv = ["--token-file", secure.token_file]
    lines = show(run([*call, *token, "--key", secure.key_file], cwd=tmp_path))
    assert "from compiled" in lines[0]
    assert show(run(call, cwd=tmp_path))[0].startswith("cpp error CREDENTIALS_MISSING: ")
    # gRPC would abort the process for it.
    (tmp_path / "broken").write_text("a token\nof two lines")
    broken = run([*call, "--token-file", tmp_path / "broken"], cwd=tmp_path)
    assert (broken.returncode, broken.stdout) == (2, "")
    assert broken.stderr.startswith("error: cannot use the token: ")
    other: Argv = [*call[:-1], secure.other_ca_file, *token]
    assert show(run(other, cwd=tmp_path))[0].startswith("cpp error CONNECTION_FAILED: ")


def test_no_lie_about_a_field_is_believed(kiln: Kiln, example: Path) -> None:
    """A server in the daemon's place has a true artifact, and changes one field of its header."""
    module = kiln.folder / "imports.wasm"
    module.write_bytes(wasm.from_text(IMPORTS))
    request = CompileRequest(module=module.read_bytes(), engine=ENGINE)
    with grpc.insecure_channel(kiln.address) as channel:
        first, *rest = ModuleServiceStub(channel).Compile(request)
    chunks = [part.SerializeToString() for part in rest]
    lies: dict[str, ArtifactHeader] = {"the truth": first.header}
    for name, lie in about(first.header):
        if lie != first.header:
            lies.setdefault(name.partition(" ")[0], cast(ArtifactHeader, lie))
    with lying_server() as liar:
        for field, header in lies.items():
            liar.say("Compile", CompileResponse(header=header).SerializeToString(), *chunks)
            call: Argv = [example, liar.address, module, "--engine", ENGINE, "--bytes"]
            done = kiln.run([*call, "--key", kiln.key_file])
            believed = "cpp compiled" in done.stdout
            assert believed is (field == "the truth" or is_only_shown(field)), (field, done.stdout)
    print(f"cpp believes none of {len(lies)} lies about what counts")


def is_only_shown(field: str) -> bool:
    """Return whether nothing depends on a field of a header."""
    basis = FIELDS.get(field, FIELDS.get(field.partition(".")[0], Basis.CALL))
    return basis is Basis.SHOWN and field != "attestation"


def test_another_project_finds_the_installed_package(folder: Path, kiln: Kiln) -> None:
    project = folder / "user"
    project.mkdir(exist_ok=True)
    (project / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.16)\n"
        "project(user CXX)\n"
        "find_package(wasmkiln REQUIRED)\n"
        "add_executable(user user.cc)\n"
        "target_link_libraries(user wasmkiln::wasmkiln)\n"
    )
    (project / "user.cc").write_text(readme_example())
    build = project / "build"
    prefix = f"-DCMAKE_PREFIX_PATH={folder / 'installed'}"
    if not (build / "Makefile").exists():
        make(["cmake", "-S", project, "-B", build, prefix])
    make(["cmake", "--build", build])
    (kiln.folder / "m.wasm").write_bytes(kiln.module.read_bytes())
    (kiln.folder / "key.pem").write_text(kiln.key_file.read_text())
    done = kiln.run([build / "user", kiln.address])
    assert show(done)[0].startswith("wasmtime-50.0.1: ")


def test_what_it_refuses_by_itself_and_a_call_that_ends(folder: Path, kiln: Kiln) -> None:
    """A program that is linked with the installed library ends a call that waits for a daemon."""
    project = folder / "checks"
    project.mkdir(exist_ok=True)
    (project / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.16)\n"
        "project(checks CXX)\n"
        "find_package(wasmkiln REQUIRED)\n"
        "find_package(Threads REQUIRED)\n"
        f"add_executable(checks {Path(__file__).with_name('checks.cc')})\n"
        "target_link_libraries(checks wasmkiln::wasmkiln Threads::Threads)\n"
    )
    build = project / "build"
    make(["cmake", "-S", project, "-B", build, f"-DCMAKE_PREFIX_PATH={folder / 'installed'}"])
    make(["cmake", "--build", build])
    program: Argv = [build / "checks", kiln.address, kiln.module, kiln.wrong_key_file]
    ended = threading.Event()

    def wait(_request: bytes, context: Any) -> Iterator[bytes]:
        context.add_callback(ended.set)
        ended.wait(60)
        return iter(())

    with lying_server() as liar:
        liar.answers["Compile"] = wait
        words = [str(word) for word in [*program, liar.address]]
        with subprocess.Popen(words, stdin=PIPE, stdout=PIPE, text=True) as running:
            eventually(lambda: liar.calls or running.poll() is not None, "no call arrives")
            said, _ = running.communicate("\n", timeout=60)
    assert said == "cpp checks what it should\n"
    assert ended.is_set(), "the daemon does not learn of it"


def readme_example() -> str:
    """Return the program of the README."""
    page = (ROOT / "client" / "cpp" / "README.md").read_text()
    return page.partition("```cpp\n")[2].partition("```")[0]
