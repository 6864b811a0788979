"""Quotas: how much one identity may use, and what it has used.

| file | what it holds |
|---|---|
| ``windows`` | sums over a sliding time, and tokens that come back with time |
| ``usage`` | what one identity uses, and the bill of one piece of work |
| ``limited`` | ``LimitedAccount``: refuses what goes beyond a limit |
| ``accounts`` | ``Accounts``: the accounts of all identities, for Stats and metrics too |

The policy names quotas and gives them to identities. Each identity has an account of its own, even
if it shares the name of the quota with others. The root file ``account`` is what the request path
sees of it; an identity without a quota has ``UNLIMITED`` there, which costs a call nothing.

| quota | counted | where |
|---|---|---|
| ``calls`` | calls that run | ``rpc.calls`` |
| ``bytes_in_flight`` | requests, then modules under way | ``rpc.traffic``, ``compile`` |
| ``queue_share`` | jobs that wait for a worker, and their modules' bytes | ``engines.scheduling`` |
| ``compiles_per_minute`` | flights whose job began | ``compile``, ``engines.workers`` |
| ``cpu_seconds_per_hour`` | the CPU time of its jobs, once they have ended | ``engines.workers`` |
| ``bytes_kept`` | modules and artifacts that it had stored | the services |

The caller that starts a piece of work pays for it, and those that join it pay nothing. A look-up
that finds the artifact costs calls and bytes in flight only. CPU time and stored bytes are known
afterwards only: an identity is let in while it is below its limit, and may end up above.

Promises: memory is bounded, however many identities there are (``accounts``); a reload changes
limits and keeps usage; a restart forgets all usage; other daemons count for themselves.
"""
