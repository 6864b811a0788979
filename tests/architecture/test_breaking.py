"""buf finds what would break callers of the last release, and nothing else."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROTOS = Path(__file__).resolve().parents[2] / "protos"
BUF = Path(sys.executable).with_name("buf")
[RELEASED] = PROTOS.glob("*.binpb")


@pytest.fixture
def protos(tmp_path: Path) -> Path:
    return Path(shutil.copytree(PROTOS, tmp_path / "protos"))


def breaking(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(BUF), "breaking", "--against", RELEASED.name],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def change(folder: Path, old: str, new: str) -> None:
    file = folder / "wasmkiln" / "v1" / "types.proto"
    text = file.read_text()
    assert text.count(old) == 1
    file.write_text(text.replace(old, new))


def test_the_contract_breaks_no_caller() -> None:
    done = breaking(PROTOS)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


@pytest.mark.parametrize("new", ["", "string target = 99;", "bytes target = 5;"])
def test_a_change_that_breaks_callers_is_found(protos: Path, new: str) -> None:
    change(protos, "string target = 5;", new)
    done = breaking(protos)
    assert done.returncode == 100, done.stderr
    assert "types.proto" in done.stdout


def test_what_is_added_breaks_nobody(protos: Path) -> None:
    change(protos, "string target = 5;", "string target = 5;\n  string added = 99;")
    done = breaking(protos)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
