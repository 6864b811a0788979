"""Publish a release: the one command that a person runs, `make publish`.

It checks that the release is ready (`problems`), builds it twice and compares, shows what it will
do, asks, makes the tags, and uploads: wheel and sources with uv, the package for Node with npm, the
one for Java with Maven. It holds no credentials: uv takes a token from UV_PUBLISH_TOKEN, npm and
Maven (server `wasmkiln`) from their own files; and another place from UV_PUBLISH_URL,
UV_PUBLISH_CHECK_URL and npm_config_registry. `--dry-run` stops before the upload. After an upload
that broke off, run it again: what has arrived is skipped.
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
from scripts.version import ROOT, version_of


def problems(root: Path, tags: list[str]) -> Iterator[str]:
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
    for tag in tags:
        if git(root, "tag", "--list", tag) and not is_tagged(root, tag):
            yield f"the tag {tag} is another commit: raise the version"


def is_tagged(root: Path, tag: str) -> bool:
    """Return whether the tag is this commit: then an earlier run got as far as that."""
    tagged = git(root, "rev-parse", "--verify", "--quiet", f"{tag}^{{commit}}")
    return tagged == git(root, "rev-parse", "HEAD")


def build_twice(folder: Path) -> None:
    """Build into `folder`. Raise NotReadyError if a second build differs."""
    with tempfile.TemporaryDirectory(prefix="again-") as again:
        for file, other in zip(build(folder), build(Path(again) / "dist"), strict=True):
            if file.read_bytes() != other.read_bytes():
                raise NotReadyError(f"{file.name} differs from one build to the next")


def upload(root: Path, options: argparse.Namespace, version: str, rehearse: bool) -> None:
    """Upload all packages, or say what would be. Raise NotReadyError where a program fails."""
    dist, dry = root / "dist", ["--dry-run"] if rehearse else []
    files = [f"wasmkiln-{version}-py3-none-any.whl", f"wasmkiln-{version}.tar.gz"]
    run(dist, find_uv_bin(), "publish", *dry, *files)
    # What is there already is left alone, as uv does by itself.
    if "npm" not in options.without and not run(
        dist, "npm", "view", f"wasmkiln@{version}", fails=True
    ):
        run(root / "client" / "node", "npm", "publish", *dry)
    if "maven" not in options.without:
        # With its sources and documentation, signed, as Maven Central asks; a rehearsal deploys to
        # a folder.
        goals = ["package", "source:jar-no-fork", "javadoc:jar", "gpg:sign", "deploy:deploy"]
        words = ["mvn", "-B", "-DskipTests", f"-Dgpg.skip={str(rehearse).lower()}", *goals]
        url = f"file:{dist}/maven" if rehearse else options.maven_url
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


def main(root: Path, arguments: list[str]) -> str:
    """Publish; return why not, or "" where it did what it was asked for."""
    parser = argparse.ArgumentParser(prog="make publish", description=__doc__)
    parser.add_argument("--dry-run", action="store_true", help="check and build; upload nothing")
    parser.add_argument("--without", action="append", default=[], choices=["npm", "maven"])
    parser.add_argument("--maven-url", help="where Maven deploys: Maven Central says its address")
    options = parser.parse_args(arguments)
    version = version_of(root)
    # Go asks for a module that lies in a folder by the folder's name too.
    tags = [f"v{version}", f"client/go/v{version}"]
    try:
        found = list(problems(root, tags))
        if not options.maven_url and "maven" not in options.without:
            found.append("no place for the package of Java: --maven-url URL, or --without maven")
        if found:
            raise NotReadyError("\n- ".join(["", *found]))
        build_twice(root / "dist")
        upload(root, options, version, rehearse=True)
        print(f"wasmkiln {version}, commit {git(root, 'rev-parse', '--short', 'HEAD')}:")
        print(
            f"to be uploaded as above, Java's to {options.maven_url}, and tagged {' '.join(tags)}"
        )
        if options.dry_run:
            print("dry run: nothing was uploaded")
            return ""
        if input("Publish? A version can never be uploaded again. [yes/no] ") != "yes":
            return "nothing was published"
        for tag in tags:
            if not is_tagged(root, tag):
                git(root, "tag", "--annotate", tag, "--message", f"wasmkiln {version}")
        upload(root, options, version, rehearse=False)
    except NotReadyError as problem:
        return f"cannot publish {version}: {problem}"
    print(f"published. Now: git push origin {' '.join(tags)}, and add dist/ to the first")
    return ""


if __name__ == "__main__":
    sys.exit(main(ROOT, sys.argv[1:]) or None)
