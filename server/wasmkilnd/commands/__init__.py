"""The operator's commands beside ``serve`` and ``config``: what they ask for, and what they print.

| command | where | what it does |
|---|---|---|
| ``wasmkilnd keys …`` | ``keys`` | make, list, rotate, trust and revoke the signing keys |
| ``wasmkilnd token …`` | ``token`` | make, list and revoke the tokens of callers |
| ``wasmkilnd tls init`` | ``tls`` | make certificates for a first try of TLS |
| ``wasmkilnd engine …`` | ``engine`` | install, list and remove engines; what names stand for |
| ``wasmkilnd reload`` | ``reload`` | have running daemons read their configuration again |
| ``wasmkilnd cache …`` | ``cache`` | list, remove, verify and move the values of a tier |

The commands run without a daemon and beside one. They read the same settings as ``serve``, from
flags, environment and file, so they work on the same keys and the same tier. Root is refused on the
state directory of another user, with the line to type instead (``ownership.refuse_root``). What
changes who is trusted, or who may do what, gets its line of the audit. All that is in ``shared``.

A command only parses, calls and prints: the work is in ``signing``, ``access`` and
``engines.install``; ``cache`` alone does its own. Results go to standard output, also as JSON with
``--json``; messages go to standard error.
Errors read "cannot X: Y". ``cli`` prints the exceptions of these commands and sets the exit code:
0 done, 1 not possible, 2 wrong settings or command line, 3 bad values found, 130 interrupted.

A new command is a click command in a file of its own that ``cli`` names, and imports when it is
asked for.
"""
