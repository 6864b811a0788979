"""The commands of `wasmkiln`, one file for each.

A command reads its options into arguments, calls the daemon through `session.client()`, and
hands the answer to `session.emit` twice: as a JSON document and as a table of tables.py. Its
exit code is OK unless it says otherwise by `context.exit`; exceptions go to cli/app.py.

    load, compile, warm        modules in, artifacts out; several inputs in one run
    path                       the artifact's file in the host store, for other programs
    find-missing, stats,       ask, and change nothing
      engines, health, whoami
    profiles                   list the daemons that the file of profiles names
    evict, quarantine, drain   operate a daemon
    verify                     check a file's attestation without a daemon

To add a command: a file here, its table in tables.py, and its name in app.py.
"""
