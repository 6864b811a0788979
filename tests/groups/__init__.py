"""Groups of tests that are dear, and run only where something that they depend on has changed.

``make test`` is ``python -m tests.groups``. Its parts:

===============  =================================================================
``groups.toml``  names the groups: their tests, and what these run besides
``imports``      finds the files of the repository that a test imports
``inputs``       all files that a group's result depends on, and their digest
``unchanged``    compares the digest with that of the record
``record``       ``passed.json``: the digest with which each group passed whole
``results``      what pytest says of each test
``__main__``     leaves out what passed with the same inputs, runs the rest, says so
===============  =================================================================

A test that is in no group always runs. ``make test FULL=1`` runs every group, at its full size,
and writes the record, which is in the repository: so what has passed for one has passed for all.
It needs no git, only files. A group runs again where its tests or its inputs differ, or another
version of Python runs it.
"""
