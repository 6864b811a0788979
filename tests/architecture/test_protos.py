"""The contract passes the linter that users of protobuf know."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUF = "@bufbuild/buf@1.55.1"


@pytest.mark.npm
@pytest.mark.timeout(300)
@pytest.mark.skipif(shutil.which("npm") is None, reason="buf comes from npm, which is not here")
def test_buf_lint() -> None:
    home = ROOT / ".work" / "buf"
    binary = home / "node_modules" / ".bin" / "buf"
    if not binary.exists():
        home.mkdir(parents=True, exist_ok=True)
        install = ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(home), BUF]
        done = subprocess.run(install, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"buf cannot be installed: {done.stderr[-300:]}")
    done = subprocess.run(
        [str(binary), "lint"], cwd=ROOT / "protos", capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
