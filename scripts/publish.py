"""Publish a release: the one command that a person runs, `make publish`.

It checks that the release is ready (`problems`), builds it twice and compares, shows what it will
do, asks, uploads wheel and sources with uv, and makes the tag. It holds no credentials: uv
takes the token from UV_PUBLISH_TOKEN. `--dry-run` stops before the upload, `--yes` does not ask.
After an upload that broke off, run it again: what the index has already is skipped.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from uv import find_uv_bin

from scripts.release import NotReadyError, build, changes, git
from scripts.version import differing, version_of

# Words of pip where the index answers, and has no such package.
NONE = "No matching distribution found"
UNREACHED = re.compile(r"Retrying|ConnectionError|Connection broken|Could not fetch URL")


class Release:
    """The release that the sources at ``root`` would be."""

    def __init__(self, root: Path, index: str = "") -> None:
        self.root = root
        self.version = version_of(root)
        self.tag = f"v{self.version}"
        self._index = ["--index-url", index] if index else []

    def problems(self) -> Iterator[str]:
        """Say what stands against publishing it, each with what to do."""
        if changed := self.git("status", "--porcelain"):
            yield f"the work tree has changes: commit them\n{changed}"
        if self.git("branch", "--show-current") != "main":
            yield "this is not the branch main: switch to it"
        for line in differing(self.root):
            yield f"a copy of the version differs: {line}; run: python scripts/version.py"
        changelog = (self.root / "CHANGELOG.md").read_text()
        try:
            changes(changelog, self.version)
        except NotReadyError as problem:
            yield str(problem)
        else:
            if not re.search(rf"^## {self.version}, \d{{4}}-\d\d-\d\d$", changelog, re.MULTILINE):
                yield f"the section of {self.version} in CHANGELOG.md has no date: write it"
        image = self.root / "protos" / f"{self.tag}.binpb"
        if not image.exists():
            name = image.relative_to(self.root)
            yield f"{name} is missing: CONTRIBUTING.md says how to make it"
        if self.git("tag", "--list", self.tag) and not self.is_tagged():
            yield f"the tag {self.tag} is another commit: raise the version"
        try:
            published = self.published()
        except OSError as failure:
            yield f"cannot ask the package index which versions it has: {failure}; try again"
        else:
            if published and not self.is_tagged():
                yield f"{self.version} is published already: raise the version"

    def is_tagged(self) -> bool:
        """Return whether the tag is this commit: then an earlier run got as far as that."""
        return self.git("rev-parse", "--verify", "--quiet", f"{self.tag}^{{commit}}") == self.git(
            "rev-parse", "HEAD"
        )

    def published(self) -> bool:
        """Return whether the index that pip is set up with has this version. Raise OSError."""
        words = ["-m", "pip", "--disable-pip-version-check", "index", "versions", "--json"]
        done = subprocess.run(
            [sys.executable, *words, *self._index, "wasmkiln"],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode == 0:
            return self.version in json.loads(done.stdout)["versions"]
        if NONE in done.stderr and not UNREACHED.search(done.stderr):
            return False
        raise OSError((done.stderr.strip() or "pip failed").splitlines()[-1])

    def git(self, *words: str) -> str:
        """Return what git prints."""
        return git(self.root, *words)


def build_twice(folder: Path) -> list[Path]:
    """Build into ``folder``. Raise NotReadyError if a second build differs."""
    files = build(folder)
    with tempfile.TemporaryDirectory(prefix="again-") as again:
        build(Path(again) / "dist")
        for file in files:
            if file.read_bytes() != (Path(again) / "dist" / file.name).read_bytes():
                raise NotReadyError(f"{file.name} differs from one build to the next")
    return files


def main(root: Path, arguments: list[str]) -> int:
    """Publish, or say why not; return the exit code."""
    parser = argparse.ArgumentParser(prog="make publish", description=__doc__)
    parser.add_argument("--dry-run", action="store_true", help="check and build; upload nothing")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument("--upload-url", default="", help="where uv uploads to; PyPI if not given")
    parser.add_argument("--index-url", default="", help="the index that has what was uploaded")
    options = parser.parse_args(arguments)
    release = Release(root, options.index_url)
    try:
        if found := list(release.problems()):
            raise NotReadyError("\n- ".join(["", *found]))
        files = build_twice(root / "dist")
    except NotReadyError as problem:
        print(f"cannot publish {release.version}: {problem}", file=sys.stderr)
        return 1
    packages = [str(file) for file in files if file.name.startswith(f"wasmkiln-{release.version}")]
    packages = [name for name in packages if name.endswith((".whl", ".tar.gz"))]
    print(f"wasmkiln {release.version}, commit {release.git('rev-parse', '--short', 'HEAD')}:")
    where = options.upload_url or "PyPI"
    print(f"- upload to {where}: {' '.join(Path(each).name for each in packages)}")
    print(f"- tag {release.tag}, and push it")
    if options.dry_run:
        print("dry run: nothing was uploaded")
        return 0
    if (
        not options.yes
        and input("Publish? A version can never be uploaded again. [yes/no] ") != "yes"
    ):
        print("nothing was published")
        return 1
    upload = [
        *(find_uv_bin(), "publish"),
        *(("--publish-url", options.upload_url) if options.upload_url else ()),
        *(("--check-url", options.index_url) if options.index_url else ()),
        *packages,
    ]
    if not release.is_tagged():
        release.git("tag", "--annotate", release.tag, "--message", f"wasmkiln {release.version}")
    if subprocess.run(upload, env=os.environ, check=False).returncode:
        print(
            "cannot upload: see above (uv takes a token from UV_PUBLISH_TOKEN). Run this again:"
            " what has arrived is skipped.",
            file=sys.stderr,
        )
        return 1
    print(f"published. Now: git push origin {release.tag}, and add the files of dist/ to it")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(__file__).resolve().parents[1], sys.argv[1:]))
