"""Make what tells of commands, settings and RPCs, from where each is told of first.

`make protos` writes the man pages, and the names of the settings into the schema of the Helm
chart's values, so that `helm install` refuses another. `make site` gets the pages. What is wrong
in one of them is mended in a command's `--help`, in `settings.py` or in `protos/`.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator

import click
from wasmkiln.cli.app import app
from wasmkilnd.cli import command as daemon
from wasmkilnd.settings import Settings

from scripts.version import ROOT

SCHEMA = ROOT / "deploy" / "helm" / "wasmkiln" / "values.schema.json"
PROGRAMS = {"wasmkiln": app, "wasmkilnd": daemon}
# The title of each page of the site.
TITLES = {
    "wasmkiln": "Commands of callers: wasmkiln",
    "wasmkilnd": "Commands of operators: wasmkilnd",
    "module_service": "RPCs and messages of ModuleService",
    "admin_service": "RPCs and messages of AdminService",
    "types": "Messages of both services",
}
# A command with no more flags of settings than these shows them.
FEW = 10
SETTINGS = "And a flag for each setting: see the configuration."
# What is told of in a proto: its comment, and a message or enum to its end, an RPC, or a service.
DECLARED = re.compile(
    r"^((?: *//.*\n)*)"
    r"((?:message|enum) (\w+) \{(?:\}|\n(?:.*\n)*?\})|  rpc (\w+).*;|service (\w+) \{)$",
    re.MULTILINE,
)


def main() -> None:
    """Write the man pages, and the names of the settings into the chart's schema."""
    for program, command in PROGRAMS.items():
        (ROOT / "man" / f"{program}.1").write_text(manual(program, command))
    schema = json.loads(SCHEMA.read_text())
    schema["properties"]["settings"]["propertyNames"] = {"enum": sorted(Settings.model_fields)}
    SCHEMA.write_text(json.dumps(schema, indent=2) + "\n")


def pages() -> dict[str, str]:
    """Return the text of each page of the site by its name."""
    made = {}
    for name, command in PROGRAMS.items():
        told = [f"## {of}\n\n```text\n{text}\n```" for of, text in helps(name, command)]
        made[f"{name}.md"] = "\n\n".join([f"# {TITLES[name]}", *told]) + "\n"
    for file in (ROOT / "protos" / "wasmkiln" / "v1").glob("*.proto"):
        told = [
            f"## {''.join(names)}\n\n```protobuf\n{comment}{text}\n```"
            for comment, text, *names in DECLARED.findall(file.read_text())
        ]
        where = f"From `{file.relative_to(ROOT)}`."
        name = f"proto-{file.stem.replace('_', '-')}.md"
        made[name] = "\n\n".join([f"# {TITLES[file.stem]}", where, *told]) + "\n"
    return made


def helps(
    name: str, command: click.Command, parent: click.Context | None = None
) -> Iterator[tuple[str, str]]:
    """Yield each command's name, and what its `--help` prints, without what all have."""
    context = click.Context(
        command, parent=parent, info_name=name.split()[-1], max_content_width=90, terminal_width=90
    )
    params = command.get_params(context)
    hidden = {each.name for each in params if each.name in Settings.model_fields}
    many = f"\n\n{SETTINGS}" if len(hidden) > FEW else ""
    above: set[str] = set()
    if (root := context.find_root()) is not context:
        above = {"--help", *(opt for each in root.command.get_params(root) for opt in each.opts)}
    shown = copy.copy(command)
    shown.add_help_option = False
    shown.params = [
        each
        for each in command.params
        if not (many and each.name in hidden) and not above.intersection(each.opts)
    ]
    yield name, shown.get_help(context) + many
    if isinstance(command, click.Group):
        for inner in command.list_commands(context):
            if below := command.get_command(context, inner):
                yield from helps(f"{name} {inner}", below, context)


def manual(program: str, command: click.Command) -> str:
    """Return the man page of a program: what `--help` prints of each of its commands."""
    about = (command.help or "").splitlines()[0].rstrip(".")
    lines = [f'.TH {program.upper()} 1 "" wasmkiln "User Commands"']
    lines += [".SH NAME", f"{program} \\- {about}"]
    for name, text in helps(program, command):
        shown = text.replace("\\", "\\e").replace("-", "\\-").splitlines()
        lines += [f".SH {name}", ".nf", *(f"\\&{line}" for line in shown), ".fi"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
