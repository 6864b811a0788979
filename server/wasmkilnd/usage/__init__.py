"""Usage: how often each artifact was served, for whoever has to know what is hot.

Every Compile call that is answered counts as one use of its artifact: module, engine, target, cpu
and settings. The request path adds to a dictionary (``uses.Tally``), and nothing else. Every half
minute, and when the daemon ends, its keeper adds the tally to sums that fade with a half-life of
a day (``uses.Uses``), and saves them:

| where | when | what |
|---|---|---|
| the shared tier (``cache/redis/use_store``) | if there is one | a signed record for each daemon |
| ``<state_dir>/uses/`` (``file``) | without one | sums of all daemons on that state directory |

It promises:

- Each namespace has uses of its own, and none shows in another's.
- At most 10,000 artifacts have a count; beyond that, those used least are forgotten.
- Sums are those of the fleet: each daemon writes its own record, and a reader adds them up. What
  a daemon that was killed had not saved yet, at most half a minute, is lost.
- A tier or a disk that fails costs no call anything: the daemon goes on counting in memory.

Uses decide nothing but the order of work that is done ahead of time. Clients that read the host
store without a call are not counted. The format is in ``cache/value/use_records``; raise its
version when an old daemon would misread it.
"""
