"""Say what stands against publishing this commit, or build what is published: `make publish`.

CONTRIBUTING.md has the commands that upload it. The tests show that one commit gives the same
bytes each time.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from scripts.release import NotReadyError, build, changes, git
from scripts.version import ROOT, version_of


def problems(root: Path) -> Iterator[str]:
    """Say what stands against publishing the sources at `root`, each with what to do."""
    version, changelog = version_of(root), (root / "CHANGELOG.md").read_text()
    if changed := git(root, "status", "--porcelain"):
        yield f"the work tree has changes: commit them\n{changed}"
    if git(root, "branch", "--show-current") != "main":
        yield "this is not the branch main: switch to it"
    same = [f"{sys.prefix}/bin/bump-my-version", "bump", "--dry-run", "--new-version", "0.0.0"]
    if subprocess.run(same, cwd=root, capture_output=True, check=False).returncode:
        yield "a copy of the version differs: `make check` names it"
    try:
        changes(changelog, version)
        if not re.search(rf"^## {version}, \d{{4}}-\d\d-\d\d$", changelog, re.MULTILINE):
            yield f"the section of {version} in CHANGELOG.md has no date: write it"
    except NotReadyError as problem:
        yield str(problem)
    if not (root / f"protos/v{version}.binpb").exists():
        yield f"protos/v{version}.binpb is missing: CONTRIBUTING.md says how to make it"


if __name__ == "__main__":
    if found := list(problems(ROOT)):
        sys.exit("\n- ".join(["cannot publish:", *found]))
    print(*build(ROOT / "dist"), sep="\n")
