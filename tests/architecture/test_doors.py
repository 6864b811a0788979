"""Each room has a door: a docstring that a newcomer reads instead of the files."""

from __future__ import annotations

import ast
from pathlib import Path

from tests.architecture.imports import CLIENT, SERVER, shown, written_files

LEAST_LINES = 12  # a third of a page


def door(room: Path) -> str:
    return ast.get_docstring(ast.parse(room.read_text())) or ""


def test_each_room_has_a_door() -> None:
    rooms = [path for path in written_files(SERVER, CLIENT) if path.name == "__init__.py"]
    assert rooms
    assert [shown(room) for room in rooms if len(door(room).splitlines()) < LEAST_LINES] == []
