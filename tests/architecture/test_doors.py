"""Each room has a door: a docstring that a newcomer reads instead of the files."""

from __future__ import annotations

import ast

import pytest

from tests.architecture.imports import CLIENT, SERVER, is_package, modules

LEAST_LINES = 12  # a third of a page
ROOMS = {
    name: path
    for package in (SERVER, CLIENT)
    for name, path in modules(package).items()
    if is_package(path)
}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_has_a_door(room: str) -> None:
    door = ast.get_docstring(ast.parse(ROOMS[room].read_text())) or ""
    assert len(door.splitlines()) >= LEAST_LINES


def test_all_rooms_are_looked_at() -> None:
    assert {"wasmkilnd", "wasmkilnd.cache.redis", "wasmkiln.cli.commands"} <= set(ROOMS)
