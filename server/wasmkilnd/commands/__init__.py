"""The operator's commands beside ``serve``: what they ask for, and what they print.

| command | where | what it does |
|---|---|---|
| ``wasmkilnd keys …`` | ``keys`` | make, list, rotate, trust and revoke the signing keys |
| ``wasmkilnd token …`` | ``token`` | make, list and revoke the tokens of callers |
| ``wasmkilnd tls init`` | ``tls`` | make certificates for a first try of TLS |
| ``wasmkilnd engine …`` | ``engine`` | install, list and remove engines |
| ``wasmkilnd engine use`` | ``engine_use`` | let an engine's name stand for one of its versions |
| ``wasmkilnd reload`` | ``reload`` | have running daemons read their configuration again |
| ``wasmkilnd cache …`` | ``cache`` | list, remove, verify and move the values of a tier |

The commands run without a daemon and beside one. They read the same settings as ``serve``, from
flags, environment and file, so they work on the same keys and the same tier. What changes who is
trusted, or who may do what, gets its line of the audit (``audited``). Given by root, each acts as
the owner of the state directory (``as_owner``), so that the service can use what they make.
What a daemon takes over at a reload alone, ``running`` tells, or has it do.

A command only parses, calls and prints: the work is in ``signing``, ``access`` and
``engines.install``; ``cache`` alone does its own. Results go to standard output, also as JSON with
``--json``; progress and messages go to standard error.
Errors read "cannot X: Y". ``cli`` prints the exceptions of these commands and sets the exit code:
0 done, 1 not possible, 2 wrong settings or command line, 3 bad values found, 130 interrupted.

A new command is a click command in a file of its own, added to its group here or named in ``cli``,
which imports it when it is asked for (``lazy``).
"""
