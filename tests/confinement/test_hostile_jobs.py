"""Hostile code in a real job of a real worker: each attempt is refused.

And each succeeds in a worker that is not confined, so that no attempt is refused only
because it is wrong.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from wasmkilnd.engines.workers.process import Worker

from tests.confinement.catalogue import ATTEMPTS, MACHINES_REFUSE, Machine, sentence
from tests.confinement.workers import attempt

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.mark.parametrize("words", ATTEMPTS, ids=sentence)
async def test_a_job_is_refused_to(
    words: tuple[object, ...], machine: Machine, confined: Worker, confined_engine: Path
) -> None:
    name, *arguments = words
    outcome = await attempt(
        confined, str(name), *machine.arguments(tuple(arguments), confined, confined_engine)
    )
    assert outcome.refused, outcome.report
    assert outcome.got is None


@pytest.mark.parametrize("words", ATTEMPTS, ids=sentence)
async def test_without_confinement_it_could(
    words: tuple[object, ...], machine: Machine, bare: Worker, bare_engine: Path
) -> None:
    name, *arguments = words
    outcome = await attempt(
        bare, str(name), *machine.arguments(tuple(arguments), bare, bare_engine)
    )
    if outcome.refused and name in MACHINES_REFUSE:
        pytest.skip(f"this machine refuses it to everybody: {outcome.refused}")
    assert outcome.got is not None, outcome.report
