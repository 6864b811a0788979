"""Run the console sessions of a page of the documentation, and compare what they print."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

_BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_KEPT = re.compile(r"^(?:export|umask|cd) ")
_ANYTHING = "…"


@dataclass(frozen=True)
class Command:
    """A command of a page, and what the page says that it prints."""

    text: str
    printed: str


def sessions(text: str) -> list[list[Command]]:
    """Return the commands of each block: a line with ``$``, and those that it goes on in."""
    return [list(_commands(block)) for block in _BLOCK.findall(text)]


def _commands(block: str) -> Iterator[Command]:
    for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
        command, *printed = part.split("\n")
        while command.endswith("\\"):
            command += "\n" + printed.pop(0)
        yield Command(command, "\n".join(printed))


class Shell:
    """Runs commands of one terminal: exports stay for those after them."""

    def __init__(self, folder: Path, environ: Mapping[str, str]) -> None:
        self._folder = folder
        self._environ = environ
        self._kept: list[str] = []

    def run(self, command: str) -> str:
        """Run a command; return all that it prints."""
        if _KEPT.match(command):
            self._kept.append(command)
        done = subprocess.run(
            ["sh", "-c", "\n".join([*self._kept, command])],
            cwd=self._folder,
            env=self._environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
        )
        return done.stdout

    def script(self, command: str) -> str:
        """Return what a shell has to run for a command that goes on."""
        return "\n".join([*self._kept, f"exec {command}"])


def same(printed: str, expected: str) -> bool:
    """Return whether a command printed what the page says; ``…`` stands for anything."""
    pattern = ".*".join(re.escape(part) for part in _lines(expected).split(_ANYTHING))
    return bool(re.fullmatch(pattern, _lines(printed), re.DOTALL))


def _lines(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.strip().splitlines())
