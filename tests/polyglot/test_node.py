"""The client for Node: compile, verify, hit, error, and its artifact run in Node."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from wasmkiln.v1.module_service_pb2 import CompileRequest

from tests.e2e.programs import test_state_dir as state_dir
from tests.lying.server import lying_server
from tests.node_package import NodePackage, node_package
from tests.polyglot.dying_server import dying_server
from tests.polyglot.file_lies import file_lies
from tests.polyglot.header_lies import header_lies
from tests.polyglot.kiln import ENGINES, Kiln, Secure
from tests.polyglot.revoked import folder_that_revokes

pytestmark = pytest.mark.npm

ENGINE = "wasmtime-50.0.1"
# One call, which a caller of the program chooses, a number of times, each by a client of its own:
# what came, as JSON, or the error.
CALL = """
const fs = require('node:fs')
const { Client, WasmkilnError } = require('wasmkiln')
const [address, options, times, method, ...given] = process.argv.slice(1)
const call = given.map((one) => one.endsWith('.wasm') ? fs.readFileSync(one) : JSON.parse(one))
const shown = (answer) => method.startsWith('compile')
  ? { ...answer, mapped: Boolean(answer.path), size: answer.bytes.length }
  : answer
async function main() {
  for (let time = 0; time < Number(times); time++) {
    const kiln = new Client(address, JSON.parse(options))
    try {
      const answer = await kiln[method](...call)
      console.log(JSON.stringify(shown(answer)))
      answer.checkUnchanged?.()
      answer.close?.()
    } catch (error) {
      if (!(error instanceof WasmkilnError)) throw error
      const { name, reason, message, retryAfterMs, metadata } = error
      console.log(JSON.stringify({ name, reason, message, retryAfterMs, metadata }))
    } finally {
      kiln.close()
    }
  }
}
main()
"""
Answer = dict[str, object]


@pytest.fixture(scope="module")
def package(built: Callable[[str], Path]) -> NodePackage:
    return node_package(built("node"), dev=True)


@pytest.fixture
def run(package: NodePackage, kiln: Kiln) -> Callable[..., str]:
    """Run a program of Node in the folder of the kiln. Return what it printed."""

    def run(*words: str | Path, **environ: str) -> str:
        modules = {"NODE_PATH": str(package.folder / "node_modules")}
        done = kiln.run(["node", *words], {**modules, **environ})
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


Call = Callable[..., list[Answer]]


@pytest.fixture
def call(run: Callable[..., str], kiln: Kiln) -> Call:
    """Make a call. Return what came, each time."""

    def call(
        method: str,
        *given: object,
        address: str = kiln.address,
        times: int = 1,
        **options: object,
    ) -> list[Answer]:
        words = [str(one) if isinstance(one, Path) else json.dumps(one) for one in given]
        said = run("-e", CALL, address, json.dumps(options), str(times), method, *words)
        answers: list[Answer] = [json.loads(line) for line in said.removesuffix("\n").split("\n")]
        assert len(answers) == times, said
        return answers

    return call


@pytest.mark.parametrize("engine", ENGINES)
def test_it_compiles_verifies_and_hits(call: Call, kiln: Kiln, engine: str) -> None:
    module = kiln.fresh_module()
    options = {"trustedKeys": str(kiln.key_file), "hostStore": False}
    first, second = call("compile", module, {"engine": engine}, times=2, **options)
    digest = hashlib.sha256(module.read_bytes()).hexdigest()
    assert (first["origin"], second["origin"]) == ("compiled", "memory")
    for answer in (first, second):
        assert answer["moduleSha256"] == digest
        assert answer["size"] == answer["sizeBytes"]
        assert answer["engine"]["id"] == engine  # type: ignore[index]
    print(f"\nnode compiled sha256:{digest} with {engine}, {first['size']} bytes, from memory")


def test_the_other_calls(call: Call, kiln: Kiln) -> None:
    digest = hashlib.sha256(kiln.module.read_bytes()).hexdigest()
    [loaded] = call("load", kiln.module, {"engine": ENGINE, "expectedSha256": digest})
    assert (loaded["sha256"], loaded["kind"]) == (digest, "core")
    settings = {"engine": ENGINE, "settings": {"consume_fuel": "true"}}
    [made] = call("compileDigest", digest, settings)
    assert made["changedSettings"] == {"consume_fuel": "true"}
    assert made["exports"][0]["kind"] == "function"  # type: ignore[index]
    [stats] = call("stats")
    [memory] = [tier for tier in stats["tiers"] if tier["tier"] == "memory"]  # type: ignore[attr-defined]
    assert isinstance(memory["hits"], int)
    [capabilities] = call("capabilities")
    assert ENGINE in {one["engine"]["id"] for one in capabilities["engines"]}  # type: ignore[attr-defined]


def test_its_errors(call: Call, kiln: Kiln) -> None:
    def error(*given: object, **options: object) -> Answer:
        [found] = call(*given, **options)
        return found

    engine = {"engine": ENGINE}
    for name, made in {
        "ModuleInvalid": error("compile", kiln.invalid_module, engine),
        "ModuleNotLoaded": error("compileDigest", "0" * 64, engine),
        "EngineUnknown": error("compile", kiln.module, {"engine": "wasmtime-1.2.3"}),
        "TargetUnsupported": error("compile", kiln.module, engine | {"target": "z80-none"}),
        "SettingUnknown": error("compile", kiln.module, engine | {"settings": {"colour": "red"}}),
        "DigestMismatch": error("load", kiln.module, engine | {"expectedSha256": "0" * 64}),
        "ConnectionFailed": error("stats", address="unix:/no/such.sock"),
    }.items():
        assert made["name"] == name, made
        assert made["reason"]
    for store in (True, False):
        options = {"trustedKeys": str(kiln.wrong_key_file), "hostStore": store}
        wrong = error("compile", kiln.module, engine, **options)
        assert wrong["reason"] == "ATTESTATION_INVALID"
        assert wrong["metadata"]["cause"] == "stranger"  # type: ignore[index]
    with dying_server() as dying:
        lost = error("compile", kiln.module, engine, address=dying)
    assert lost["reason"] == "CONNECTION_FAILED"
    assert str(lost["message"]).startswith(f"no daemon answers at {dying} (")
    with kiln.full_queue() as full:
        busy = error("compile", kiln.fresh_module(), {"engine": full})
    assert busy["name"] == "QueueFull"
    assert busy["retryAfterMs"]


def test_a_revoked_key_does_not_count(call: Call, kiln: Kiln, tmp_path: Path) -> None:
    folder = str(folder_that_revokes(kiln, tmp_path))
    [said] = call("compile", kiln.module, {"engine": ENGINE}, trustedKeys=folder)
    assert said.get("reason") == "ATTESTATION_INVALID"


def test_tls_and_a_token(call: Call, secure: Secure) -> None:
    def said(ca: Path, **options: str) -> Answer:
        [answer] = call("capabilities", address=secure.address, tls={"ca": str(ca)}, **options)
        return answer

    token = {"tokenFile": str(secure.token_file)}
    assert said(secure.ca_file, **token)["caller"]["identity"] == "token:ci"  # type: ignore[index]
    assert said(secure.ca_file)["name"] == "CredentialsMissing"
    strange = said(secure.other_ca_file, **token)
    assert strange["reason"] == "CONNECTION_FAILED"
    assert "certificate" in str(strange["message"])


@pytest.mark.parametrize("engine", [one for one in ENGINES if one.startswith("wasmtime")])
def test_its_artifact_runs_in_node(
    run: Callable[..., str], package: NodePackage, kiln: Kiln, engine: str
) -> None:
    installed = state_dir() / "engines" / engine
    [library] = installed.glob("lib/python3*/site-packages/wasmtime/linux-*/_libwasmtime.so")
    host = package.package / "examples" / "host.js"
    module = kiln.fresh_module()
    for number, result, key in ((10, 55, {"KILN_KEY": str(kiln.key_file)}), (20, 6765, {})):
        words = [library, kiln.address, module, "fib", str(number)]
        shown = run(host, *words, KILN_ENGINE=engine, **key)
        assert shown.startswith(f"node host ran fib({number}) = {result} with {engine}, ")
        print(f"\n{shown}", end="")
    # A file that was made a moment ago is verified in memory, and mapped where nothing verifies it.
    assert shown.endswith(", mapped from the host store\n")


# What Node's client only shows, beside what all clients only show.
SHOWN = {"is_fast", "content_encoding"}


def test_no_lie_about_a_field_is_believed(call: Call, kiln: Kiln) -> None:
    lies = header_lies(kiln)
    with lying_server() as liar:
        answers = iter(lies.answers.values())
        liar.answers["Compile"] = lambda _request, _context: iter(next(answers))
        options = {"trustedKeys": str(kiln.key_file), "hostStore": False}
        asked = ("compile", lies.module, {"engine": ENGINE})
        said = call(*asked, address=liar.address, times=len(lies.answers), **options)
    for field, answer in zip(lies.answers, said, strict=True):
        assert ("size" in answer) is (field in lies.believed | SHOWN), (field, answer)
    print(f"\nnode believes none of {len(said) - len(lies.believed)} lies about what counts")


def test_a_file_counts_only_if_it_may_be_trusted(call: Call, kiln: Kiln) -> None:
    lies = list(file_lies(kiln))
    upcoming = iter(lies)
    now = lies[:1]

    def answer(request: bytes, context: object) -> Iterator[bytes]:
        if CompileRequest.FromString(request).accept_host_file:
            now[0] = next(upcoming)
        return now[0].answer(request, context)

    with lying_server() as liar:
        liar.answers["Compile"] = answer
        asked = ("compile", lies[0].module, {"engine": ENGINE})
        options = {"trustedKeys": str(kiln.key_file)}
        said = call(*asked, address=liar.address, times=len(lies), **options)
    for lie, taken in zip(lies, said, strict=True):
        assert taken.get("mapped") is lie.counts, (lie.name, taken)


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
