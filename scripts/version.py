"""The version of the source tree. `bump-my-version` writes another one: see pyproject.toml."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def version_of(root: Path) -> str:
    """Return the version of the source tree at `root`."""
    return str(tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"])
