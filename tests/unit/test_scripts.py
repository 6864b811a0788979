"""scripts/: what a release, its versions and licences are checked for."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from scripts import licences, publish, release, version
from tests.architecture.test_locks import locked

ROOT = version.ROOT
VERSION = version.version_of(ROOT)
PLACES = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["bumpversion"]["files"]
# What has to be this version, wherever it stands.
_COPY = re.compile(
    r'(?:wasmkilnd |"wasmkiln",?\s+"version": "|"wasmkiln": "|^{\n  "version": "|kiln VERSION '
    r'|wasmkiln-client</artifactId>\s+<version>|^(?:appV|v)ersion:? (?:= )?"?)'
    r"(\d+\.\d+\.\d+)(?= is ready|\"| [A-Z]|<|\s*$)",
    re.MULTILINE,
)
DATED = f"# Changelog\n\n## {VERSION}, 2026-11-28\n\n- all of it\n"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A repository that is ready: the files that are looked at, committed on main."""
    root = tmp_path / "tree"
    for place in PLACES:
        for file in ROOT.glob(place.get("glob") or place["filename"]):
            there = root / file.relative_to(ROOT)
            there.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, there)
    (root / "protos").mkdir()
    (root / "protos" / f"v{VERSION}.binpb").touch()
    (root / "CHANGELOG.md").write_text(DATED)
    _git(root, "init", "--quiet", "--initial-branch", "main")
    _commit(root)
    return root


def _git(root: Path, *words: str) -> None:
    who = ("-c", "user.name=T", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false")
    subprocess.run(["git", "-C", str(root), *who, *words], check=True)


def _commit(root: Path) -> None:
    _git(root, "add", "--all")
    _git(root, "commit", "--quiet", "--allow-empty", "--message", "x")


# --- versions ----------------------------------------------------------------------------------


def test_a_new_version_is_written_into_every_copy_and_nowhere_else(tree: Path) -> None:
    before = {file: file.read_text() for file in tree.glob("[!.]*/**/*") if file.suffix in _TEXTS}
    assert _bump(tree, "17.0.4") == ""
    assert version.version_of(tree) == "17.0.4"
    copies = _copies(tree)
    assert len(copies) > 10
    assert {*copies} == {"17.0.4"}
    for file, text in before.items():
        lines = zip(text.splitlines(), file.read_text().splitlines(), strict=True)
        changed = [(was, now) for was, now in lines if was != now]
        # What was another value, as an engine's version, is that still.
        assert all(now == was.replace(VERSION, "17.0.4") for was, now in changed), file
    # Once for the package and once for the root of its tree.
    assert (tree / "client/node/package-lock.json").read_text().count("17.0.4") == 2


_TEXTS = {".md", ".json", ".xml", ".yaml", ".txt"}


def test_every_copy_is_of_this_version() -> None:
    assert {*_copies(ROOT)} == {VERSION}


def _copies(root: Path) -> list[str]:
    files = [file for place in PLACES for file in root.glob(place.get("glob") or place["filename"])]
    return [each for file in files for each in _COPY.findall(file.read_text())]


def test_a_copy_that_differs_or_is_gone_is_named(tree: Path) -> None:
    differs, gone = "client/cpp/CMakeLists.txt", "client/node/package.json"
    (tree / differs).write_text("project(wasmkiln LANGUAGES CXX)\n")
    assert differs in _bump(tree, "17.0.4", "--dry-run")
    (tree / gone).unlink()
    assert gone in _bump(tree, "17.0.4", "--dry-run")


def test_a_version_that_some_language_cannot_read_is_refused(tree: Path) -> None:
    for text in ("1.2", "1.2.3rc1", "v1.2.3"):
        assert _bump(tree, text)
    assert version.version_of(tree) == VERSION


def _bump(tree: Path, wanted: str, *words: str) -> str:
    """Write a version; return why not, in one line."""
    command = [f"{sys.prefix}/bin/bump-my-version", "bump", *words, "--new-version", wanted]
    done = subprocess.run(
        command, cwd=tree, capture_output=True, text=True, check=False, env={"COLUMNS": "300"}
    )
    assert bool(done.returncode) is bool(done.stderr)
    return done.stderr


def test_an_engine_in_an_example_has_the_version_of_its_id() -> None:
    """An answer has both: our own was written over an engine's once."""
    pattern = r'"id": "(\w+)-([^"]+)",\s*"name": "(\w+)",\s*"version": "([^"]+)"'
    pages = (ROOT / "docs").rglob("*.md")
    examples = [found for page in pages for found in re.findall(pattern, page.read_text())]
    assert [each for each in examples if each[:2] != each[2:]] == []
    assert ("wasmtime", "50.0.1", "wasmtime", "50.0.1") in examples


# --- releases ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("CHANGELOG.md", DATED, None),  # what is ready has no problem
        ("CHANGELOG.md", "# Changelog\n\n## 0.0.1\n", f"has no section '## {VERSION}'"),
        ("CHANGELOG.md", f"# Changelog\n\n## {VERSION}\n\n- all of it\n", "has no date"),
        (f"protos/v{VERSION}.binpb", None, f"protos/v{VERSION}.binpb is missing"),
        ("README.md", "wasmkilnd 0.0.1 is ready\n", "a copy of the version differs"),
    ],
)
def test_what_is_not_ready_is_refused(
    tree: Path, file: str, content: str | None, words: str | None
) -> None:
    (tree / file).unlink()
    if content is not None:
        (tree / file).write_text(content)
    _commit(tree)
    found = list(publish.problems(tree))
    assert len(found) == (words is not None)
    assert not words or words in found[0]


