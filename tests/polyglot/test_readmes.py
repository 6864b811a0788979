"""The first program of a client's README, with every line before it, as printed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.e2e.programs import ROOT, search_path
from tests.node_package import copy_sources
from tests.polyglot import builds
from tests.polyglot.conftest import Built
from tests.polyglot.gotools import offline_modules
from tests.polyglot.kiln import FULL_ENGINE, Kiln
from tests.polyglot.rusttools import Rust

pytestmark = pytest.mark.timeout(builds.BUILD_TIMEOUT_S)
FIVE_MINUTES = (ROOT / "docs" / "start" / "five-minutes.md").read_text()
[MODULE] = re.findall(r"^\$ (echo \S+ \| base64 -d > add\.wasm)$", FIVE_MINUTES, re.MULTILINE)


@pytest.mark.parametrize(
    ("language", "code", "program"),
    [
        ("node", "js", "program.mjs"),
        ("go", "go", "program.go"),
        ("java", "java", "Program.java"),
        ("rust", "rust", "src/main.rs"),
    ],
)
def test_the_first_program(
    kiln: Kiln, built: Built, tmp_path: Path, language: str, code: str, program: str
) -> None:
    environ = {"PATH": search_path(), "WASMKILN_STATE_DIR": str(kiln.daemon.state_dir)}
    client = ROOT / "client" / language
    lines = builds.readme(client, "sh").splitlines()
    if language == "go":
        (tmp_path / "wasmkiln").symlink_to(ROOT)
        modules = offline_modules(built("go"), tmp_path)
        environ |= modules.environ
        # Go gets no module here but Debian's.
        lines[1:1] = modules.lines
    elif language == "java":
        built("java")
        (tmp_path / "wasmkiln").symlink_to(ROOT)
    elif language == "rust":
        (tmp_path / "wasmkiln").symlink_to(ROOT)
        (tmp_path / "src").mkdir()
        environ |= Rust(built("rust")).environ
    else:
        copy_sources(tmp_path / "wasmkiln")

    def shell(text: str) -> subprocess.CompletedProcess[str]:
        return kiln.run(["sh", "-e", "-c", text], {**os.environ, **environ}, cwd=tmp_path)

    text = builds.readme(client, code).replace("127.0.0.1:50051", kiln.address)
    (tmp_path / program).write_text(text)
    for each in ("\n".join(lines), MODULE):
        done = shell(each)
        assert done.returncode == 0, done.stderr
    first, due = builds.readme(client, "console").splitlines()
    assert due == f"{FULL_ENGINE}: {'40 + 2 = 42' if language == 'rust' else '… bytes'}"
    done = shell(first.removeprefix("$ "))
    assert re.fullmatch(re.escape(due).replace("…", r"\d{4,}") + "\n", done.stdout), done.stderr
    (tmp_path / "add.wasm").write_text("no module")
    done = shell(first.removeprefix("$ "))
    assert done.returncode == 1
    assert done.stderr.startswith("NOT_WASM: ")
    shutil.copy(kiln.wrong_key_file, tmp_path / "key.pem")
    assert shell(MODULE).returncode == 0
    done = shell(first.removeprefix("$ "))
    assert done.returncode == 1
    assert done.stderr.startswith("ATTESTATION_INVALID: ")
