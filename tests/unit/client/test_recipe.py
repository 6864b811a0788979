"""The recipes in docs/how-to/host-store.md work as written."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.e2e import wasm
from tests.host_store_writer import StoreWriter

PAGE = Path(__file__).resolve().parents[3] / "docs" / "how-to" / "host-store.md"


def block(language: str, start: str) -> str:
    """Return the page's block in a language that begins so."""
    found = re.search(rf"```{language}\n({re.escape(start)}.*?)```", PAGE.read_text(), re.DOTALL)
    assert found
    return found[1]


@pytest.mark.skipif(shutil.which("jq") is None, reason="jq is not on PATH")
@pytest.mark.parametrize("settings", ['{"consume_fuel":"true"}', "{}", '{"strategy":"winch"}'])
def test_the_fingerprint(tmp_path: Path, settings: str) -> None:
    store = StoreWriter(tmp_path / "store")
    row = store.rows[0]
    row["settings"] = {**row["settings"], "strategy": "cranelift"}
    row["unhashed_defaults"] = ["strategy"]
    store.write_engines()
    script = f'{block("sh", "# usage: fingerprint")}\nfingerprint "$@"'
    arguments = [str(store.directory / "engines.json"), "wasmtime-50.0.1", settings]
    done = subprocess.run(
        ["sh", "-c", script, "sh", *arguments], capture_output=True, text=True, check=True
    )
    engines = store.engines()
    wanted = dict(re.findall(r'"(\w+)":"(\w+)"', settings))
    assert done.stdout.strip() == engines.fingerprint(row, "", "", wanted)


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler is on PATH")
def test_opening_an_entry(tmp_path: Path) -> None:
    source = tmp_path / "open_entry.c"
    source.write_text(block("c", "#define _GNU_SOURCE"))
    program = tmp_path / "open_entry"
    command = ["cc", "-Wall", "-Wextra", "-Werror", str(source), "-o", str(program)]
    subprocess.run(command, check=True)
    store = StoreWriter(tmp_path / "store")
    module = wasm.adder(7)
    path = store.add(module)
    wanted = (str(store.directory), path.parents[2].name, hashlib.sha256(module).hexdigest())

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run([str(program), *wanted], capture_output=True, text=True, check=False)

    assert run().stdout.startswith("/proc/self/fd/")
    path.chmod(0o660)
    assert run().returncode == 1
    path.chmod(0o640)
    (tmp_path / "name").hardlink_to(path)
    assert run().returncode == 1
    path.unlink()
    path.symlink_to(tmp_path / "name")
    assert run().returncode == 1
