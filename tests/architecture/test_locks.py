"""The lock files hold what pyproject.toml asks for, with the SHA-256 of each file."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCKED = re.compile(
    r"^(?P<name>[a-z0-9-]+)(\[.+\])?==(?P<version>\S+)(?P<rest>(.*\\\n)+.*)$", re.MULTILINE
)
DIGEST = re.compile(r"--hash=sha256:[0-9a-f]{64}")


def locked(name: str) -> dict[str, str]:
    """Return the version of each package of a lock file."""
    text = (ROOT / "requirements" / f"{name}.txt").read_text()
    found = {match["name"]: match for match in LOCKED.finditer(text)}
    assert all(DIGEST.search(match["rest"]) for match in found.values())
    return {package: match["version"] for package, match in found.items()}


def asked(extra: str) -> list[Requirement]:
    """Return what an extra asks for, through the extras that it names."""
    wanted = [Requirement(text) for text in PROJECT["optional-dependencies"][extra]]
    wanted += [Requirement(text) for text in PROJECT["dependencies"]]
    for ours in [each for each in wanted if each.name == "wasmkiln"]:
        wanted.remove(ours)
        wanted += [one for inner in sorted(ours.extras) for one in asked(inner)]
    return wanted


@pytest.mark.parametrize("name", ["server", "dev"])
def test_a_lock_file_holds_what_the_project_asks_for(name: str) -> None:
    versions = locked(name)
    for wanted in asked(name):
        version = versions.get(wanted.name.lower().replace("_", "-"))
        assert version, f"requirements/{name}.txt lacks {wanted}: run `make lock`"
        assert wanted.specifier.contains(version), f"{wanted} is not locked: run `make lock`"


@pytest.mark.parametrize("name", ["server", "dev"])
def test_a_lock_file_names_the_extras_that_are_asked_for(name: str) -> None:
    """pip takes `redis[hiredis]` for unpinned where `redis` alone is locked."""
    text = (ROOT / "requirements" / f"{name}.txt").read_text()
    wanted = [
        f"{each.name}[{','.join(sorted(each.extras))}]" for each in asked(name) if each.extras
    ]
    assert wanted
    assert [each for each in wanted if f"\n{each}==" not in text] == []


def test_what_is_served_is_what_was_tested() -> None:
    assert locked("server").items() <= locked("dev").items()