def test_what_others_cannot_see_is_refused(tree: Path) -> None:
    _git(tree, "switch", "--quiet", "--create", "topic")
    _commit(tree)
    (tree / "new.py").touch()
    changed, branch = publish.problems(tree)
    assert changed == "the work tree has changes: commit them\n?? new.py"
    assert "this is not the branch main" in branch


def test_a_section_of_the_changelog_is_found() -> None:
    text = "# Changelog\n\n## 2.0.0\n\n- b\n\n## 1.0.0, 2026-01-01\n\n- a\n\n## 0.9.0\n\n"
    assert release.changes(text, "2.0.0") == "- b\n"
    assert release.changes(text, "1.0.0") == "- a\n"
    with pytest.raises(release.NotReadyError, match="is empty"):
        release.changes(text, "0.9.0")
    with pytest.raises(release.NotReadyError, match="no section"):
        release.changes(text, "1.0")


def test_the_requirements_name_the_release_by_its_digests(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"")
    lock = (ROOT / "requirements" / "server.txt").read_text()
    text = release.requirements("1.2.3", lock, [tmp_path / "a"])
    ours = (
        "\nwasmkiln[server]==1.2.3 \\\n    --hash=sha256:"
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\n"
    )
    first, rest = text.split(ours)
    assert {line[0] for line in first.splitlines()} == {"#"}
    assert "\ngrpcio==" in rest
    assert "\nredis[hiredis]==" in rest
    assert "\nhatchling==" not in rest


def test_the_wheel_carries_a_bill_of_materials_and_the_pins(tmp_path: Path) -> None:
    # Here: each process that collects the tests would take two seconds for it.
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    built, _ = release.build_packages(tmp_path, VERSION)
    with zipfile.ZipFile(built) as wheel:
        inside = f"wasmkiln-{VERSION}.dist-info/sboms/wasmkiln.cdx.json"
        text = wheel.read(inside).decode()
        for file in (ROOT / "server" / "wasmkilnd" / "engines" / "pins").iterdir():
            assert wheel.read(f"wasmkilnd/engines/pins/{file.name}") == file.read_bytes()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    bill = json.loads(text)
    ours = bill["metadata"]["component"]
    assert (ours["purl"], ours["version"]) == (f"pkg:pypi/wasmkiln@{VERSION}", VERSION)
    # What is locked, and nothing that only builds.
    parts = {part["name"]: part["version"] for part in bill["components"]}
    assert parts.items() <= locked("server").items()
    left_out = locked("server").keys() - parts.keys()
    assert "hatchling" in left_out
    assert not {"grpcio", "redis", "cryptography", "yarl", "uv"} & left_out
    # Who asks for whom.
    named = {part["bom-ref"] for part in bill["components"]}
    edges = {each["ref"]: set(each["dependsOn"]) for each in bill["dependencies"]}
    assert edges.keys() == {ours["bom-ref"], *named}
    assert set[str]().union(*edges.values()) == named
    assert any(ref.startswith("pkg:pypi/grpcio@") for ref in edges[ours["bom-ref"]])


# --- licences ----------------------------------------------------------------------------------


def test_everything_that_is_installed_has_a_licence_that_was_agreed_to() -> None:
    found = list(licences.packages())
    assert [why for each in found if (why := licences.refused(each))] == []
    assert {each.source for each in found} >= {"daemon", "engine wasmtime-50.0.1", "Node client"}
    assert {"grpcio", "wasmer", "@grpc/grpc-js"} <= {each.name for each in found}


def test_a_refusal_of_a_licence_says_what_to_do() -> None:
    for name, licence, says in (
        ("x", "", "read it, then add it to STATED"),
        ("x", "GPL-3.0-only", "is not in PERMISSIVE"),
        ("x", "Apache-2.0 AND GPL-2.0-only", "is not in PERMISSIVE"),
        ("x", "Mozilla Public License 2.0 (MPL 2.0)", "is not in PERMISSIVE"),
        ("certifi", "GPL-3.0-only", "is not in PERMISSIVE"),
        ("certifi", "Mozilla Public License 2.0 (MPL 2.0)", ""),
        ("x", "Apache-2.0 OR MIT", ""),
    ):
        why = licences.refused(licences.Package("daemon", name, "1", licence))
        assert says in why
        assert bool(why) == bool(says)


@pytest.mark.parametrize(
    ("does", "passes", "says"),
    [
        ("echo 'No known vulnerabilities found'", True, "No known vulnerabilities found"),
        ("echo 'redis 4.5.0 PYSEC-2023-45 4.5.3'; exit 1", False, "PYSEC-2023-45"),
        ("echo 'ConnectionError: Max retries exceeded' >&2; exit 1", True, "audit: skipped"),
        ("echo 'ValueError: bad requirement' >&2; exit 1", False, "ValueError: bad requirement"),
    ],
)
def test_an_audit_fails_for_what_is_known_and_is_skipped_without_data(
    tmp_path: Path, does: str, passes: bool, says: str
) -> None:
    (tmp_path / "pip-audit").write_text(f"#!/bin/sh\n{does}\n")
    (tmp_path / "pip-audit").chmod(0o755)
    words = ["-f", str(ROOT / "Makefile"), "-o", ".venv/.dev", f"BIN={tmp_path}"]
    done = subprocess.run(
        ["make", *words, "audit"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode == 0) is passes
    assert says in done.stdout + done.stderr
    assert passes or "skipped" not in done.stdout
