"""The client for Node, as npm packs it: its own tests, and its README against a real daemon."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.e2e.daemon import Daemon, fresh_state
from tests.e2e.programs import wasmkilnd
from tests.e2e.wasm import adder
from tests.node_package import SOURCE, NodePackage, node_package

pytestmark = pytest.mark.npm

ENGINE = "wasmtime-50.0.1"


@pytest.fixture(scope="module")
def package() -> NodePackage:
    return node_package()


def test_with_node(package: NodePackage) -> None:
    done = package.run(["--test", str(package.package / "test" / "client.test.js")], os.environ)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert "\n# pass 0\n" not in done.stdout
    assert "\n# skipped 0\n" in done.stdout


def test_what_is_in_the_package(package: NodePackage) -> None:
    folder = package.package
    found = {str(file.relative_to(folder)) for file in folder.rglob("*.*")}
    sources = {str(Path("lib", file.name)) for file in (SOURCE / "lib").iterdir()}
    protos = {f"protos/{each}" for each in ("wasmkiln/v1/types.proto", "google/rpc/status.proto")}
    assert sources | protos | {"README.md", "package.json", "examples/host.js"} <= found
    assert (folder / "LICENSE").read_bytes() == (SOURCE.parents[1] / "LICENSE").read_bytes()
    # Nothing is left in the sources that git would not know.
    assert not (SOURCE / "protos").exists()


def test_an_import(package: NodePackage, tmp_path: Path) -> None:
    """The ten lines of the README, in a file of another folder."""
    [example] = (SOURCE / "README.md").read_text().split("```js\n")[1:2]
    example = example.partition("```")[0]
    state = fresh_state(tmp_path / "state", own_keys=True, engines=[ENGINE])
    module, key = tmp_path / "module", tmp_path / "key.pem"
    module.write_bytes(adder(1))
    with Daemon(state, ["--redis-url", "none", "--workers", "1"]) as daemon:
        key.write_text(wasmkilnd("keys", "show", "--pem", "--state-dir", str(state)))
        named = {"127.0.0.1:50051": daemon.address, "add.wasm": str(module), "key.pem": str(key)}
        for text, value in named.items():
            assert text in example
            example = example.replace(text, value)
        program = package.folder / "example.mjs"
        program.write_text(example)
        done = package.run([str(program)], os.environ)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{ENGINE}: ")
