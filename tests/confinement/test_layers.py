"""Each layer by itself, and what a worker reports when some are missing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio
from wasmkilnd.engines.process import Worker
from wasmkilnd.model import Isolation, LayerState

from tests.confinement import workers
from tests.confinement.workers import EVERYTHING, attempt
from tests.e2e.attempts import ATTEMPTS, Machine, sentence

pytestmark = pytest.mark.asyncio(loop_scope="module")

LAYERS = ["namespaces", "root", "landlock", "privileges", "limits", "seccomp"]

# What a layer refuses when there is no other. Seccomp alone refuses all but a crowd of threads.
READING_AND_WRITING = [
    *(("read_file", what) for what in ("KEY", "/etc/passwd", "ENVIRON", "ENGINE")),
    *(("write_file", where) for where in ("NEW", "TMP", "ENGINE")),
    *(("rename_file", "KEY"), ("make_folder", "NEW_FOLDER"), ("execute", "PYTHON")),
    *(("write_memory_of", "WORKER"), ("write_memory_of", "DAEMON")),
]
OTHER_PROCESSES = [
    *(("signal_process", "DAEMON"), ("signal_by_handle", "DAEMON"), ("trace_process", "DAEMON")),
]
ALONE: dict[str, list[tuple[object, ...]]] = {
    "seccomp": [words for words in ATTEMPTS if words[0] != "exhaust_threads"],
    "namespaces": [
        *READING_AND_WRITING,
        *OTHER_PROCESSES,
        *(("connect_tcp", "TCP"), ("send_udp", "UDP"), ("connect_unix", "UNIX")),
        *(("connect_abstract", "ABSTRACT"), ("look_at_file", "KEY"), ("open_up_file", "KEY")),
        *(("signal_process", "WORKER"), ("signal_everybody",), ("signal_thread", "WORKER")),
        *(("trace_process", "WORKER"), ("read_memory_of", "WORKER"), ("become_root",)),
        *(("look_at_limits_of", "DAEMON"), ("join_group_of", "WORKER"), ("change_root",)),
    ],
    "landlock": [
        *READING_AND_WRITING,
        *(("connect_tcp", "TCP"), ("listen",), ("connect_abstract", "ABSTRACT")),
        *OTHER_PROCESSES,
    ],
}
# Which of the probe's attempts succeed without a layer, all others being there.
HOLES_WITHOUT = {
    "namespaces": set(),
    "landlock": set(),
    "privileges": set(),
    "seccomp": {"fork", "share_memory", "io_uring"},
}


@dataclass
class Alone:
    """A worker with one layer."""

    layer: str
    worker: Worker
    engine: Path


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def alone(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Alone]:
    left_out = [name for name in EVERYTHING if name != request.param]
    engine = workers.environment(tmp_path_factory.mktemp(request.param), left_out)
    async with workers.running(engine) as worker:
        yield Alone(request.param, worker, engine)


@pytest.mark.parametrize(
    ("alone", "words"),
    [(layer, words) for layer, refused in ALONE.items() for words in refused],
    ids=lambda it: it if isinstance(it, str) else sentence(it),
    indirect=["alone"],
)
async def test_one_layer_alone_refuses(
    alone: Alone, words: tuple[object, ...], machine: Machine
) -> None:
    state = {layer.name: layer.state for layer in alone.worker.isolation.layers}
    # Jobs have none of their own here: without the layer privileges they would keep some.
    whole = state[alone.layer] is LayerState.ENFORCED or alone.layer == "namespaces"
    if not whole or state[alone.layer] is LayerState.MISSING:
        pytest.skip(f"this machine has no {alone.layer}, or not all of it")
    name, *arguments = words
    outcome = await attempt(
        alone.worker,
        str(name),
        *machine.arguments(tuple(arguments), alone.worker.pid, alone.engine),
    )
    assert outcome.refused, outcome.report


@pytest.mark.parametrize("missing", HOLES_WITHOUT)
async def test_a_missing_layer_is_reported_and_the_others_hold(
    missing: str, tmp_path: Path
) -> None:
    whole = await isolation(tmp_path / "whole", [])
    part = await isolation(tmp_path / "part", [missing])
    said = {layer.name: layer for layer in part.layers}
    assert list(said) == LAYERS
    assert said[missing].state is LayerState.MISSING
    assert said[missing].detail
    if not whole.gaps:
        assert set(part.holes) <= HOLES_WITHOUT[missing]
        assert part.holds == (missing != "seccomp")


async def test_all_layers_together_refuse_every_attempt(tmp_path: Path) -> None:
    found = await isolation(tmp_path, [])
    assert [layer.name for layer in found.layers] == LAYERS
    assert found.holds
    assert set(found.attempts.values()) == {True}


async def test_the_workers_own_attempts_succeed_where_nothing_confines_it(tmp_path: Path) -> None:
    """The control: a probe that finds everything refused would be worth nothing."""
    found = await isolation(tmp_path, EVERYTHING)
    assert not found.holds
    # Nor has a bare worker a descriptor too many by itself: test_leftovers gives it some.
    not_everywhere = {"io_uring", "trace", "new_privileges", "descriptors"}
    assert set(found.attempts) - set(found.holes) <= not_everywhere


async def test_only_seccomp_and_limits_are_enough(tmp_path: Path) -> None:
    """This is so in a container that forbids namespaces, on a kernel without Landlock."""
    assert (await isolation(tmp_path, ["namespaces", "landlock", "privileges"])).holds


async def isolation(folder: Path, left_out: Sequence[str]) -> Isolation:
    """Return what a worker without some layers finds."""
    async with workers.running(workers.environment(folder, left_out)) as worker:
        return worker.isolation
