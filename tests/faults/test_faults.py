"""Whatever fault Redis or an object store has, no call is wrong, lost, or delayed for long."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.faults.objects import OBJECTS
from tests.faults.run import LEASE_S, markdown, run
from tests.faults.site import REDIS, TIMEOUT_S, Tier
from tests.sizes import size

# What a machine that is busy with other things may add. A call that hangs takes far longer;
# how long the waits are on a machine of one's own is in docs/explanation.
_BUSY_S = 15.0
# In these many calls wait for all of one time-out. What a busy machine adds to some does not
# double what most of them take; a second time-out would. Answers within the time-out may be late
# twice: large artifacts take two reads, and a lease is asked for after a read.
_TIMEOUTS_WAITED_OUT = {
    "stopped with SIGSTOP, continued": 1.5,
    "accepts and never answers": 1.5,
    "answers late, within the time-out": 2.5,
    "answers later than that": 1.5,
    "answers later than the time-out": 1.5,
}


@pytest.mark.timeout(900)
@pytest.mark.parametrize("tier", [REDIS, OBJECTS], ids=lambda tier: tier.name)
async def test_faults_under_load_cost_no_call_and_no_truth(tmp_path: Path, tier: Tier) -> None:
    rounds = size(6, 1)
    made = await asyncio.wait_for(run(tmp_path, rounds, quiet_s=2.0, tier=tier), 880)
    print(f"\n{markdown(made)}")
    kinds = {kind.name for kind in tier.kinds if not kind.takes_long}
    assert {row.fault: row.injected for row in made.rows} == dict.fromkeys(kinds, rounds)
    assert len(made.calls) > 10 * rounds * len(kinds)
    assert (made.wrong, made.failed, made.errors) == ([], [], [])
    for row in made.rows:
        # What stays of a lease when Redis is lost is waited for, but no longer than it lasts.
        assert row.longest_added_s < TIMEOUT_S + LEASE_S + _BUSY_S, row.fault
        if row.fault in _TIMEOUTS_WAITED_OUT:
            # A busy machine adds to each what it adds to calls without faults.
            most_s = _TIMEOUTS_WAITED_OUT[row.fault] * TIMEOUT_S + made.quiet_longest_s
            assert 0 < row.waited_out_s < most_s, row.fault
