"""Check that no other user can change the code of an engine or of its interpreter."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

from wasmkilnd.ownership import check_path, check_tree

_LIBRARY_FOLDERS = ("lib", "lib64")
_LIBRARY = re.compile(r"python3\.\d+")
# Workers import nothing from these: an engine's environment has packages of its own.
_PACKAGES = frozenset({"site-packages", "dist-packages"})
_HOME = re.compile(r"^home *= *(.+)$", re.MULTILINE)


def check_engine(environment: Path, interpreter: Path) -> None:
    """Raise NotOurs if another user can change what an engine's workers run. May block."""
    check_tree(environment)
    check_interpreter(interpreter)
    # The environment's Python takes its library from there, wherever the link to it leads.
    with suppress(OSError):
        text = (environment / "pyvenv.cfg").read_text(errors="replace")
        for home in _HOME.findall(text):
            _check_libraries(Path(home.strip()).parent, interpreter)


def check_interpreter(executable: Path) -> None:
    """Raise NotOurs if another user can change a Python or its library. May block."""
    check_path(executable)
    _check_libraries(executable.resolve().parent.parent, executable)


def _check_libraries(prefix: Path, executable: Path) -> None:
    name = executable.resolve().name
    versions = name if _LIBRARY.fullmatch(name) else "python3.*"
    for folder in (prefix / each for each in _LIBRARY_FOLDERS):
        check_path(folder)
        for library in folder.glob(versions):
            check_tree(library, leave_out=_PACKAGES)
        for loaded in (*folder.glob("python3*.zip"), *folder.glob("libpython3*")):
            check_path(loaded)
