"""The version of an engine's package in this interpreter."""

from __future__ import annotations

import os
import sys
from functools import cache


@cache
def installed(package: str) -> str:
    """Return the version. Raise ImportError where it is missing.

    importlib.metadata takes longer to import than an artifact to load, and searches the whole
    path. So look beside an imported package first, where pip puts its metadata.
    """
    module = sys.modules.get(package)
    if module is not None and module.__file__:
        beside = os.path.dirname(os.path.dirname(module.__file__))  # noqa: PTH120
        start, end = f"{package}-", ".dist-info"
        for name in os.listdir(beside):  # noqa: PTH208  Half the time that pathlib takes.
            if name.startswith(start) and name.endswith(end):
                return name[len(start) : -len(end)]
    from importlib.metadata import version

    return version(package)
