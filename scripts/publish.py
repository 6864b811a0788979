"""Publish a release: the one command that a person runs, `make publish`.

It checks that the release is ready (`problems`), builds it twice and compares, shows what it will
do, asks, makes the tags, and uploads: wheel and sources with uv, the package for Node with npm, the
one for Java with Maven. It holds no credentials: uv takes a token from UV_PUBLISH_TOKEN, npm and
Maven (server `wasmkiln`) from their own files. `--dry-run` stops before the upload, `--yes` does
not ask. After an upload that broke off, run it again: what has arrived is skipped.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from uv import find_uv_bin

from scripts.release import NotReadyError, build, changes, git
from scripts.version import differing, version_of


class Release:
    """The release that the sources at `root` would be."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.version = version_of(root)
        # Go asks for a module that lies in a folder by the folder's name too.
        self.tags = [f"v{self.version}", f"client/go/v{self.version}"]

    def problems(self) -> Iterator[str]:
        """Say what stands against publishing it, each with what to do."""
        if changed := self.git("status", "--porcelain"):
            yield f"the work tree has changes: commit them\n{changed}"
        if self.git("branch", "--show-current") != "main":
            yield "this is not the branch main: switch to it"
        for line in differing(self.root, self.version):
            yield f"a copy of the version differs: {line}; run: python -m scripts.version"
        changelog = (self.root / "CHANGELOG.md").read_text()
        try:
            changes(changelog, self.version)
        except NotReadyError as problem:
            yield str(problem)
        else:
            if not re.search(rf"^## {self.version}, \d{{4}}-\d\d-\d\d$", changelog, re.MULTILINE):
                yield f"the section of {self.version} in CHANGELOG.md has no date: write it"
        image = f"protos/v{self.version}.binpb"
        if not (self.root / image).exists():
            yield f"{image} is missing: CONTRIBUTING.md says how to make it"
        yield from (
            f"the tag {tag} is another commit: raise the version"
            for tag in self.tags
            if self.git("tag", "--list", tag) and not self.is_tagged(tag)
        )

    def is_tagged(self, tag: str) -> bool:
        """Return whether the tag is this commit: then an earlier run got as far as that."""
        tagged = self.git("rev-parse", "--verify", "--quiet", f"{tag}^{{commit}}")
        return tagged == self.git("rev-parse", "HEAD")

    def git(self, *words: str) -> str:
        """Return what git prints."""
        return git(self.root, *words)


def build_twice(folder: Path) -> list[Path]:
    """Build into `folder`. Raise NotReadyError if a second build differs."""
    files = build(folder)
    with tempfile.TemporaryDirectory(prefix="again-") as again:
        for file, other in zip(files, build(Path(again) / "dist"), strict=True):
            if file.read_bytes() != other.read_bytes():
                raise NotReadyError(f"{file.name} differs from one build to the next")
    return files


def upload(root: Path, options: argparse.Namespace, version: str, rehearse: bool) -> None:
    """Upload all packages, or say what would be. Raise NotReadyError where a program fails."""
    dist, dry = root / "dist", ["--dry-run"] if rehearse else []
    where = ["--publish-url", options.upload_url] if options.upload_url else []
    where += ["--check-url", options.index_url] if options.index_url else []
    files = [f"wasmkiln-{version}-py3-none-any.whl", f"wasmkiln-{version}.tar.gz"]
    run(dist, find_uv_bin(), "publish", *dry, *where, *files)
    if "npm" not in options.without:
        where = [f"--registry={options.npm_registry}"] if options.npm_registry else []
        # What is there already is left alone, as uv does by itself.
        if not run(dist, "npm", "view", *where, f"wasmkiln@{version}", fails=True):
            run(root / "client" / "node", "npm", "publish", *dry, *where)
    if "maven" not in options.without:
        # With its sources and documentation, signed, as Maven Central asks; a rehearsal deploys to
        # a folder.
        goals = ["package", "source:jar-no-fork", "javadoc:jar", "gpg:sign", "deploy:deploy"]
        words = ["mvn", "-B", "-DskipTests", f"-Dgpg.skip={str(rehearse).lower()}", *goals]
        url = f"file:{dist}/maven" if rehearse else options.maven_url
        parts = "pom, jar, sources, javadoc"
        print(f"com.wasmkiln:wasmkiln-client:{version} ({parts}) to {options.maven_url}")
        run(root / "client" / "java", *words, f"-DaltDeploymentRepository=wasmkiln::{url}")


def run(folder: Path, *words: str, fails: bool = False) -> bool:
    """Run a program, which shows what it does; return whether it succeeds.

    Raise NotReadyError if it does not, unless it may fail.
    """
    print("+", *words, flush=True)
    try:
        succeeds = subprocess.run(words, cwd=folder, check=False).returncode == 0
    except OSError as error:
        raise NotReadyError(f"cannot run {words[0]}: {error.strerror}") from None
    if not succeeds and not fails:
        raise NotReadyError(f"{Path(words[0]).name} fails: see above")
    return succeeds


def main(root: Path, arguments: list[str]) -> int:
    """Publish, or say why not; return the exit code."""
    parser = argparse.ArgumentParser(prog="make publish", description=__doc__)
    parser.add_argument("--dry-run", action="store_true", help="check and build; upload nothing")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument("--without", action="append", default=[], choices=["npm", "maven"])
    parser.add_argument("--upload-url", help="instead of PyPI")
    parser.add_argument("--index-url", help="where to look for what has arrived there")
    parser.add_argument("--npm-registry", help="instead of npm's own")
    parser.add_argument("--maven-url", help="where Maven deploys: Maven Central says its address")
    options = parser.parse_args(arguments)
    release = Release(root)
    try:
        found = list(release.problems())
        if not options.maven_url and "maven" not in options.without:
            found.append("no place for the package of Java: --maven-url URL, or --without maven")
        if found:
            raise NotReadyError("\n- ".join(["", *found]))
        build_twice(root / "dist")
        upload(root, options, release.version, rehearse=True)
        print(f"wasmkiln {release.version}, commit {release.git('rev-parse', '--short', 'HEAD')}:")
        print(f"to be uploaded as above, and tagged {' '.join(release.tags)}")
        if options.dry_run:
            print("dry run: nothing was uploaded")
            return 0
        question = "Publish? A version can never be uploaded again. [yes/no] "
        if not options.yes and input(question) != "yes":
            print("nothing was published")
            return 1
        for tag in release.tags:
            if not release.is_tagged(tag):
                release.git("tag", "--annotate", tag, "--message", f"wasmkiln {release.version}")
        upload(root, options, release.version, rehearse=False)
    except NotReadyError as problem:
        print(f"cannot publish {release.version}: {problem}", file=sys.stderr)
        return 1
    print(f"published. Now: git push origin {' '.join(release.tags)}, and add dist/ to the first")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(__file__).resolve().parents[1], sys.argv[1:]))
