"""The record of the groups that passed: with which inputs, and when."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import NamedTuple

from tests.groups.inputs import ROOT

RECORD = ROOT / "tests" / "groups" / "passed.json"


class Pass(NamedTuple):
    """That a group passed whole."""

    digest: str
    """Of its inputs."""
    python: str
    date: str
    version: str
    """Of wasmkiln."""
    seconds: int
    """That its tests took, one after the other."""
    full: bool
    """Whether at its full size."""


def python_version() -> str:
    """Return the version of Python that decides whether a result still counts."""
    return ".".join(platform.python_version_tuple()[:2])


def read_record(path: Path = RECORD) -> dict[str, Pass]:
    """Return what the record says of each group; nothing where there is none."""
    if not path.exists():
        return {}
    return {name: Pass(**each) for name, each in json.loads(path.read_text()).items()}


def write_record(passes: dict[str, Pass], path: Path = RECORD) -> None:
    """Write the record, in an order that does not change by itself."""
    told = {name: each._asdict() for name, each in sorted(passes.items())}
    path.write_text(json.dumps(told, indent=2) + "\n")
