"""The Go client and a Go host against a real daemon."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.processes import eventually
from tests.lying.server import lying_server
from tests.polyglot.conftest import Built
from tests.polyglot.dying_server import dying_server
from tests.polyglot.file_lies import TAKEN, file_lies
from tests.polyglot.gotools import CLIENT, Go
from tests.polyglot.header_lies import header_lies
from tests.polyglot.kiln import ENGINES, FULL_ENGINE, Kiln, Secure
from tests.polyglot.revoked import folder_that_revokes

Words = list[str | Path]
ASKS = Path(__file__).with_name("asks.go")

# The first build compiles gRPC: a minute of a free processor.
pytestmark = pytest.mark.timeout(1800)


@pytest.fixture(scope="module")
def go(built: Built) -> Go:
    return Go(built("go"))


@pytest.fixture(scope="module")
def asks(go: Go) -> Path:
    """A program that asks a daemon for a module, and prints what came."""
    return go.build("asks", str(ASKS))


@pytest.fixture(scope="module")
def host(go: Go) -> Path:
    return go.host()


def test_the_source_is_formatted_and_vetted(go: Go, asks: Path) -> None:
    assert go("gofmt", "-l", ".", ASKS) == ""
    go("go", "vet", ".")
    go("go", "vet", ASKS)


def test_generated_code_is_fresh(go: Go, tmp_path: Path) -> None:
    go("sh", "generate.sh", tmp_path)
    for file in tmp_path.iterdir():
        checked_in = CLIENT / "wasmkilnpb" / file.name
        assert file.read_text() == checked_in.read_text(), f"go generate changes {file.name}"


@pytest.mark.parametrize("engine", ENGINES)
def test_it_compiles_verifies_and_hits(kiln: Kiln, asks: Path, engine: str) -> None:
    module = kiln.fresh_module()
    flags: Words = ["--key", kiln.key_file, "--engine", engine, "--no-host-store"]
    done = kiln.run([asks, kiln.address, module, *flags, "--times", "2"])
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout, end="")
    first, second = done.stdout.splitlines()
    assert first.endswith("from compiled")
    assert second.endswith("from memory")
    assert engine in first


def test_its_own_tests(go: Go) -> None:
    said = go("go", "test", "-count=1", "-v", ".")
    assert "--- SKIP" not in said, said


def test_a_host_runs_a_file_of_the_host_store(kiln: Kiln, asks: Path, host: Path) -> None:
    out = kiln.folder / "go.cwasm"
    flags: Words = ["--key", kiln.key_file, "--engine", FULL_ENGINE, "--out", out]

    def is_taken() -> bool:
        done = kiln.run([asks, kiln.address, kiln.module, *flags])
        assert done.returncode == 0, done.stdout + done.stderr
        return TAKEN in done.stdout.splitlines()[0]

    # A client with keys takes no file that is younger than a second.
    eventually(is_taken, "the file does not count")
    ran = kiln.run([host, out, "fib", "20"])
    assert ran.returncode == 0, ran.stderr
    print(ran.stdout, end="")
    assert ran.stdout == "go host ran fib[20] = 6765\n"


def test_the_host_refuses_another_engine(kiln: Kiln, asks: Path, host: Path) -> None:
    out = kiln.folder / "go49.cwasm"
    flags: Words = ["--engine", "wasmtime-49.0.0", "--out", out]
    assert kiln.run([asks, kiln.address, kiln.module, *flags]).returncode == 0
    ran = kiln.run([host, out, "fib", "20"])
    assert ran.returncode == 1
    assert "cannot load the artifact" in ran.stderr


def refused(kiln: Kiln, program: Path, *words: str | Path) -> str:
    """Run the example, which has to fail. Return the reason and its sentence."""
    done = kiln.run([program, *words])
    assert done.returncode == 1, done.stdout + done.stderr
    print(done.stdout, end="")
    return done.stdout.splitlines()[-1].removeprefix("go error ")


def test_it_refuses_another_signer_in_bytes_and_files(kiln: Kiln, asks: Path) -> None:
    for flags in ([], ["--no-host-store"]):
        words: Words = [kiln.address, kiln.module, "--key", kiln.wrong_key_file, *flags]
        said = refused(kiln, asks, *words)
        assert said.startswith("ATTESTATION_INVALID: the attestation is signed by a key that is")


def test_a_revoked_key_does_not_count(kiln: Kiln, asks: Path, tmp_path: Path) -> None:
    folder = folder_that_revokes(kiln, tmp_path)
    said = refused(kiln, asks, kiln.address, kiln.module, "--key", folder)
    assert said.startswith("ATTESTATION_INVALID: ")


def test_it_says_why_a_call_failed(kiln: Kiln, asks: Path) -> None:
    said = refused(kiln, asks, kiln.address, kiln.module, "--digest", "0" * 64)
    assert said.startswith("MODULE_NOT_LOADED: ")
    said = refused(kiln, asks, kiln.address, kiln.module, "--engine", "wasmtime-1.0.0")
    assert said.startswith("ENGINE_UNKNOWN: ")
    said = refused(kiln, asks, kiln.address, kiln.key_file)
    assert said.startswith("NOT_WASM: ")
    said = refused(kiln, asks, kiln.address, "/dev/null")
    assert said.startswith("NOT_WASM: ")
    said = refused(kiln, asks, kiln.address, kiln.invalid_module)
    assert said.startswith("MODULE_INVALID: ")
    said = refused(kiln, asks, "127.0.0.1:1", kiln.module)
    assert said.startswith("CONNECTION_FAILED: no daemon answers at 127.0.0.1:1 (")
    assert "connection refused" in said
    with dying_server() as dying:
        said = refused(kiln, asks, dying, kiln.module)
    assert said.startswith(f"CONNECTION_FAILED: no daemon answers at {dying} (")


def test_a_full_queue(kiln: Kiln, asks: Path) -> None:
    module = kiln.fresh_module()
    with kiln.full_queue() as engine:
        said = refused(kiln, asks, kiln.address, module, "--engine", engine)
    assert said.startswith("COMPILE_QUEUE_FULL: ")


def test_tls_and_tokens(kiln: Kiln, secure: Secure, asks: Path) -> None:
    tls: Words = ["--ca", secure.ca_file]
    module = kiln.fresh_module()
    flags: Words = ["--key", secure.key_file, "--no-host-store"]
    good = [secure.address, module, *tls, "--token-file", secure.token_file, *flags]
    done = kiln.run([asks, *good])
    assert done.returncode == 0, done.stdout + done.stderr
    said = refused(kiln, asks, secure.address, module, *tls)
    assert said.startswith("CREDENTIALS_MISSING: ")
    said = refused(kiln, asks, secure.address, module, "--ca", secure.other_ca_file)
    assert said.startswith("CONNECTION_FAILED: ")
    assert "certificate signed by unknown authority" in said
    said = refused(kiln, asks, secure.address, module)
    assert said.startswith("CONNECTION_FAILED: ")
    remote: Words = ["kiln.example:50051", module, "--token-file", secure.token_file]
    assert "in plaintext" in refused(kiln, asks, *remote)


# What Go's client only shows, beside what all clients only show.
SHOWN = {"is_fast", "content_encoding"}


def test_no_lie_about_a_field_is_believed(kiln: Kiln, asks: Path) -> None:
    lies = header_lies(kiln)
    words: Words = [lies.module, "--engine", FULL_ENGINE, "--key", kiln.key_file]
    with lying_server() as liar:
        for field, answer in lies.answers.items():
            liar.say("Compile", *answer)
            done = kiln.run([asks, liar.address, *words, "--no-host-store"])
            believed = "go compiled" in done.stdout
            assert believed is (field in lies.believed | SHOWN), (field, done.stdout)
    print(f"go believes none of {len(lies.answers) - len(lies.believed)} lies about what counts")


def test_a_file_counts_only_if_it_may_be_trusted(kiln: Kiln, asks: Path) -> None:
    with lying_server() as liar:
        for lie in file_lies(kiln):
            liar.answers["Compile"] = lie.answer
            flags: Words = ["--key", kiln.key_file, "--engine", FULL_ENGINE, "--times", "2"]
            done = kiln.run([asks, liar.address, lie.module, *flags])
            assert done.stdout.count("go compiled") == 2, (lie.name, done.stdout)
            assert done.stdout.count(TAKEN) == 2 * lie.counts, (lie.name, done.stdout)


def test_the_readme_compiles(go: Go) -> None:
    page = (CLIENT / "README.md").read_text()
    program = page.partition("```go\n")[2].partition("```")[0]
    source = go.folder / "workspace" / "src" / "readme" / "readme.go"
    source.parent.mkdir(exist_ok=True)
    source.write_text(
        "package readme\n"
        'import ("context"; "errors"; wasmkiln "github.com/wasmkiln/wasmkiln/client/go")\n'
        "func Compile(ctx context.Context, module []byte) error {\n"
        f"{program}\n_ = code\nreturn err\n}}\n"
    )
    go("go", "build", "readme")
