"""The client for Node: compile, verify, hit, error, and its artifact run in Node."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.programs import test_state_dir as state_dir
from tests.node_package import NodePackage, node_package
from tests.polyglot.dying_server import dying_server
from tests.polyglot.kiln import ENGINES, Kiln, Secure

pytestmark = pytest.mark.npm

ENGINE = "wasmtime-50.0.1"
# One call, which a caller of the program chooses, and what an exception looks like.
CALL = """
const fs = require('node:fs')
const { Client, WasmkilnError } = require('wasmkiln')
const [address, options, method, ...given] = process.argv.slice(1)
const kiln = new Client(address, JSON.parse(options))
const call = given.map((one) => one.endsWith('.wasm') ? fs.readFileSync(one) : JSON.parse(one))
kiln[method](...call).then(
  (answer) => console.log(`node ${method}: ${answer.origin ?? answer.caller?.identity}`),
  (error) => {
    if (!(error instanceof WasmkilnError)) throw error
    const retry = error.retryAfterMs ? `, retry after ${error.retryAfterMs} ms` : ''
    console.log(`node error ${error.constructor.name} ${error.reason}: ${error.message}${retry}`)
  },
).finally(() => kiln.close())
"""


@pytest.fixture(scope="module")
def package(built: Callable[[str], Path]) -> NodePackage:
    return node_package(built("node"), dev=True)


@pytest.fixture
def run(package: NodePackage, kiln: Kiln) -> Callable[..., str]:
    """Run a program of Node in the folder of the kiln. Return and print what it printed."""

    def run(*words: str | Path) -> str:
        environ = {"NODE_PATH": str(package.folder / "node_modules")}
        done = kiln.run(["node", *words], environ)
        assert done.returncode == 0, done.stdout + done.stderr
        print(f"\n{done.stdout}", end="")
        return done.stdout

    return run


def quoted(text: str) -> str:
    return f'"{text}"'


@pytest.mark.parametrize("engine", ENGINES)
def test_it_compiles_verifies_and_hits(
    run: Callable[..., str], package: NodePackage, kiln: Kiln, engine: str
) -> None:
    out, module = kiln.folder / f"node-{engine}.cwasm", kiln.fresh_module()
    example = package.package / "examples" / "compile.js"
    words = ["--key", kiln.key_file, "--engine", engine, "--out", out]
    first, second, error = run(example, kiln.address, module, *words).splitlines()
    digest = hashlib.sha256(module.read_bytes()).hexdigest()
    line = f"node compiled sha256:{digest} with {engine}, {out.stat().st_size} bytes, from "
    assert first.startswith(f"{line}compiled")
    assert second.removeprefix(line) in {"memory, as a file of the host store", "host_store"}
    assert error.startswith("node error MODULE_INVALID: ")


def test_its_errors(run: Callable[..., str], kiln: Kiln) -> None:
    def error(options: str, method: str, *given: str | Path) -> str:
        return run("-e", CALL, kiln.address, options, method, *given)

    engine = f'{{"engine": "{ENGINE}"}}'
    invalid = error("{}", "compile", kiln.invalid_module, engine)
    assert invalid.startswith("node error ModuleInvalid MODULE_INVALID: ")
    wrong = error(f'{{"trustedKeys": "{kiln.wrong_key_file}"}}', "compile", kiln.module, engine)
    assert wrong.startswith("node error AttestationInvalid ATTESTATION_INVALID: ")
    missing = error("{}", "compileDigest", quoted("0" * 64), engine)
    assert missing.startswith("node error ModuleNotLoaded MODULE_NOT_LOADED: ")
    with dying_server() as dying:
        lost = run("-e", CALL, dying, "{}", "compile", kiln.module, engine)
    assert lost.startswith("node error ConnectionFailed CONNECTION_FAILED: ")
    assert "(the connection was lost)" in lost
    with kiln.full_queue() as full:
        busy = error("{}", "compile", kiln.fresh_module(), f'{{"engine": "{full}"}}')
    assert busy.startswith("node error QueueFull COMPILE_QUEUE_FULL: ")
    assert "retry after " in busy


def test_tls_and_a_token(run: Callable[..., str], secure: Secure) -> None:
    def call(ca: Path, token: str) -> str:
        options = f'{{"tls": {{"ca": "{ca}"}}{token}}}'
        return run("-e", CALL, secure.address, options, "capabilities")

    token = f', "tokenFile": "{secure.token_file}"'
    assert call(secure.ca_file, token) == "node capabilities: token:ci\n"
    assert call(secure.ca_file, "").startswith("node error CredentialsMissing ")
    strange = call(secure.other_ca_file, token)
    assert strange.startswith("node error ConnectionFailed CONNECTION_FAILED: the certificate of ")


@pytest.mark.parametrize("engine", [one for one in ENGINES if one.startswith("wasmtime")])
def test_its_artifact_runs_in_node(
    run: Callable[..., str], package: NodePackage, kiln: Kiln, engine: str
) -> None:
    installed = state_dir() / "engines" / engine
    [library] = installed.glob("lib/python3*/site-packages/wasmtime/linux-*/_libwasmtime.so")
    host = package.package / "examples" / "host.js"
    module = kiln.fresh_module()
    for number, result, words in ((10, 55, ["--key", kiln.key_file]), (20, 6765, [])):
        words = ["fib", str(number), "--engine", engine, *words]
        shown = run(host, library, kiln.address, module, *words)
        assert shown.startswith(f"node host ran fib({number}) = {result} with {engine}, ")
    # A file that was made a moment ago is verified in memory, and mapped where nothing verifies it.
    assert shown.endswith(", mapped from the host store\n")


def test_its_types(package: NodePackage) -> None:
    modules = package.folder / "node_modules"
    words = ["--noEmit", "--strict", "--module", "nodenext", "--target", "es2022"]
    done = subprocess.run(
        ["node", modules / "typescript" / "bin" / "tsc", *words, "--types", "node", "types.mts"],
        cwd=package.package / "test",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
