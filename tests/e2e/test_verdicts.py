"""Load and Compile give the verdict that the engine itself gives.

`make verdicts` does the same with thousands of generated modules, and `python -m tests.verdicts`
with any folder, such as the official test suite's.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from wasmkiln import Client

from tests.e2e.daemon import Daemon
from tests.e2e.programs import Installed
from tests.verdicts.cases import CASES, write_cases
from tests.verdicts.compare import Verdicts, compare
from tests.verdicts.generate import write_generated

# Of each of five kinds; by every engine, Load and Compile, so thirty times as many calls.
GENERATED = 20


@pytest.fixture(scope="module")
def verdicts(
    engines: Installed, daemon: Daemon, tmp_path_factory: pytest.TempPathFactory
) -> list[Verdicts]:
    """The verdicts of the daemon and of each engine on all cases."""
    return compare(engines, daemon, write_cases(tmp_path_factory.mktemp("verdicts") / "cases"))


def test_cases_get_the_verdicts_that_are_expected(verdicts: list[Verdicts]) -> None:
    for case, said in zip(CASES, verdicts, strict=True):
        for engine in said.load:
            expected = case.wasmer if engine.startswith("wasmer") else case.wasmtime
            answers = said.load[engine], said.compile[engine]
            assert tuple(one.reason for one in answers) == expected, (case.name, engine, answers)


def test_cases_get_the_engines_own_words_offsets_and_names(verdicts: list[Verdicts]) -> None:
    assert [line for one in verdicts for line in one.disagreements()] == []


def test_what_an_engine_says_is_one_line_of_readable_text(verdicts: list[Verdicts]) -> None:
    said = [answer.message for one in verdicts for answer in [*one.load.values()] if answer.reason]
    assert all(message.isprintable() and len(message) < 700 for message in said)
    [long_name] = [one for one in verdicts if one.name == "long-name-twice.wasm"]
    for answer in long_name.load.values():
        # Its end is what tells most, so it is the middle that is left out.
        assert "…" in answer.message
        assert answer.offset
        assert "at offset" in answer.message


def test_generated_and_damaged_modules_each_get_a_clear_verdict(
    engines: Installed, daemon: Daemon, client: Client, tmp_path: Path
) -> None:
    before = client.stats()
    paths = write_generated(tmp_path / "generated", GENERATED)
    assert len(paths) == 5 * GENERATED
    said = compare(engines, daemon, paths)
    assert [line for one in said for line in one.disagreements()] == []
    after = client.stats()
    assert after.uptime.ToTimedelta() > before.uptime.ToTimedelta()
    assert [w.replaced for w in after.workers] == [w.replaced for w in before.workers]
