"""Where `compile -o` writes, whatever the daemon or a file calls itself."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from wasmkiln import ArtifactHeader
from wasmkiln.cli.app import Exit
from wasmkiln.cli.place import file_name, folded, stem
from wasmkiln.v1 import module_service_pb2 as modules
from wasmkiln.v1 import types_pb2 as types

from tests.attesting import Attester
from tests.lying import honest
from tests.lying.server import LyingServer

OURS = Attester()
SECRET = b"another artifact"


@pytest.fixture
def run(invoke: Callable[..., Result]) -> Callable[..., Result]:
    """Run in a folder with a module, and next to it another's artifact."""
    Path("x.wasm").write_bytes(honest.WASM)
    for name in ("auth.wasmtime-50.0.1.cwasm", "auth.wasmtime-50.0.1.cwasm.dsse.json"):
        Path(name).write_bytes(SECRET)
    Path("out/x.x").mkdir(parents=True)
    return invoke


def answer(server: LyingServer, change: Callable[[ArtifactHeader], Any], sign: bool) -> None:
    """Return with a changed header; signed before the change if at all."""

    def compiled(request: bytes, _context: Any) -> Iterator[bytes]:
        header = honest.header(modules.CompileRequest.FromString(request))
        if sign:
            OURS.attest(header)
        change(header)
        told = modules.CompileResponse(header=header).SerializeToString()
        return honest.compiled(told, request)

    server.answers["Compile"] = compiled


def written() -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in Path().rglob("*") if path.is_file()}


def call_it(name: str, version: str, engine_id: str = "") -> Callable[[ArtifactHeader], None]:
    def change(header: ArtifactHeader) -> None:
        header.engine.name, header.engine.version = name, version
        header.engine.id = engine_id or f"{name}-{version}"

    return change


EVIL_ENGINES = [
    call_it("wasmtime", "50.0.1", "x/../../auth.wasmtime-50.0.1"),
    call_it("x/../../auth.wasmtime", "50.0.1"),
    call_it("wasmtime", "50.0.1/../../auth"),
    call_it("", ""),
    call_it("..", "1"),
    call_it("wasmtime", "5" * 300),
    call_it("w" * 300, "1"),
    call_it("wasm\ntime\x1b[2J", "1"),
    call_it("wasm\0time", "1"),
    call_it("\u202eemitmsaw", "1"),
    call_it("a.wasmtime", "1"),  # a stem may end so
    call_it("~", "1"),
]


@pytest.mark.parametrize("keys", [True, False], ids=["trusted keys", "no keys"])
@pytest.mark.parametrize("change", EVIL_ENGINES)
def test_a_daemon_does_not_choose_a_path(
    run: Callable[..., Result],
    server: LyingServer,
    monkeypatch: pytest.MonkeyPatch,
    keys: bool,
    change: Callable[[ArtifactHeader], Any],
) -> None:
    if keys:
        monkeypatch.setenv("WASMKILN_TRUSTED_KEYS", OURS.key.hex)
    answer(server, change, sign=keys)
    before = written()
    result = run("compile", "x.wasm", "-o", "out")
    assert result.exit_code == Exit.REFUSED, result.output
    assert result.stderr.count("\n") == 1
    assert written() == before


