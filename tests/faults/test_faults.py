"""Whatever fault Redis has, no call of a daemon is wrong, lost, or delayed for long."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.faults.kinds import KINDS
from tests.faults.report import markdown, report
from tests.faults.site import COMPILE_TIMEOUT_S, LEASE_S, TIMEOUT_S
from tests.faults.suite import Plan, run
from tests.faults.tampering import HELD_FOR_AN_HOUR, TAMPERINGS
from tests.sizes import size

# What a machine that is busy with other things may add. A call that hangs takes far longer;
# how long the waits are on a machine of one's own is in docs/explanation/redis.md.
_BUSY_S = 15.0
# In these many calls wait for all of one time-out, for one answer or for several. What a
# busy machine adds to some does not double what most of them take; a second time-out would.
_WAITED_OUT = (
    "stopped with SIGSTOP, continued",
    "accepts and never answers",
    "answers late, within the time-out",
    "answers later than that",
)


@pytest.mark.timeout(900)
async def test_faults_under_load_cost_no_call_and_no_truth(tmp_path: Path) -> None:
    plan = Plan(rounds=size(2, 1), tamperings=size(9, 4), quiet_s=2.0, together=True)
    made = report(await asyncio.wait_for(run(tmp_path, plan), 880))
    print(f"\n{markdown(made)}")
    kinds = {kind.name for kind in KINDS if not kind.takes_long}
    assert {row.fault for row in made.rows} == kinds | {*TAMPERINGS}
    assert made.injected >= size(200, 90)
    assert made.calls > 10 * made.injected
    assert made.wrong == []
    assert (made.failed, made.errors) == ([], [])
    for row in made.rows:
        # A lease that looks like one of the fleet's is waited for, but no longer than this.
        most_s = LEASE_S + (COMPILE_TIMEOUT_S if row.fault == HELD_FOR_AN_HOUR else 0)
        assert row.longest_added_s < TIMEOUT_S + most_s + _BUSY_S, row.fault
    waited_out = {row.fault: row.waited_out_s for row in made.rows}
    for fault in _WAITED_OUT:
        # A busy machine adds to each what it adds to calls without faults.
        assert 0 < waited_out[fault] < 1.5 * TIMEOUT_S + made.quiet_longest_s, fault
    # That nobody believed what was tampered with shows that it was met at all.
    assert sum(made.rejected.values()) > size(5, 2) * len(TAMPERINGS)
    assert {cause for cause, count in made.rejected.items() if count} >= {
        *("digest", "format", "mismatch", "stranger", "truncated", "version"),
        "wrong_key",
    }
