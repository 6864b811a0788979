"""Verdicts: what the end of a job says about its module.

A job ends in one of three ways, and this room tells them apart:

1. The engine decided: the module is VALID, INVALID, or UNSUPPORTED (valid, but this engine does
   not compile it). That is a ``Verdict``; it is remembered for as long as the engine is the same.
2. The job used up a limit or broke: COMPILE_TIMEOUT, COMPILE_MEMORY_LIMIT, COMPILER_CRASHED,
   SETTING_UNKNOWN. That is no verdict, and is not remembered here. Each error carries a
   ``Fault``, which decides whether the module gets a strike (see ``quarantine``): the module's
   own doing, the machine's, or unsure. A timeout on a crowded machine must not put a stranger's
   module into quarantine.
3. The job broke the protocol, or sent a result that its own code never sends. The module has
   taken the compiler over: COMPILER_CRASHED, and the module is to blame.

- ``verdict``: from a job's report to a verdict, an error, or the compiled code.
- ``job_result``: the RESULT frame, parsed strictly: every string, number and list is checked.
- ``engine_messages``: the engines' own messages: which feature is missing, whether memory ran
  out. A module chooses the names that engines quote; none of them may pass for the engine's
  words.
- ``verdict_cache``: verdicts by module, engine and question; 16,384 entries or 8 MiB at most.

Messages for callers are one line of printable text and at most some 400 characters.
"""
