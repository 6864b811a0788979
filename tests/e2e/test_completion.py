"""The lines of docs/how-to/install.md make Bash complete both commands."""

from __future__ import annotations

import os
import re
import shutil
import subprocess

import pytest

from tests.e2e.programs import ROOT, search_path

PAGE = ROOT / "docs" / "how-to" / "install.md"


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not on PATH")
@pytest.mark.parametrize(
    ("typed", "expected"),
    [("wasmkiln comp", "compile"), ("wasmkilnd engine inst", "install")],
    ids=["wasmkiln", "wasmkilnd"],
)
def test_bash_completes(typed: str, expected: str) -> None:
    [lines] = re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    program = typed.split()[0]
    # What Bash does at the Tab key: it calls the function that is registered for the command.
    script = (
        f'{lines}\nread -r _ _ _ _ function _ <<< "$(complete -p {program})"\n'
        f"COMP_WORDS=({typed}); COMP_CWORD={len(typed.split()) - 1}\n"
        f'$function {program}; echo "${{COMPREPLY[@]}}"\n'
    )
    done = subprocess.run(
        ["bash", "-c", script],
        env={**os.environ, "PATH": search_path()},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == [expected], done.stderr
