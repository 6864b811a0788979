"""Who waits for what, for how long, and how much of it one caller may have.

| file | what it is |
|---|---|
| ``flights`` | work that many calls wait for, and work behind calls; how much one caller may hold |
| ``budgets`` | how long a call waits for tiers: a budget for each call, a breaker for each tier |

**Nobody shares another caller's fate.** Work belongs to its flight: a caller that leaves ends its
own wait only. A tier that does not answer costs a call one time-out at most, and later calls
nothing. A caller may hold as much as it leaves free, so there is always room for a new one.

What an identity may do over time is ``wasmkilnd.quota``.
"""