def test_an_honest_answer_is_written(
    run: Callable[..., Result], server: LyingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WASMKILN_TRUSTED_KEYS", OURS.key.hex)
    answer(server, lambda header: None, sign=True)
    assert run("compile", "x.wasm", "-o", "out").exit_code == 0
    path = Path("out/x.wasmtime-50.0.1.cwasm")
    assert path.read_bytes() == honest.ARTIFACT
    assert path.with_name(f"{path.name}.json").exists()
    assert path.with_name(f"{path.name}.dsse.json").exists()


def test_a_link_that_leads_elsewhere_is_replaced(run: Callable[..., Result]) -> None:
    name = "x.wasmtime-50.0.1.cwasm"
    for suffix in ("", ".json", ".dsse.json"):
        Path(f"precious{suffix}").write_bytes(SECRET)
        Path(f"out/{name}{suffix}").symlink_to(f"../precious{suffix}")
    assert run("compile", "x.wasm", "-o", "out").exit_code == 0
    for suffix in ("", ".json", ".dsse.json"):
        assert Path(f"precious{suffix}").read_bytes() == SECRET
        assert not Path(f"out/{name}{suffix}").is_symlink()
    assert Path("out", name).read_bytes() == honest.ARTIFACT


def test_what_stands_there_and_is_no_file_is_refused(run: Callable[..., Result]) -> None:
    os.mkfifo("pipe")
    for output in ("pipe", "-"):
        assert run("compile", "x.wasm", "-o", output).exit_code == Exit.USAGE
    assert not Path("pipe.json").exists()
    os.mkfifo("out/x.wasmtime-50.0.1.cwasm.json")
    result = run("compile", "x.wasm", "-o", "out")
    assert result.exit_code == Exit.REFUSED
    assert "exists and is not a regular file" in result.stderr


@pytest.mark.parametrize(
    ("one", "other"), [("A.wasm", "a.wasm"), ("a.wasm", "a"), ("é.wasm", "e\u0301.wasm")]
)
def test_two_inputs_of_one_name_are_refused_before_anything_is_written(
    run: Callable[..., Result], server: LyingServer, one: str, other: str
) -> None:
    for folder, name in (("one", one), ("other", other)):
        Path(folder).mkdir()
        Path(folder, name).write_bytes(honest.WASM)
    server.calls.clear()
    before = written()
    result = run("compile", f"one/{one}", f"other/{other}", "-o", "new")
    assert result.exit_code == Exit.USAGE
    assert "several modules would be written as" in result.stderr
    assert (written(), server.calls, Path("new").exists()) == (before, [], False)


def test_no_input_is_written_over(run: Callable[..., Result], server: LyingServer) -> None:
    Path("out/x.wasmtime-50.0.1.cwasm").write_bytes(honest.WASM)
    result = run("compile", "x.wasm", "out/x.wasmtime-50.0.1.cwasm", "-o", "out")
    assert result.exit_code == Exit.REFUSED
    assert "is another input" in result.stderr
    assert Path("out/x.wasmtime-50.0.1.cwasm").read_bytes() == honest.WASM
    for module, output in (("m", "m"), ("m.json", "m"), ("m.dsse.json", "m")):
        Path(module).write_bytes(honest.WASM)
        refused = run("compile", module, "-o", output)
        assert refused.exit_code == Exit.USAGE
        assert "is the module itself" in refused.stderr
        Path(module).unlink()


def test_names_steer_nothing_and_fit_into_file_systems(run: Callable[..., Result]) -> None:
    sources = [
        "\x1b[2Jevil.wasm",
        "\x1b[3Jevil.wasm",
        "line\nbreak.wasm",
        "-rf.wasm",
        ".hidden.wasm",
        ".wasm",
        "back\\slash.wasm",
        "\u202egnp.wasm",
        "n" * 250,
        "n" * 249,
        "ü" * 120,
        os.fsdecode(b"no-utf8-\xff.wasm"),
    ]
    Path("in").mkdir()
    for source in sources:
        Path("in", source).write_bytes(honest.WASM)
    result = run("compile", "--json", "-o", "out", *(f"in/{source}" for source in sources))
    assert result.exit_code == 0, result.output
    saved = [Path(one["saved_to"]) for one in json.loads(result.stdout)["artifacts"]]
    assert len({folded(path.name) for path in saved}) == len(sources)
    for path in saved:
        assert path.parent == Path("out")
        assert path.name.isprintable()
        assert path.name[0] not in ".-"
        assert path.read_bytes() == honest.ARTIFACT
    shown = run("compile", *(f"in/{source}" for source in sources)).stdout
    assert all(line.isprintable() for line in shown.splitlines())


def test_an_honest_name_stays_as_it_is() -> None:
    for name in ("add", "tree-sitter-cpp", "a.b.c", "Ünïcode ✓", "n" * 170, "a" * 64):
        assert stem(f"folder/{name}.wasm") == name


def test_a_name_can_be_read_in_one_way_only() -> None:
    seen: dict[str, tuple[str, str]] = {}
    parts = ["a", "a.b-1", "a.b", "b-1", "b", "1", "a.b-1.c", "c-2", "2", "1.c-2", "1.c"]
    for source in parts:
        for name in parts:
            for version in parts:
                engine = types.Engine(name=name, version=version)
                try:
                    path = file_name(source, ArtifactHeader(engine=engine))
                except OSError:
                    continue
                meant = (source, f"{name}-{version}")
                assert seen.setdefault(folded(path), meant) == meant
    assert len(seen) > 20


def test_another_name_becomes_its_digest() -> None:
    assert stem("-rf.wasm") == hashlib.sha256(b"-rf").hexdigest()
