"""Verdicts: what the end of a job says about its module.

A job ends with the engine's decision about the module, with an error that tells who is to blame
for it, or by breaking the protocol, for which only the module can be to blame.

- ``verdict``: from a job's report to a verdict, an error, or the compiled code; the RESULT frame,
  which the module may have written, is parsed strictly.
- ``engine_messages``: the engines' own messages: which feature is missing, whether memory ran
  out. A module chooses the names that engines quote; none of them may pass for the engine's
  words.

Messages for callers are one line of printable text and at most some 400 characters.
"""
