"""Make the reference of the API from the comments of ``protos/``, for the site (``make site``).

What is wrong on these pages is mended in the protos. A page has the RPCs and the messages of one
file, each message as a table of its fields.
"""

from __future__ import annotations

import importlib.resources
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from google.protobuf import descriptor_pb2 as pb
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "wasmkiln/v1"
# The title of each file's page, which is `proto-` and the file's name.
TITLES = {
    "module_service": "RPCs and messages of ModuleService",
    "admin_service": "RPCs and messages of AdminService",
    "types": "Messages of both services",
}
SCALARS = {number: name[5:].lower() for name, number in pb.FieldDescriptorProto.Type.items()}
# Where a descriptor has its messages, enums, services; fields, values, methods; inner messages.
MESSAGE, ENUM, SERVICE, FIELD, VALUE, METHOD, NESTED, NESTED_ENUM = 4, 5, 6, 2, 2, 2, 3, 4


def pages() -> dict[str, str]:
    """Return the text of each page by its name."""
    made = {}
    for proto in parsed().file:
        file = Path(proto.name).stem
        if PACKAGE in proto.name and file in TITLES:
            comments = {
                tuple(each.path): each.leading_comments for each in proto.source_code_info.location
            }
            head = (f"# {TITLES[file]}", f"Generated from `protos/{proto.name}`.")
            body = (*head, *rpcs(proto, comments), *messages(proto, comments))
            made[f"proto-{file.replace('_', '-')}.md"] = "\n\n".join(body) + "\n"
    return made


def parsed() -> pb.FileDescriptorSet:
    """Return what protoc reads in the protos, comments included."""
    protos = ROOT / "protos"
    with tempfile.NamedTemporaryFile() as out:
        words = ["protoc", f"-I{protos}", f"-I{importlib.resources.files('grpc_tools') / '_proto'}"]
        words += ["--include_source_info", f"--descriptor_set_out={out.name}"]
        if protoc.main([*words, *map(str, sorted((protos / PACKAGE).glob("*.proto")))]):
            raise SystemExit("cannot read protos/: protoc says why")
        return pb.FileDescriptorSet.FromString(Path(out.name).read_bytes())


Comments = dict[tuple[int, ...], str]


def rpcs(proto: pb.FileDescriptorProto, comments: Comments) -> Iterator[str]:
    """Describe the services of a file and their RPCs."""
    for at, service in enumerate(proto.service):
        yield from paragraphs(comments.get((SERVICE, at), ""))
        for number, method in enumerate(service.method):
            stream = "stream " if method.server_streaming else ""
            yield f"## {method.name}"
            yield f"`{short(method.input_type)}` → `{stream}{short(method.output_type)}`"
            yield from paragraphs(comments.get((SERVICE, at, METHOD, number), ""))


def messages(proto: pb.FileDescriptorProto, comments: Comments) -> Iterator[str]:
    """Describe the messages and enums of a file."""
    for at, message in enumerate(proto.message_type):
        yield from one_message(message, (MESSAGE, at), comments, "")
    for at, enum in enumerate(proto.enum_type):
        yield from one_enum(enum, (ENUM, at), comments, "")


def one_message(
    message: pb.DescriptorProto, path: tuple[int, ...], comments: Comments, prefix: str
) -> Iterator[str]:
    """Describe a message, and those inside it."""
    name = prefix + message.name
    if not message.options.map_entry:
        yield f"## {name}"
        yield from paragraphs(comments.get(path, ""))
        entries = {each.name: each for each in message.nested_type if each.options.map_entry}
        rows = [
            f"| `{field.name}` | {typed(field, entries)} |"
            f" {cell(comments.get((*path, FIELD, number), ''))} |"
            for number, field in enumerate(message.field)
        ]
        if rows:
            yield "\n".join(["| field | type | meaning |", "|---|---|---|", *rows])
    for number, inner in enumerate(message.nested_type):
        if not inner.options.map_entry:
            yield from one_message(inner, (*path, NESTED, number), comments, f"{name}.")
    for number, enum in enumerate(message.enum_type):
        yield from one_enum(enum, (*path, NESTED_ENUM, number), comments, f"{name}.")


def one_enum(
    enum: pb.EnumDescriptorProto, path: tuple[int, ...], comments: Comments, prefix: str
) -> Iterator[str]:
    """Describe an enum."""
    yield f"## {prefix}{enum.name}"
    yield from paragraphs(comments.get(path, ""))
    rows = [
        f"| `{value.name}` | {cell(comments.get((*path, VALUE, number), ''))} |"
        for number, value in enumerate(enum.value)
    ]
    yield "\n".join(["| value | meaning |", "|---|---|", *rows])


def typed(field: pb.FieldDescriptorProto, entries: dict[str, pb.DescriptorProto]) -> str:
    """Return the type of a field, as a proto writes it."""
    name = short(field.type_name) if field.type_name else SCALARS[field.type]
    if entry := entries.get(name.rpartition(".")[2]):
        key, value = (typed(each, {}).strip("`") for each in entry.field)
        return f"`map<{key}, {value}>`"
    repeated = field.label == pb.FieldDescriptorProto.LABEL_REPEATED
    return f"`{'repeated ' if repeated else ''}{name}`"


def short(name: str) -> str:
    """Return the name of a message without our package's."""
    return name.removeprefix(".").removeprefix("wasmkiln.v1.")


def paragraphs(comment: str) -> Iterator[str]:
    """Return a comment as it stands: its lines may form a table."""
    lines = [line.removeprefix(" ").rstrip() for line in comment.strip("\n").splitlines()]
    if any(line.startswith("  ") for line in lines):
        yield "\n".join(["```text", *lines, "```"])
    elif lines:
        yield marked("\n".join(lines))


def cell(comment: str) -> str:
    """Return a comment for a table."""
    return " ".join(marked(comment).replace("|", "\\|").split())


def marked(comment: str) -> str:
    """Return a comment as Markdown."""
    return re.sub(r"<(?=\w)", "&lt;", comment)
