"""The client for Node, as npm packs it, against a real daemon and against ones that lie."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.daemon import Daemon, fresh_state
from tests.e2e.programs import wasmkilnd
from tests.e2e.wasm import adder, with_data
from tests.node_package import SOURCE, NodePackage, node_package

pytestmark = pytest.mark.npm

ENGINE = "wasmtime-50.0.1"
TESTS = sorted(file.name for file in (SOURCE / "test").glob("*.test.js"))


@pytest.fixture(scope="module")
def package() -> NodePackage:
    return node_package()


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory, package: NodePackage) -> Iterator[str]:
    """A daemon, and what its tests need, as JSON."""
    folder = tmp_path_factory.mktemp("node")
    state = fresh_state(folder / "state", own_keys=True, engines=[ENGINE])
    modules = {"module": adder(1), "large": with_data(3 * 1024 * 1024, 1)}
    for name, content in modules.items():
        (folder / name).write_bytes(content)
    socket = f"unix:{folder}/kiln.sock"
    flags = ["--redis-url", "none", "--workers", "1", "--listen", socket]
    with Daemon(state, flags) as daemon:
        key = folder / "key.pem"
        key.write_text(wasmkilnd("keys", "show", "--pem", "--state-dir", str(state)))
        files = {name: str(folder / name) for name in modules}
        yield json.dumps({"address": daemon.address, "socket": socket, "key": str(key), **files})


@pytest.mark.parametrize("name", TESTS)
def test_with_node(package: NodePackage, given: str, name: str) -> None:
    environ = {**os.environ, "WASMKILN_TEST": given}
    done = package.run(["--test", str(package.package / "test" / name)], environ)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert "\n# pass 0\n" not in done.stdout
    assert "\n# skipped 0\n" in done.stdout


def test_what_is_in_the_package(package: NodePackage) -> None:
    folder = package.package
    found = {str(file.relative_to(folder)) for file in folder.rglob("*.*")}
    sources = {str(Path("lib", file.name)) for file in (SOURCE / "lib").iterdir()}
    protos = {f"protos/{each}" for each in ("wasmkiln/v1/types.proto", "google/rpc/status.proto")}
    assert sources | protos | {"README.md", "package.json", "examples/compile.js"} <= found
    assert (folder / "LICENSE").read_bytes() == (SOURCE.parents[1] / "LICENSE").read_bytes()
    # Nothing is left in the sources that git would not know.
    assert not (SOURCE / "protos").exists()


def test_an_import(package: NodePackage, given: str) -> None:
    """The ten lines of the README, in a file of another folder."""
    [example] = (SOURCE / "README.md").read_text().split("```js\n")[1:2]
    example = example.partition("```")[0]
    named = json.loads(given)
    program = package.folder / "example.mjs"
    for text, value in (("127.0.0.1:50051", "address"), ("m.wasm", "module"), ("key.pem", "key")):
        assert text in example
        example = example.replace(text, named[value])
    program.write_text(example)
    done = package.run([str(program)], os.environ)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{ENGINE} ")
