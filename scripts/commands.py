"""Make the reference of the commands: man pages (``make protos``), and pages of ``make site``.

Both come from what click prints for ``--help``: what is wrong here is mended there. The flags of
settings, which ``serve`` and others take, are in docs/reference/configuration.md alone.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parents[1]
for folder in ("server", "client"):
    sys.path.insert(0, str(ROOT / folder))

from wasmkiln.cli.app import app  # noqa: E402
from wasmkilnd.cli import command as daemon  # noqa: E402
from wasmkilnd.settings import Settings  # noqa: E402

PROGRAMS = {"wasmkiln": app, "wasmkilnd": daemon}
TITLES = {
    "wasmkiln": "Commands of callers: wasmkiln",
    "wasmkilnd": "Commands of operators: wasmkilnd",
}
# A command with no more flags of settings than these shows them.
FEW = 10
SETTINGS = "a flag for each setting: see the configuration"


@dataclass(frozen=True)
class Entry:
    """One command, as both kinds of pages show it."""

    name: str
    usage: str
    help: list[str]
    options: list[tuple[str, str]]
    epilog: str
    takes_settings: bool


def main() -> None:
    """Write the man pages."""
    for program, command in PROGRAMS.items():
        text = manual(program, list(walk(program, command)))
        (ROOT / "man" / f"{program}.1").write_text(text)


def pages() -> dict[str, str]:
    """Return the text of each page of the site by its name."""
    return {f"{name}.md": page(name, list(walk(name, each))) for name, each in PROGRAMS.items()}


def walk(name: str, command: click.Command, parent: click.Context | None = None) -> Iterator[Entry]:
    """Describe a command and those below it."""
    context = click.Context(command, parent=parent, info_name=name.split()[-1])
    params = command.get_params(context)
    settings = {each.name for each in params if each.name in Settings.model_fields}
    if len(settings) <= FEW:
        settings = set()
    # What every command has, or the group above it too, is told once.
    above = {"--help", *(opt for each in _group_params(context) for opt in each.opts)}
    shown = [
        record
        for each in params
        if each.name not in settings
        and not above.intersection(each.opts)
        and (record := each.get_help_record(context))
        and record[1]
    ]
    yield Entry(
        name=name,
        usage=" ".join([name, *command.collect_usage_pieces(context)]),
        help=paragraphs(command.help or ""),
        options=shown,
        epilog=click.unstyle(command.epilog or ""),
        takes_settings=bool(settings),
    )
    if isinstance(command, click.Group):
        for inner in command.list_commands(context):
            below = command.get_command(context, inner)
            if below and not below.hidden:
                yield from walk(f"{name} {inner}", below, context)


def _group_params(context: click.Context) -> list[click.Parameter]:
    root = context.find_root()
    return [] if root is context else root.command.get_params(root)


def paragraphs(text: str) -> list[str]:
    """Return the paragraphs of a help text, each in one line."""
    text = text.partition("\f")[0].replace("\b\n", "")
    return [" ".join(each.split()) for each in re.split(r"\n\s*\n", text.strip()) if each.strip()]


def page(name: str, entries: list[Entry]) -> str:
    """Return the page of the site about some commands."""
    lines = [
        f"# {TITLES[name]}",
        "",
        "Generated from the commands' own `--help`.",
    ]
    for entry in entries:
        lines += ["", f"## {entry.name}", "", f"`{entry.usage}`"]
        lines += [line for text in entry.help for line in ("", *wrapped(text))]
        if entry.options:
            lines += ["", "| option | |", "|---|---|"]
            lines += [f"| `{cell(names)}` | {cell(told)} |" for names, told in entry.options]
        if entry.takes_settings:
            lines += ["", "And [a flag for each setting](configuration.md)."]
        if entry.epilog:
            lines += ["", "```", entry.epilog.replace("\b\n", "").strip("\n"), "```"]
    return "\n".join(lines) + "\n"


def wrapped(text: str) -> list[str]:
    """Return a text in lines for docs/."""
    return click.wrap_text(text, 99).splitlines()


def cell(text: str) -> str:
    """Return a text for a table."""
    return text.replace("|", "\\|")


def manual(program: str, entries: list[Entry]) -> str:
    """Return the man page of a program, with all of its commands."""
    first, *others = entries
    about = first.help[0] if first.help else ""
    lines = [
        f'.TH {program.upper()} 1 "" wasmkiln "User Commands"',
        *(".SH NAME", f"{program} \\- {roff(about.rstrip('.'))}"),
        *(".SH SYNOPSIS", f".B {roff(first.usage)}"),
        ".SH OPTIONS",
        *options(first),
        ".SH COMMANDS",
    ]
    for entry in others:
        lines += [f".SS {roff(entry.name)}", f".B {roff(entry.usage)}"]
        lines += [line for text in entry.help for line in (".PP", roff(text))]
        lines += options(entry)
    if first.epilog:
        lines += [
            ".SH NOTES",
            ".nf",
            *map(roff, first.epilog.replace("\b", "").splitlines()),
            ".fi",
        ]
    return "\n".join(lines) + "\n"


def options(entry: Entry) -> Iterator[str]:
    """Return the options of a command for a man page."""
    for names, told in entry.options:
        yield from (".TP", f".B {roff(names)}", roff(told))
    if entry.takes_settings:
        yield from (".PP", roff(f"And {SETTINGS}, or the output of wasmkilnd config --reference."))


def roff(text: str) -> str:
    """Return a text that roff shows as it is."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{text}" if text.startswith((".", "'")) else text


if __name__ == "__main__":
    main()
